"""`MemoryPlan`: how a tuned module keeps less for backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utcompile.graph import UtcGraphModule
from utcompile.memory.execution import planned_forward


@dataclass(frozen=True)
class MemoryPlan:
    """What a tuned module keeps for backward. The default keeps less wherever that costs no time."""

    def forward_of(self, tuned: UtcGraphModule) -> Callable[..., Any] | None:
        """What a call of a tuned module runs now; None where it runs as it is."""
        return planned_forward(tuned)

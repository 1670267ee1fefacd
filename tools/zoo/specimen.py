"""A model of the zoo, as it is captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Specimen:
    """A model with what it is captured on.

    Attributes:
        inputs: positional or by name.
        dynamic: as in `utc.capture`; `()` where the model's sizes cannot change.
        note: how it was made smaller.
    """

    model: nn.Module
    inputs: tuple[Any, ...] | dict[str, Any]
    dynamic: tuple[str, ...] | None = None
    note: str = ""

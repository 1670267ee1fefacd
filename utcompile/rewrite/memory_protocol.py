"""What a tuned module knows of its memory plan, which `utcompile.memory` makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from utcompile.graph import UtcGraphModule


class Step(Protocol):
    """One training step, in bytes beyond parameters, buffers and inputs, and in FLOPs."""

    @property
    def kept(self) -> int:
        """The bytes that are alive after the forward pass."""

    @property
    def peak(self) -> int:
        """The most bytes that are alive at one moment of the step."""

    @property
    def flops(self) -> int:
        """Of products and convolutions."""


class Memory(Protocol):
    """Decides what a call of a tuned module keeps for backward."""

    @property
    def before(self) -> Step | None:
        """The step without any plan; None where no budget was given."""

    @property
    def expected(self) -> Step | None:
        """The step with this plan."""

    @property
    def again(self) -> tuple[tuple[str, str], ...]:
        """The units that run again in backward: the names of their first and last nodes."""

    def compiled_forward_of(self, tuned: UtcGraphModule) -> Callable[..., object] | None:
        """The function that `torch.compile` compiles; None: the module's own `forward`."""

    def forward_of(self, tuned: UtcGraphModule) -> Callable[..., object] | None:
        """The function that the next call runs; None: the module's own `forward`."""

    def of_part(self, tuned: UtcGraphModule, part: UtcGraphModule) -> Memory:
        """The plan of a part of a tuned module, whose nodes have the names that they have in the whole."""

    def within(self, tuned: UtcGraphModule, budget: float | int | str, example_inputs: object = None) -> Memory:
        """A plan whose step fits a budget."""

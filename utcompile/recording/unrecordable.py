"""Calls that recording cannot write down, with their places: the reasons why a module becomes one opaque node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from utcompile.errors import UtcError

T = torch.Tensor
# errors of a fake tensor where an operation needs numbers
DATA_ERRORS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    GuardOnDataDependentSymNode,
)
# calls that give a tensor's numbers to Python; the first ones may read sizes from an input
READS_SIZES = {T.item, T.tolist, T.__int__, T.__index__}
READS_DATA = READS_SIZES | {T.numpy, T.__bool__, T.__float__, T.__complex__}


@dataclass(frozen=True)
class Opaque:
    """A module that stays one node.

    Attributes:
        path: its name in the model.
        reason: why it cannot be recorded.
        source: the line of the model's code.
    """

    path: str
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} ({self.source})"


class Unrecordable(Exception):
    """A call that cannot be written down inside the module `path`.

    Args:
        data: it depends on the numbers in a tensor, which only real values have.
        shape: with real values it can be recorded: a size depends on them, or it is a weight's value that is read.
        holders: inputs of integers from which Python reads sizes.
        operator: an operator of torch that takes functions is what cannot be written down.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        source: str,
        *,
        data: bool = False,
        shape: bool = False,
        holders: Sequence[str] = (),
        operator: bool = False,
    ) -> None:
        super().__init__(reason)
        self.path, self.reason, self.source = path, reason, source
        self.data, self.shape, self.holders, self.operator = data, shape, tuple(holders), operator

    def error(self) -> UtcError:
        """The error for a place where no smaller module can stay as it is."""
        if self.operator:
            return UtcError(
                self.reason,
                where=f"{self.path or 'the root module'} ({self.source})",
                fix="put that call into a submodule, which stays one node",
            )
        if self.data:
            return UtcError(
                "the model's Python code depends on the values of tensors, so it cannot be recorded",
                where=f"{self.path or 'the root module'} ({self.source})",
                why=self.reason,
                fix="express the choice with torch.where, or move that code into a submodule, which stays one node",
            )
        return UtcError(
            self.reason,
            where=f"{self.path or 'the root module'} ({self.source})",
            fix="make the value with torch functions, keep it as a buffer, or move that code into a submodule",
        )

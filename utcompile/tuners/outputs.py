"""The output channels in an operation's weight: they turn a scale of the result into a scale of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.ops import Trait, having

_FIRST = having(Trait.OUTPUTS_FIRST)
_LAST = having(Trait.OUTPUTS_LAST)
NORMS = having(Trait.AFFINE)


@dataclass(frozen=True)
class Outputs:
    """The output channels of a weight.

    Attributes:
        shape: the weight's shape, its axes split so that no axis has both channels and other positions.
        axes: the axes of the channels.

    >>> found = outputs_of(Operation("conv_transpose2d", (), {"groups": 2}), (4, 3, 5, 5))
    >>> found.count, found.shape, found.axes  # (groups, in/groups, out/groups, kernel)
    (6, (2, 2, 3, 25), (0, 2))
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of channels."""
        return prod([self.shape[a] for a in self.axes])  # a list: Dynamo folds no product of a generator

    def scaled(self, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The weight with each channel multiplied by its factor `(count,)`."""
        spread = factor.reshape([n if a in self.axes else 1 for a, n in enumerate(self.shape)])
        return (weight.reshape(self.shape) * spread).reshape(weight.shape)

    def norms(self, weight: torch.Tensor) -> torch.Tensor:
        """The Euclidean norm of the weights of each channel, `(count,)`."""
        others = [a for a in range(len(self.shape)) if a not in self.axes]
        split = weight.reshape(self.shape)
        return split.square().sum(others).sqrt().reshape(-1) if others else split.abs().reshape(-1)


def outputs_of(op: Operation, shape: tuple[int, ...]) -> Outputs:
    """Find the output channels in a weight.

    Raises:
        UtcError: the place of the output channels is unknown.
    """
    if op.name in NORMS:
        return Outputs((prod(shape),), (0,))
    if op.name in _FIRST or op.name == "parameter":
        return Outputs((shape[0], prod(shape[1:])), (0,))
    if op.name.startswith("conv_transpose"):
        groups = op.attributes.get("groups", 1)
        return Outputs((groups, shape[0] // groups, shape[1], prod(shape[2:])), (0, 2))
    if op.name == "einsum" and (axes := _of_einsum(op, len(shape))):
        return Outputs(shape, axes)
    if op.name in _LAST and len(shape) in (2, 3):
        return Outputs(shape, (0, 2) if len(shape) == 3 else (1,))
    raise UtcError(
        f"the output channels of {op.name} with a weight {list(shape)} are unknown",
        why="no axis of its weight is known to be that of the result's channels",
        fix="tune its result with `sequential:`, or its weight with {kind: lora}",
        code="tuner/does-not-fit",
    )


def inputs_of(op: Operation, shape: tuple[int, ...]) -> Outputs:
    """Find the input channels in a weight, described as `outputs_of` describes output channels.

    Raises:
        UtcError: the operation is not a linear, convolution or matmul.

    >>> inputs_of(Operation("conv2d", (), {"groups": 2}), (6, 4, 3, 3)).count
    8
    """
    if op.name == "linear":
        return Outputs(shape, (1,))
    if op.name in ("conv1d", "conv2d", "conv3d"):
        groups = op.attributes.get("groups", 1)
        return Outputs((groups, shape[0] // groups, shape[1], prod(shape[2:])), (0, 2))
    if op.name == "matmul" and len(shape) == 2:
        return Outputs(shape, (0,))
    raise UtcError(
        f"the input channels of {op.name} with a weight {list(shape)} are unknown",
        why="no axis of its weight is known to be that of the channels that it reads",
        fix="tune the value that it reads with `sequential: x`",
        code="tuner/does-not-fit",
    )


def _of_einsum(op: Operation, rank: int) -> tuple[int, ...]:
    """The axes that weight and result share, so that a factor on them leaves the sum; empty where that is unclear."""
    terms, _, result = str(op.attributes.get("equation", "")).replace(" ", "").partition("->")
    place = op.attributes.get("weight_at")
    letters = terms.split(",")[place] if isinstance(place, int) and result and terms.count(",") >= place else ""
    if len(letters) != rank or len(set(letters)) != rank or "." in letters:
        return ()
    return tuple(i for i, letter in enumerate(letters) if letter in result)

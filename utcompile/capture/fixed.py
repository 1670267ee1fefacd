"""A size that `dynamic=` does not name is the example's: a call with another one is an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from utcompile.capture.inputs import Inputs
from utcompile.capture.nested import parts
from utcompile.errors import UtcError


@dataclass(frozen=True)
class FixedSizes:
    """Checks the sizes of one input that do not vary.

    Attributes:
        name: the input, as a person reads it: `x`, `batch['mask']`.
        rank: its number of dimensions.
        sizes: the dimensions that do not vary, with their sizes.

    Example:
        >>> check = FixedSizes("x", 4, ((1, 3), (2, 64), (3, 64)))
        >>> check(torch.zeros(5, 3, 64, 64))
        >>> check(torch.zeros(5, 3, 64, 80))
        Traceback (most recent call last):
        utcompile.errors.UtcError: the captured model was recorded with x.shape[3]=64, not 80
          why: only sizes that were captured as dynamic may vary between calls
          fix: capture it with this size as dynamic, e.g. dynamic={"x": {0: "B", 3: "S"}}, or at an example of 80
    """

    name: str
    rank: int
    sizes: tuple[tuple[int, int], ...]
    __name__ = "check_fixed_sizes"

    def __call__(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise UtcError(f"{self.name} must be a tensor, as at capture, and not {type(tensor).__name__}")
        shape = tensor.shape
        if len(shape) != self.rank:
            raise UtcError(
                f"the captured model was recorded with {self.name} of {self.rank} dimensions, not {len(shape)}",
                fix="capture it again with an example of this kind",
            )
        for dim, size in self.sizes:
            if shape[dim] != size:
                raise self._error(dim, size, shape[dim])

    def _error(self, dim: int, size: int, found: int) -> UtcError:
        dims = f'{{0: "B", {dim}: "S"}}' if dim else '{0: "B"}'
        return UtcError(
            f"the captured model was recorded with {self.name}.shape[{dim}]={size}, not {found}",
            why="only sizes that were captured as dynamic may vary between calls",
            fix=f'capture it with this size as dynamic, e.g. dynamic={{"{self.name.partition("[")[0]}": {dims}}}, '
            f"or at an example of {found}",
        )


def fix_sizes(graph: fx.Graph, nodes: tuple[fx.Node, ...], inputs: Inputs, without: tuple[str, ...]) -> None:
    """Check in every call that the sizes which do not vary are the example's.

    Args:
        graph: changed in place.
        nodes: the node of each input tensor, in order.
        inputs: the example, with what varies.
        without: inputs that are checked already, by their values.
    """
    last = [n for n in graph.nodes if n.op == "placeholder" or n in nodes][-1]
    tensors = [pair for name, value in inputs.arguments.items() for pair in _named(name, value)]
    for node, (name, tensor), varying in zip(nodes, tensors, inputs.varying, strict=True):
        sizes = tuple((d, n) for d, n in enumerate(tensor.shape) if d not in varying)
        if sizes and name.partition("[")[0] not in without:
            with graph.inserting_after(last):
                graph.call_function(FixedSizes(name, tensor.dim(), sizes), (node,))


def _named(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, part in parts(value):
        yield from _named(f"{name}[{key!r}]", part)

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
from utcompile.graph import info


@dataclass(frozen=True)
class FixedSizes:
    """Checks the sizes of one input that do not vary.

    Attributes:
        name: the input, as a person reads it: `x`, `batch['mask']`.
        rank: its number of dimensions.
        sizes: the dimensions that do not vary, with their sizes.
        varying: per input, the dimensions that do, with their names.

    Example:
        >>> check = FixedSizes("x", 4, ((1, 3), (2, 64), (3, 64)), (("x", ((0, "B"),)),))
        >>> check(torch.zeros(5, 3, 64, 64))
        >>> check(torch.zeros(5, 3, 64, 80))
        Traceback (most recent call last):
        utcompile.errors.UtcError: the captured model was recorded with x.shape[3]=64, not 80
          why: only sizes that were captured as dynamic may vary between calls
          fix: capture it with this size as dynamic, e.g. dynamic={"x": {0: "B", 3: "S"}}; or at an example of 80
    """

    name: str
    rank: int
    sizes: tuple[tuple[int, int], ...]
    varying: tuple[tuple[str, tuple[tuple[int, str], ...]], ...] = ()
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
        again = f"at an example of {found}"
        return UtcError(
            f"the captured model was recorded with {self.name}.shape[{dim}]={size}, not {found}",
            why="only sizes that were captured as dynamic may vary between calls",
            fix=f"capture it {again}"
            if "[" in self.name
            else f"capture it with this size as dynamic, e.g. dynamic={self._dynamic(dim)}; or {again}",
        )

    def _dynamic(self, dim: int) -> str:
        """`dynamic=` with what varies at present, and one dimension more."""
        asked = {name: dict(dims) for name, dims in self.varying}
        asked.setdefault(self.name, {})[dim] = "S"
        return str(asked).replace("'", '"')


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
    named = tuple(
        (n, tuple((d, s.name) for d, s in v.items())) for (n, _), v in zip(tensors, inputs.varying, strict=True) if v
    )
    for node, (name, tensor), varying in zip(nodes, tensors, inputs.varying, strict=True):
        sizes = tuple((d, n) for d, n in enumerate(tensor.shape) if d not in varying)
        if sizes and name.partition("[")[0] not in without:
            with graph.inserting_after(last):
                info(graph.call_function(FixedSizes(name, tensor.dim(), sizes, named), (node,))).check = True


def _named(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    for key, part in parts(value):
        yield from _named(f"{name}[{key!r}]", part)

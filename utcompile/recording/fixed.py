"""A size that `dynamic=` does not name is the example's, and sizes of one name are equal: other calls are an error.

The model may read a size, or whether an input is there at all, and choose by it, where the graph reads nothing of that
input any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Symbol, info
from utcompile.recording.inputs import Inputs, named_tensors


@dataclass(frozen=True)
class FixedSizes:
    """Checks that one input is a tensor whose sizes are the example's where they do not vary, and equal to those of
    earlier inputs where they have one name.

    Attributes:
        name: the input, as a person reads it: `x`, `batch['mask']`.
        rank: its number of dimensions.
        sizes: the dimensions that do not vary, with their sizes.
        varying: per input, the dimensions that do, with their names.
        shared: sizes of one name: the dimension, the number of another tensor among the arguments (this one is 0), the
            dimension there, and the name of that input.

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
    shared: tuple[tuple[int, int, int, str], ...] = ()
    __name__ = "check_fixed_sizes"

    def __call__(self, tensor: torch.Tensor, *others: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise UtcError(
                f"{self.name} must be a tensor, as at capture, and not {type(tensor).__name__}",
                fix="pass a tensor, or capture the model again with an example of this kind",
                code="call/guard",
            )
        shape = tensor.shape
        if len(shape) != self.rank:
            raise UtcError(
                f"the captured model was recorded with {self.name} of {self.rank} dimensions, not {len(shape)}",
                fix="capture it again with an example of this kind",
                code="call/guard",
            )
        for dim, size in self.sizes:
            if shape[dim] != size:
                raise self._error(dim, size, shape[dim])
        for dim, number, there, name in self.shared:
            wanted = (tensor, *others)[number].shape[there]
            if shape[dim] != wanted:
                raise UtcError(
                    f"{self.name}.shape[{dim}] is {shape[dim]}, and {name}.shape[{there}] is {wanted}",
                    why="they were captured as one size, which varies: nothing is known of calls in which they differ",
                    fix="give them one size; or name them apart with dynamic=…",
                    code="call/guard",
                )

    def _error(self, dim: int, size: int, found: int) -> UtcError:
        return UtcError(
            f"the captured model was recorded with {self.name}.shape[{dim}]={size}, not {found}",
            why="only sizes that were captured as dynamic may vary between calls",
            fix=f"capture it with this size as dynamic, e.g. dynamic={self._dynamic(dim)}; or at an example of {found}",
            code="call/guard",
        )

    def _dynamic(self, dim: int) -> str:
        """`dynamic=` with the dimensions that vary at present, and one more."""
        asked = {name: dict(dims) for name, dims in self.varying}
        asked.setdefault(self.name, {})[dim] = "S"
        return f"{{{', '.join(f'{_quoted(name)}: {_dims(dims)}' for name, dims in asked.items())}}}"


def _quoted(text: str) -> str:
    return repr(text) if '"' in text else f'"{text}"'


def _dims(dims: Mapping[int, str]) -> str:
    return f"{{{', '.join(f'{dim}: {_quoted(label)}' for dim, label in dims.items())}}}"


def fix_sizes(graph: fx.Graph, nodes: tuple[fx.Node, ...], inputs: Inputs, without: tuple[str, ...]) -> None:
    """Check in every call that the sizes which do not vary are the example's.

    Args:
        graph: changed in place.
        nodes: the node of each input tensor, in order.
        inputs: the example, with what varies.
        without: inputs that are checked already, by their values.
    """
    last = [n for n in graph.nodes if n.op == "placeholder" or n in nodes][-1]
    tensors = [pair for name, value in inputs.arguments.items() for pair in named_tensors(name, value)]
    named = tuple(
        (n, tuple((d, s.name) for d, s in v.items())) for (n, _), v in zip(tensors, inputs.varying, strict=True) if v
    )
    first: dict[Symbol, tuple[fx.Node, int, str]] = {}
    for node, (name, tensor), varying in zip(nodes, tensors, inputs.varying, strict=True):
        sizes = tuple((d, n) for d, n in enumerate(tensor.shape) if d not in varying)
        sources = [(d, *first.setdefault(s, (node, d, name))) for d, s in sorted(varying.items())]
        given = list(
            dict.fromkeys([node, *(source for d, source, there, _ in sources if (source, there) != (node, d))])
        )
        shared = tuple((d, given.index(s), there, of) for d, s, there, of in sources if (s, there) != (node, d))
        if name.partition("[")[0] not in without:
            with graph.inserting_after(last):
                last = graph.call_function(FixedSizes(name, tensor.dim(), sizes, named, shared), tuple(given))
            info(last).check = True

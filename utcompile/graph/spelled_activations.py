"""Activations that a model spells out: nodes that compute one, by any algebra, are read as that activation.

From each sigmoid, tanh, erf or clipped value the chain of elementwise arithmetic is followed to where it meets the
value `x` it began with. The function of `x` found so is evaluated in float64 and compared with the functions known.
So `0.5·x·(1 + tanh(√(2/π)(x + 0.044715 x³)))` and all its rearrangements are `gelu`, without a list of spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation
from utcompile.ops import Trait, having

_KNOWN: tuple[tuple[str, dict[str, object], Callable[[torch.Tensor], torch.Tensor]], ...] = (
    ("silu", {}, F.silu),
    ("gelu", {"approximate": "none"}, F.gelu),
    ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("quick_gelu", {}, lambda x: x * torch.sigmoid(1.702 * x)),
    ("mish", {}, F.mish),
    ("hardswish", {}, F.hardswish),
    ("hardsigmoid", {}, F.hardsigmoid),
)
_POINTS = torch.linspace(-7, 7, 57, dtype=torch.float64)
_EXACT = 1e-6  # the two forms of GELU differ by 5e-4; constants such as 0.7978845608 are rounded at 1e-10
_SAME = having(Trait.SAME)
_ARITHMETIC = having(Trait.ARITHMETIC | Trait.SAME)
_CURVES = having(Trait.ARITHMETIC | Trait.SAME | Trait.SATURATES | Trait.POSITIVE)
_LONGEST = 8  # arithmetic nodes below the curve
_LARGEST = 24  # nodes in all; the tanh form of GELU has 8


class SpelledActivations:
    """Finds them in one graph; functions that were met before are not evaluated again.

    Args:
        operations: how each node reads alone.
        module: the module that the nodes' targets refer to.
    """

    anchors = having(Trait.SATURATES)

    def __init__(self, operations: Mapping[fx.Node, Operation], module: nn.Module) -> None:
        self.operations, self.module = operations, module
        self._names: dict[object, tuple[str, dict[str, object]] | None] = {}

    def at(self, curve: fx.Node) -> tuple[fx.Node, Operation] | None:
        """The node that ends the activation around a sigmoid, tanh …, and how it reads; None where there is none."""
        found: tuple[fx.Node, Operation] | None = None
        for end, root in self._candidates(curve):
            named = self._named(end, root)
            if named is not None:
                found = end, Operation(named[0], (root,), dict(named[1]))  # the longest is the whole
        return found

    def _candidates(self, curve: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Where the activation may end, the nearest first, and the value it may be a function of."""
        roots: list[fx.Node] = []
        node = curve
        for _ in range(_LONGEST):
            readers = list(node.users)
            if len(readers) != 1 or self.operations[readers[0]].name not in _ARITHMETIC:
                return
            (node,), before = readers, node
            op = self.operations[node]
            if op.parameters or value_of(node) is None:
                return
            if len(op.inputs) == 2:
                if op.name != "mul" or roots:
                    return
                roots = self._roots(op.inputs[0] if op.inputs[1] is before else op.inputs[1])
            if roots:
                yield from ((node, root) for root in roots)
            elif op.name in ("mul", "div") and (bottom := self._bottom(curve)) is not None:
                yield node, bottom  # hardsigmoid: relu6(x + 3) / 6

    def _roots(self, node: fx.Node) -> list[fx.Node]:
        """The values that may be the x of `0.5 * x`: the value itself, or the one that it is a multiple of."""
        found = [node]
        while len(found) < _LONGEST:
            op = self.operations[found[-1]]
            if op.name not in ("mul", "div") or len(op.inputs) != 1 or op.parameters:
                break
            found.append(op.inputs[0])
        return found

    def _bottom(self, curve: fx.Node) -> fx.Node | None:
        """The x of `relu6(x + 3)`."""
        inner = self.operations[curve].inputs[:1]
        op = self.operations[inner[0]] if inner else None
        return (
            op.inputs[0] if op is not None and op.name == "add" and len(op.inputs) == 1 and not op.parameters else None
        )

    def _named(self, end: fx.Node, root: fx.Node) -> tuple[str, dict[str, object]] | None:
        formula = self._formula(end, root, [_LARGEST])
        if formula is None:
            return None
        if formula not in self._names:
            found = self._evaluate(end, root)
            self._names[formula] = next((k[:2] for k in _KNOWN if _agree(found, k[2](_POINTS))), None)
        return self._names[formula]

    def _formula(self, node: fx.Node, root: fx.Node, left: list[int]) -> object | None:
        """The function of `root` that ends at a node, as nested tuples; None where it has other inputs."""
        if node is root:
            return "x"
        left[0] -= 1
        op = self.operations[node]
        if left[0] < 0 or op.parameters or not op.inputs or op.name not in _CURVES:
            return None
        inner = [self._formula(n, root, left) for n in op.inputs]
        if any(i is None for i in inner):
            return None
        constants = tuple(repr(a) for a in (*node.args, *node.kwargs.items()) if not isinstance(a, fx.Node))
        order = tuple(isinstance(a, fx.Node) for a in node.args)
        return (op.name, *inner, *constants, order, *(repr(v) for v in op.attributes.values()))

    def _evaluate(self, node: fx.Node, root: fx.Node) -> torch.Tensor | None:
        """The values at the sample points; None where torch refuses."""
        if node is root:
            return _POINTS.clone()
        inputs = {n: self._evaluate(n, root) for n in self.operations[node].inputs}
        if any(v is None for v in inputs.values()):
            return None
        if self.operations[node].name in _SAME:
            return next(iter(inputs.values()))
        args = [inputs[a].clone() if isinstance(a, fx.Node) else a for a in node.args]  # type: ignore[union-attr]
        try:
            if node.op == "call_module":
                result = self.module.get_submodule(str(node.target))(*args)
            elif node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **node.kwargs)
            else:
                result = node.target(*args, **node.kwargs)  # type: ignore[operator]
        except (TypeError, ValueError, RuntimeError, KeyError):
            return None
        return result if isinstance(result, torch.Tensor) else None


def _agree(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    return found is not None and found.shape == wanted.shape and bool((found - wanted).abs().max() < _EXACT)

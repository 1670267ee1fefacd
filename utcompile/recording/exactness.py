"""The dimensions of recorded tensors whose sizes the samples show exactly.

A polynomial through the recorded sizes is exact as long as nothing piecewise has happened: no stride, no number that
`//` or `min` made. What an inexact dimension touches is inexact; but most operations carry most dimensions as they are,
and the rules below say which. An operation without a rule, one of whose inputs is inexact, makes inexact dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

from torch import fx
from torch.fx.node import Argument

from utcompile.graph import info
from utcompile.ops import Axes, callables, callables_with, having
from utcompile.recording.derived import Apply

Dims = tuple[bool, ...]
Shapes = list[tuple[int, ...]]
# parts of the names of operations whose result's size is no polynomial of their input's, or seems one by its samples
_PIECEWISE = (
    "conv", "pool", "fold", "stft", "interpolate", "upsample", "hsplit", "vsplit", "dsplit", "diag", "svd", "qr",
    "linspace", "logspace", "shuffle", "combinations", "tril_indices", "triu_indices",
)  # fmt: skip
# among them those that take a batch and channels as they are
_SPATIAL = ("conv", "pool", "fold", "interpolate", "upsample", "stft", "shuffle")
_MADE = callables_with("size", without="input")
_MADE_LIKE = frozenset(name for name in callables_with("size") if name.startswith("new_"))
_REDUCED = callables(having(Axes.REDUCE))
# operations that move axes and have no rule: equal sizes say nothing of where an axis comes from
_MOVING = frozenset(
    "einsum tensordot outer ger kron cdist meshgrid cartesian_prod gather index_select take take_along_dim unfold roll "
    "rot90 one_hot repeat_interleave block_diag vander cov corrcoef unflatten movedim moveaxis rearrange as_strided "
    "tile multi_head_attention_forward grid_sample affine_grid index pad narrow topk select".split()
)
# operations whose numbers are no sizes: where n is inexact, so are the sizes of `x.narrow(0, 0, n)`, and not of `x * n`
_ELEMENTWISE = callables(having(Axes.TOGETHER), having(Axes.KEEP), ["full_like"])


class Exactness:
    """The exact dimensions of a graph's values, found in graph order.

    Attributes:
        shapes: the sizes of a node's tensor at every recording.
        dims: for each node, which dimensions are exact.
        inexact: nodes of numbers that are no polynomial.
    """

    def __init__(self) -> None:
        self.shapes: dict[fx.Node, Shapes] = {}
        self.dims: dict[fx.Node, Dims] = {}
        self.inexact: set[fx.Node] = set()

    def visit(self, node: fx.Node, shapes: Shapes, whole: Dims) -> None:
        """Find the exact dimensions of a node.

        Args:
            shapes: its sizes at every recording.
            whole: for each dimension whether a polynomial with whole factors goes through its sizes.
        """
        found = self._found(node, shapes)
        self.shapes[node] = shapes
        if found is None:
            found = whole
        if info(node).size_of_data or len(found) != len(whole):
            found = (False,) * len(whole)
        self.dims[node] = tuple(a and b for a, b in zip(found, whole, strict=True))

    def _found(self, node: fx.Node, shapes: Shapes) -> Dims | None:
        """The exact dimensions by the rules; None where all are."""
        if node.op in ("placeholder", "get_attr", "output"):
            return None
        name = self.name(node)
        if name == "getitem" and (len(node.args) < 2 or node.args[0] not in self.dims):
            return self._part(node, shapes)
        piecewise = self._is_piecewise(node, name)
        touched = not all(map(self._is_settled, node.all_input_nodes)) or (name == "getitem" and _has_step(node))
        if not piecewise and not touched:
            return None
        if piecewise:
            return self._spatial(node, name, shapes)
        rule = _RULES.get(name)
        if rule is not None:
            try:
                return rule(self, node, shapes)
            except (IndexError, KeyError, TypeError, ValueError):  # a spelling that the rule does not know
                return self._none(shapes)
        if name in _MOVING or (
            name.rstrip("_") not in _ELEMENTWISE and not all(map(self._is_settled, self._numbers(node)))
        ):
            return self._none(shapes)
        return self._aligned([i for i in node.all_input_nodes if i in self.dims], shapes)

    def _numbers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a node reads and that are no tensors."""
        return [i for i in node.all_input_nodes if i not in self.dims]

    def _is_settled(self, source: fx.Node) -> bool:
        """Whether a value has nothing inexact; for a tuple of results, whether its inputs have not."""
        if source in self.dims:
            return all(self.dims[source])
        if source in self.inexact or self._is_piecewise(source, self.name(source)):
            return False
        return info(source).size is not None or all(map(self._is_settled, source.all_input_nodes))

    def name(self, node: fx.Node) -> str:
        """A node's operation, by the name of its class, function or method; a property by its own."""
        if node.target is getattr and len(node.args) > 1:
            return str(node.args[1]).lower()
        return (info(node).layer or str(getattr(node.target, "__name__", node.target))).lower()

    def _is_piecewise(self, node: fx.Node, name: str) -> bool:
        if info(node).opaque or isinstance(node.target, Apply):
            return self._varies(node, 0)
        if name in ("arange", "range"):
            return (len(node.args) > 2 or "step" in node.kwargs) and bool(node.all_input_nodes)
        if any(word in name for word in _PIECEWISE):
            return self._varies(node, 1 if any(word in name for word in _SPATIAL) else 0)
        return False

    def _varies(self, node: fx.Node, first: int) -> bool:
        """Whether an input of a node has a size that varies, at a dimension or behind it."""
        for source in node.all_input_nodes:
            for sizes in list(zip(*self.shapes.get(source, []), strict=True))[first:]:
                if len(set(sizes)) > 1:
                    return True
        return False

    # --- rules --------------------------------------------------------------------------------------------------------

    def _none(self, shapes: Shapes) -> Dims:
        return (False,) * len(shapes[0])

    def _of(self, value: Argument) -> Dims:
        """The exact dimensions of an argument.

        Raises:
            KeyError: it is no tensor of the graph.
        """
        return self.dims[_node(value)]

    def _is_exact(self, number: Argument) -> bool:
        return number not in self.inexact if isinstance(number, fx.Node) else number is not None

    def _spatial(self, node: fx.Node, name: str, shapes: Shapes) -> Dims:
        """A batch, channels, and inexact space; `Tensor.unfold` and unbatched inputs have no such dimensions."""
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        rank, space = len(shapes[0]), re.search(r"[123](?=d)", name)
        if source not in self.dims or not any(w in name for w in _SPATIAL) or info(node).opaque or rank < 3:
            return self._none(shapes)
        if (name == "unfold" and node.op == "call_method") or (space is not None and rank != int(space[0]) + 2):
            return self._none(shapes)
        same = [s[0] for s in self.shapes[source]] == [s[0] for s in shapes]
        made = "conv" in name or "stft" in name  # by a weight, by a number of frequencies
        channels = made or (len(self.dims[source]) > 1 and self.dims[source][1])
        return (self.dims[source][0] and same, channels, *(False,) * (rank - 2))

    def _aligned(self, sources: Sequence[fx.Node], shapes: Shapes) -> Dims:
        """Elementwise: each dimension is that of the inputs that have one there, counted from the last."""
        if not sources:
            return self._none(shapes)
        for at, sizes in enumerate(shapes):
            shape = _broadcast([self.shapes[s][at] for s in sources])
            if shape != sizes:
                return self._none(shapes)
        return self.dims[sources[0]] if len(sources) == 1 else self._joined(sources, shapes)

    def _joined(self, sources: Sequence[fx.Node], shapes: Shapes) -> Dims:
        """A dimension is exact where some input has an exact one of the same sizes there, counted from the last."""
        rank = len(shapes[0])
        return tuple(
            any(self._carries(s, d - rank, [sizes[d] for sizes in shapes]) for s in sources) for d in range(rank)
        )

    def _carries(self, source: fx.Node, dim: int, sizes: list[int]) -> bool:
        dims = self.dims[source]
        if -dim > len(dims) or not dims[dim]:
            return False
        own = [s[dim] for s in self.shapes[source]]
        return own == sizes and set(own) != {1}  # a dimension of 1 would be stretched by any other

    def _reshape(self, node: fx.Node, shapes: Shapes) -> Dims:
        sizes = _listed(node.kwargs.get("shape", node.args[1:]))
        stated = [s for s in sizes if not (isinstance(s, int) and s == -1)]
        rest = all(self._of(node.args[0])) and all(map(self._is_exact, stated))
        return tuple(rest if isinstance(s, int) and s == -1 else self._is_exact(s) for s in sizes)

    def _expand(self, node: fx.Node, shapes: Shapes) -> Dims:
        sizes, own = _listed(node.args[1:]), self._of(node.args[0])
        own = (False,) * (len(sizes) - len(own)) + own
        return tuple(
            o if isinstance(s, int) and s == -1 else self._is_exact(s) for s, o in zip(sizes, own, strict=True)
        )

    def _created(self, node: fx.Node, shapes: Shapes) -> Dims:
        at = 1 if self.name(node) in _MADE_LIKE else 0
        given = node.args[at:] or (node.kwargs.get("size"),)
        return tuple(map(self._is_exact, _listed(given[:1] if isinstance(given[0], (tuple, list)) else given)))

    def _arange(self, node: fx.Node, shapes: Shapes) -> Dims:
        return (all(map(self._is_exact, node.args)),)

    def _repeat(self, node: fx.Node, shapes: Shapes) -> Dims:
        times, own = _listed(node.args[1:]), self._of(node.args[0])
        own = (True,) * (len(times) - len(own)) + own
        return tuple(o and self._is_exact(t) for o, t in zip(own, times, strict=True))

    def _permute(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = self._of(node.args[0])
        return tuple(own[_whole(i)] for i in _listed(node.kwargs.get("dims", node.args[1:])))

    def _transpose(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = list(self._of(node.args[0]))
        named = self.name(node) in ("t", "mt", "mh", "h")
        a, b = (-1, -2) if named else (_whole(node.args[1]), _whole(node.args[2]))
        own[a], own[b] = own[b], own[a]
        return tuple(own)

    def _indexed(self, node: fx.Node, shapes: Shapes) -> Dims:
        index, source = _index(node), _node(node.args[0])
        own = [*zip(self.dims[source], zip(*self.shapes[source], strict=True), strict=True)]
        used = sum(i is not None and i is not Ellipsis for i in index)
        found: list[bool] = []
        for one in index:
            if isinstance(one, (fx.Node, list)) and not (isinstance(one, fx.Node) and info(one).size is not None):
                return self._none(shapes)
            if one is None:
                found.append(True)
            elif one is Ellipsis:
                kept = len(own) - used
                found, own = found + [exact for exact, _ in own[:kept]], own[kept:]
            else:
                (exact, sizes), own = own[0], own[1:]
                used -= 1
                if isinstance(one, slice):
                    found.append(exact and self._is_plain(one, sizes))
        return (*found, *(exact for exact, _ in own))

    def _is_plain(self, one: slice, sizes: Sequence[int]) -> bool:
        """Whether a slice has exact bounds, and no step that varies or applies to a size that varies.

        Whether the bounds are inside of the dimension is another question (`questions.slices`).
        """
        bounds = [b for b in (one.start, one.stop) if b is not None]
        steps = one.step in (None, 1) or (len(set(sizes)) == 1 and not isinstance(one.step, fx.Node))
        return steps and all(map(self._is_exact, bounds))

    def _part(self, node: fx.Node, shapes: Shapes) -> Dims | None:
        """One of several results."""
        parent = node.args[0]
        if not isinstance(parent, fx.Node):
            return self._none(shapes)
        name, source = self.name(parent), parent.args[0] if parent.args else None
        if not isinstance(source, fx.Node) or source not in self.dims:
            exact = all(all(self.dims.get(i, (True,))) for i in parent.all_input_nodes)
            return None if exact and not self._is_piecewise(parent, name) else self._none(shapes)
        own = list(self.dims[source])
        if name in ("unbind", "__iter__", "iter"):
            del own[_dim(parent, 1)]
            return tuple(own)
        if name.removeprefix("unsafe_") in ("split", "split_with_sizes", "chunk", "tensor_split"):
            dim = _dim(parent, 2)
            varying = len({s[dim] for s in self.shapes[source]}) > 1 or not own[dim]
            steps = parent.args[1] if len(parent.args) > 1 else None
            known = all(map(self._is_exact, steps if isinstance(steps, (tuple, list)) else [steps]))
            own[dim] = known and (not varying or "split" in name.removeprefix("tensor_split")) and own[dim]
            return tuple(own)
        if not all(map(self._is_settled, self._numbers(parent))):  # `x.topk(n)` with an inexact number
            return self._none(shapes)
        if all(own) and not self._is_piecewise(parent, name):
            return None
        return (
            self._joined([source], shapes)
            if [len(s) for s in shapes] == [len(own)] * len(shapes)
            else self._none(shapes)
        )

    def _joined_along(self, node: fx.Node, shapes: Shapes) -> Dims:
        parts = [self._of(p) for p in _listed(node.args[:1])]
        dim = _dim(node, 1)
        found = [any(column) for column in zip(*parts, strict=True)]
        if self.name(node) == "stack":
            found.insert(dim % len(shapes[0]), True)
        else:
            found[dim] = all(dims[dim] for dims in parts)
        return tuple(found)

    def _unsqueeze(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = list(self._of(node.args[0]))
        own.insert(_dim(node, 1, None) % len(shapes[0]), True)
        return tuple(own)

    def _squeeze(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = list(self._of(node.args[0]))
        if len(own) != len(shapes[0]):
            del own[_whole(node.args[1])]
        return tuple(own)

    def _flatten(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = self._of(node.args[0])
        if self.name(node) == "flatten" and node.op == "call_module":
            return self._none(shapes)
        start, end = _dim(node, 1, 0, "start_dim") % len(own), _dim(node, 2, -1, "end_dim") % len(own)
        return (*own[:start], all(own[start : end + 1]), *own[end + 1 :])

    def _linear(self, node: fx.Node, shapes: Shapes) -> Dims:
        return (*self._of(node.args[0])[:-1], True)

    def _embedding(self, node: fx.Node, shapes: Shapes) -> Dims:
        return (*self._of(node.args[0]), True)

    def _matmul(self, node: fx.Node, shapes: Shapes) -> Dims:
        left, right = _node(node.args[0]), _node(node.args[1])
        a, b = self.dims[left], self.dims[right]
        if len(a) < 2 or len(b) < 2:
            return self._none(shapes)
        batch = self._joined([left, right], shapes)[:-2]
        return (*batch, a[-2], b[-1])

    def _attended(self, node: fx.Node, shapes: Shapes) -> Dims:
        return (*self._of(node.args[0])[:-1], self._of(node.args[2])[-1])

    def _reduced(self, node: fx.Node, shapes: Shapes) -> Dims:
        own = self._of(node.args[0])
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", tuple(range(len(own))))
        dims = {_whole(d) % len(own) for d in (given if isinstance(given, (tuple, list)) else (given,))}
        if len(shapes[0]) == len(own):
            return tuple(o or i in dims for i, o in enumerate(own))
        return tuple(o for i, o in enumerate(own) if i not in dims)


# --- how a call spells its arguments ----------------------------------------------------------------------------------


def _node(argument: Argument) -> fx.Node:
    """An argument that must be a node.

    Raises:
        TypeError: it is none, so the call is spelled otherwise than the rule expects.
    """
    if not isinstance(argument, fx.Node):
        raise TypeError(f"{argument} is no node")
    return argument


def _whole(argument: Argument) -> int:
    """An argument that must be a whole number that is part of the graph.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(argument, int):
        raise TypeError(f"{argument} is no whole number")
    return argument


def _dim(node: fx.Node, at: int, default: int | None = 0, name: str = "dim") -> int:
    """A dimension that is given by position or by name."""
    return _whole(node.args[at] if len(node.args) > at else node.kwargs.get(name, default))


def _listed(given: Argument) -> Sequence[Argument]:
    """The members of arguments that may be given as one list: `x.view(2, 3)` is `x.view((2, 3))`."""
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{given} is no list")
    first = given[0] if len(given) == 1 else None
    return first if isinstance(first, (tuple, list)) else given


def _index(node: fx.Node) -> Sequence[object]:
    """The parts of an index."""
    index = node.args[1]
    return index if isinstance(index, tuple) else (index,)


def _has_step(node: fx.Node) -> bool:
    return any(isinstance(i, slice) and i.step not in (None, 1) for i in _index(node))


def _broadcast(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    columns = zip_longest(*(reversed(s) for s in shapes), fillvalue=1)
    return tuple(max(column, key=lambda n: (n != 1, n)) for column in columns)[::-1]


_RULES: dict[str, Callable[[Exactness, fx.Node, Shapes], Dims]] = {
    **dict.fromkeys(("view", "reshape"), Exactness._reshape),
    **dict.fromkeys(_MADE | _MADE_LIKE, Exactness._created),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t", "mt", "mh"), Exactness._transpose),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), Exactness._joined_along),
    **dict.fromkeys(("matmul", "bmm"), Exactness._matmul),
    **dict.fromkeys(_REDUCED, Exactness._reduced),
    "expand": Exactness._expand, "arange": Exactness._arange, "repeat": Exactness._repeat,
    "permute": Exactness._permute, "getitem": Exactness._indexed, "unsqueeze": Exactness._unsqueeze,
    "squeeze": Exactness._squeeze, "flatten": Exactness._flatten, "linear": Exactness._linear,
    "embedding": Exactness._embedding, "scaled_dot_product_attention": Exactness._attended,
}  # fmt: skip

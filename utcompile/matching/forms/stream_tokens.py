"""`stream_tokens: x`: learned tokens that enter the stream once and live through all layers after it (VPT-Shallow).

The tokens join `x` `(B, N, C)`, after the class token and in front of the patches. Attention does not see their place:
they enter after the position embedding. From there on the graph is followed node by node, and each value's axis of
tokens with it. Legal is what treats every token alike (linears, norms, activations, residual sums), moves tokens as a
whole (layout), or mixes them as the method says (attention among all tokens), and reading a token by its place in front
of the learned ones (the class token). Everything else is refused by name: the model pins the number of its tokens, or
would read a learned token as one of the input's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Operation, Value, describe, info, is_fused_attention, tensor, value_of
from utcompile.matching.forms.found import Found
from utcompile.matching.forms.placing import Placed, TunerPlace
from utcompile.ops import Axes as Carries
from utcompile.ops import Trait, having
from utcompile.rules.insertions import StreamTokensInsertion
from utcompile.tuners.sites import StreamTokensSite

_AXIS = 1  # of the tokens in a stream (B, N, C)
_BATCHES = (2, 3)
_TOGETHER, _REDUCED, _LAST_NORMS = having(Carries.TOGETHER), having(Carries.REDUCE), having(Carries.LAST_NORM)
_SAME = having(Trait.SAME | Trait.DROPOUT)
_FIX = "use {tokens: [k, v]} (VPT-Deep), whose tokens stay inside each attention"

Axes = frozenset[int]


@dataclass(frozen=True)
class Resized:
    """A size that is the number of tokens without the learned ones: a number, or read before they enter.

    Attributes:
        node: a reshape or an expansion.
        at: which of its sizes.
        of: the axis of its input that has the tokens.
    """

    node: fx.Node
    at: int
    of: int


@dataclass(frozen=True, kw_only=True)
class StreamTokensPlace(TunerPlace):
    """Where learned tokens enter a stream, and how far they go.

    Attributes:
        site: the site as the tuner's `build` sees it.
        source: the stream.
        at: how many tokens are in front of the learned ones; None for all.
        carried: every value that has the learned tokens, with the axes that they lengthen.
        resized: the sizes that are written into the graph.
    """

    site: StreamTokensSite = field(compare=False)
    source: fx.Node = field(compare=False)
    at: int | None = field(compare=False)
    carried: Mapping[fx.Node, Axes] = field(compare=False)
    resized: tuple[Resized, ...] = field(compare=False)

    @property
    def targets(self) -> tuple[fx.Node, ...]:
        """The stream."""
        return (self.source,)

    @property
    def given(self) -> tuple[Value, ...]:
        """The tuner's `forward` takes nothing."""
        return ()


def place(found: Found, insertion: StreamTokensInsertion) -> Placed[StreamTokensPlace]:
    """Check that learned tokens may live in a stream from a match on.

    Raises:
        UtcError: they cannot; the caller adds `where`.
    """
    stream = found.env[insertion.target]
    port = found.port(insertion.target, stream)
    value = port.value
    by_sample = value.rank == 3 and all(value.sizes(batch)[0] == batch for batch in _BATCHES)
    if not by_sample or port.channel_axis not in (value.rank - 1, None):
        raise UtcError(
            f"'{insertion.target}' {value} is no row of tokens (B, N, C)",
            why="learned tokens join a stream of tokens, and feature maps and windows have no place for more positions",
            fix="use a prompt in parallel, or an adapter",
        )
    count = value.shape[_AXIS]
    at = count - prod(port.grid) if port.grid is not None and isinstance(count, int) else None
    site = StreamTokensSite(source=port, target=port, captures=found.captures)
    found.check_real((stream,))
    fitted = found.fitting.fit(found.config, site)
    found.check_unwritten((stream,))
    way = _Way(found.view, stream, at if at is not None else count if isinstance(count, int) else 1)
    return Placed(
        place=StreamTokensPlace(
            site=site,
            source=stream,
            at=at,
            carried={node: axes for node, axes in way.axes.items() if value_of(node) is not None},
            resized=tuple(way.resized),
        ),
        config=found.config,
        parameters=fitted.parameters,
        reads=value,
        writes=value,
        note=f"{found.rule.name}: its tokens live in all layers after {describe(stream)}, which then compute more than "
        "the FLOPs say",
    )


class _Way:
    """The way of learned tokens through a graph.

    Args:
        view: the graph.
        stream: where they enter.
        at: how many tokens are in front of them at least.

    Raises:
        UtcError: an operation on their way is none that they may pass.
    """

    def __init__(self, view: GraphView, stream: fx.Node, at: int) -> None:
        self.view, self.stream, self.at = view, stream, at
        self.count = tensor(stream).shape[_AXIS]
        self.axes: dict[fx.Node, Axes] = {stream: frozenset([_AXIS])}
        self.counts: set[fx.Node] = set()  # sizes that are read while the model runs
        self.resized: list[Resized] = []
        for node in view.nodes[view.position[stream] + 1 :]:
            if any(n in self.axes or n in self.counts for n in node.all_input_nodes):
                self._follow(node)

    def _follow(self, node: fx.Node) -> None:
        op = self.view.operations[node]
        given = [n for n in node.all_input_nodes if n in self.axes]
        if node.op == "output":
            raise self._refused(given[0], "an output of the model has an entry for each token")
        if info(node).mutates:
            raise self._refused(node, "it writes into memory that has an entry for each token")
        if op.name == "size":
            dim = op.attributes.get("dim")
            if not isinstance(dim, int):
                raise self._refused(node, "it reads all sizes at once")
            if given and dim % tensor(given[0]).rank in self.axes[given[0]]:
                self.counts.add(node)
            return
        if not given or (any(n in self.counts for n in node.all_input_nodes) and op.name not in ("reshape", "expand")):
            raise self._refused(node, "it computes with the number of tokens")
        found = self._passed(node, op, given)
        if found:
            self.axes[node] = found

    def _passed(self, node: fx.Node, op: Operation, given: Sequence[fx.Node]) -> Axes:
        """The axes of tokens of a node's result, where it may be passed."""
        source, axes = given[0], self.axes[given[0]]
        rank = tensor(source).rank if value_of(source) is not None else 0
        classes = self.view.classes[node]
        if op.name in _TOGETHER or op.name == "batch_norm":
            per_channel = op.name == "batch_norm" or (op.name == "prelu" and info(node).weight_shape != (1,))
            return self._together(node, given, frozenset([1]) if per_channel else frozenset())
        if op.name == "linear" or op.name in _LAST_NORMS:
            shape = op.attributes.get("normalized_shape", (0,))
            last = range(rank - len(shape if isinstance(shape, (tuple, list)) else (shape,)), rank)
            return self._kept(node, axes, frozenset(last), "it mixes tokens, one weight for each of them")
        if op.name == "normalize":
            return self._kept(node, axes, self._dims(op.attributes.get("dim"), rank), "it normalises over the tokens")
        if op.name in ("softmax", "log_softmax"):
            over = self._dims(op.attributes.get("dim"), rank)
            if len(axes) == 2:  # scores among all tokens
                return axes
            return self._kept(node, axes, over, "it weighs the tokens for something that is no token")
        if op.name in _REDUCED:
            return self._reduced(node, op, axes)
        if op.name == "sdpa" and is_fused_attention(node):
            return self._attended(node, op)
        if op.name == "sdpa":  # spelled out: its last node multiplies weights and values
            return self._multiplied(node, tuple(node.all_input_nodes))
        if op.name == "matmul":
            return self._multiplied(node, op.inputs)
        if op.name == "split":
            return self._kept(node, axes, self._dims(op.attributes.get("dim"), rank), "it splits the tokens")
        if op.name in ("getitem", "select"):
            return self._indexed(node, op, source)
        if "layout" in classes:
            return self._moved(node, op, source)
        if op.name == "cat":
            along = self._dims(op.attributes.get("dim"), rank)
            self._kept(node, axes, along, "it puts further tokens behind them")
            return self._together(node, given, frozenset())
        raise self._refused(node, f"{op.name} is not known to treat all tokens alike")

    # --- operations -----------------------------------------------------------------------------------------------

    def _together(self, node: fx.Node, given: Sequence[fx.Node], without: Axes) -> Axes:
        """Elementwise: each operand has the tokens on the same axis, or one entry for all of them."""
        rank = tensor(node).rank
        found = frozenset(a + rank - tensor(n).rank for n in given for a in self.axes[n])
        for operand in node.all_input_nodes:
            value = value_of(operand)
            for axis in found if value is not None else ():
                own = axis - (rank - value.rank) if value is not None else -1
                if value is None or own < 0 or value.shape[own] == 1 or own in self.axes.get(operand, ()):
                    continue
                raise self._refused(node, f"it reads {operand.name} {value}, which has an entry for each token")
        return self._kept(node, found, without, "its parameters have an entry for each token")

    def _reduced(self, node: fx.Node, op: Operation, axes: Axes) -> Axes:
        rank = tensor(next(n for n in node.all_input_nodes if n in self.axes)).rank
        over = self._dims(op.attributes.get("dim"), rank)
        self._kept(node, axes, over, "it pools the tokens, and would read the learned ones as tokens of the input")
        if value_of(node) is None or tensor(node).rank == rank:
            return axes
        return frozenset(a - sum(o < a for o in over) for a in axes)

    def _attended(self, node: fx.Node, op: Operation) -> Axes:
        query, key, value = ((n, self.axes.get(n, frozenset())) for n in op.inputs[:3])
        if any(axes not in (frozenset(), frozenset([tensor(n).rank - 2])) for n, axes in (query, key, value)):
            raise self._refused(node, "tokens and channels are mixed in its operands")
        if bool(key[1]) != bool(value[1]):
            raise self._refused(node, "its keys and values have different tokens")
        if key[1] and not query[1]:
            raise self._refused(node, "it attends to the tokens for something that is no token")
        if op.attributes.get("attn_mask") is not None or op.attributes.get("is_causal"):
            raise self._refused(node, "its mask has an entry for each token")
        return query[1]

    def _multiplied(self, node: fx.Node, factors: tuple[fx.Node, ...]) -> Axes:
        if len(factors) != 2:
            raise self._refused(node, "one of its factors is a parameter")
        (a, b), rank = factors, tensor(node).rank
        ranks = tensor(a).rank, tensor(b).rank
        if min(ranks) < 2:
            raise self._refused(node, "one of its factors is a vector")
        left, right = self.axes.get(a, frozenset()), self.axes.get(b, frozenset())
        summed = ranks[0] - 1 in left, ranks[1] - 2 in right
        if summed[0] != summed[1] or (summed[0] and ranks[0] - 2 not in left):
            raise self._refused(node, "it sums over the tokens for something that is no token")
        rows = frozenset([rank - 2]) if ranks[0] - 2 in left else frozenset[int]()
        columns = frozenset([rank - 1]) if ranks[1] - 1 in right else frozenset[int]()
        outer = {x + rank - ranks[0] for x in left if x < ranks[0] - 2}
        if outer or any(x < ranks[1] - 2 for x in right):
            raise self._refused(node, "it multiplies one matrix for each token")
        return rows | columns

    def _indexed(self, node: fx.Node, op: Operation, source: fx.Node) -> Axes:
        axes = self.axes[source]
        if value_of(source) is None:  # a part of what was split
            whole = source.all_input_nodes[0]
            dim = self.view.operations[source].attributes.get("dim")
            gone = tensor(node).rank < tensor(whole).rank
            return frozenset(a - (gone and isinstance(dim, int) and dim % tensor(whole).rank < a) for a in axes)
        rank = tensor(source).rank
        index, dim = op.attributes.get("index"), op.attributes.get("dim")
        parts: list[object] = list(index) if isinstance(index, tuple) else [index]
        if op.name == "select":
            parts = [*[slice(None)] * (dim % rank if isinstance(dim, int) else 0), index]
        if Ellipsis in [p for p in parts if not isinstance(p, fx.Node)]:
            at = next(i for i, p in enumerate(parts) if p is Ellipsis)
            missing = rank - sum(p is not None for p in parts) + 1
            parts[at : at + 1] = [slice(None)] * missing
        if "index" not in op.attributes or any(not (p is None or type(p) in (int, slice)) for p in parts):
            raise self._refused(node, "it gathers tokens by a computed index")
        found, taken, made = set[int](), 0, 0
        for part in [*parts, *[slice(None)] * rank][: rank + sum(p is None for p in parts)]:
            if part is not None and taken in axes and not self._reads_in_front(node, part):
                found.add(made)
            made += type(part) is not int
            taken += part is not None
        return frozenset(found)

    def _reads_in_front(self, node: fx.Node, part: object) -> bool:
        """Whether an index of the tokens takes those in front of the learned ones alone; False where it takes all."""
        if part == slice(None) or part == slice(0, None) or part == slice(None, None, 1):
            return False
        last = part + 1 if isinstance(part, int) and part >= 0 else part.stop if isinstance(part, slice) else None
        start = part.start or 0 if isinstance(part, slice) else 0
        if type(last) is int and type(start) is int and start >= 0 and 0 <= last <= self.at:
            return True
        raise self._refused(node, f"it reads tokens by their place, {_written(part)}, and not those in front alone")

    def _moved(self, node: fx.Node, op: Operation, source: fx.Node) -> Axes:
        axes, value, made = self.axes[source], tensor(source), tensor(node)
        if op.name == "permute" and isinstance(dims := op.attributes.get("dims"), tuple):
            order = [d % value.rank for d in dims]
            return frozenset(order.index(a) for a in axes)
        if op.name == "transpose" and {"dim0", "dim1"} <= op.attributes.keys():
            first, second = (op.attributes[k] % value.rank for k in ("dim0", "dim1"))
            swap = {first: second, second: first}
            return frozenset(swap.get(a, a) for a in axes)
        if op.name == "expand":
            found = {a: a + made.rank - value.rank for a in axes}
        elif op.name == "reshape":
            found = {a: self._axis_after(node, value, a) for a in axes}
        elif op.name in _SAME:
            return axes
        else:
            raise self._refused(node, f"{op.name} is not known to treat all tokens alike")
        for before, after in found.items():
            self._resize(node, before, after)
        return frozenset(found.values())

    def _axis_after(self, node: fx.Node, value: Value, axis: int) -> int:
        """Where a reshape leaves the axis of tokens as one axis."""
        made = tensor(node)
        for after, size in enumerate(made.shape):
            alike = (
                prod(value.sizes(b)[:axis]) == prod(made.sizes(b)[:after])
                and value.sizes(b)[axis] == made.sizes(b)[after]
                for b in _BATCHES
            )
            if size == value.shape[axis] and all(alike):
                return after
        raise self._refused(node, f"it reshapes {value} to {made}, and the number of tokens is pinned")

    def _resize(self, node: fx.Node, before: int, axis: int) -> None:
        """Note the size that a reshape states of an axis; one that is read behind the tokens grows by itself."""
        sizes = sizes_of(node)
        if sizes is None:  # flatten, squeeze: they have none
            return
        size = sizes[axis] if axis < len(sizes) else None
        if size == -1 or size in self.counts:
            return
        if size == self.count or isinstance(size, fx.Node):
            self.resized.append(Resized(node, axis, before))
            return
        raise self._refused(node, f"its size {_written(size)} is not the number of tokens")

    # --- in general -----------------------------------------------------------------------------------------------

    def _dims(self, dims: object, rank: int) -> Axes:
        """Axes counted from the front; all where none is named."""
        if dims is None or dims == ():
            return frozenset(range(rank))
        if isinstance(dims, (tuple, list)):
            return frozenset(int(d) % rank for d in dims)
        return frozenset([int(dims) % rank]) if isinstance(dims, int) else frozenset(range(rank))

    def _kept(self, node: fx.Node, axes: Axes, forbidden: Axes, why: str) -> Axes:
        if axes & forbidden:
            raise self._refused(node, why)
        return axes

    def _refused(self, node: fx.Node, why: str) -> UtcError:
        return UtcError(
            f"learned tokens cannot live in this stream: they do not pass {describe(node)}", why=why, fix=_FIX
        )


def sizes_of(node: fx.Node) -> tuple[object, ...] | None:
    """The sizes that a reshape or an expansion states, one for each axis of its result; None where it states none."""
    given = node.args[1:] or tuple(node.kwargs.values())
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    stated = str(getattr(node.target, "__name__", node.target)) in ("view", "reshape", "expand", "broadcast_to")
    return tuple(given) if stated else None


def _written(part: object) -> str:
    if not isinstance(part, slice):
        return str(part)
    return ":".join("" if p is None else str(p) for p in (part.start, part.stop))

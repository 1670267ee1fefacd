"""Nodes that are computed from sizes alone: from no value of an input, of a parameter or of a buffer.

Attention masks are examples: `arange`, comparisons, `expand`. They can be computed at any sizes without the model. The
operations that count are listed here: each entry of a result is moved, compared, joined or added from entries of what
is read. So an entry depends on comparisons between sums of positions, sizes and constants of the graph, and nothing
new can happen at sizes far beyond these constants (`reach`). Two rules keep that true: products and cumulative sums
read tensors of at most two distinct values (masks, not positions), and positions have a dtype that counts exactly.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument

from utcompile.graph import BATCH, Size, Symbol, ancestors, info, operation, tensor, value_of
from utcompile.ops import Trait, having

T = torch.Tensor
A = TypeVar("A", bound=Argument)
_LIKE = having(Trait.MADE_LIKE)  # they read no numbers
_OF_MASKS = having(Trait.SUMS_OF_MASKS)
_OPERATIONS = having(Trait.MADE | Trait.MADE_LIKE | Trait.SUMS | Trait.SUMS_OF_MASKS)
_REPEATED = having(Trait.REPEATS)
_SUMS = (operator.add, operator.sub, operator.neg, min, max, torch.sym_min, torch.sym_max)
_EXACT = (torch.bool, torch.int64, torch.int32, torch.float32, torch.float64)
_SMALL = (1, 2, 3, 5, 7, 17, 31)
_LARGEST = 2**22  # elements of one tensor at sizes of our own making
_LONGEST = 512
_NUMBERS = (bool, int, float, str, torch.dtype, torch.device)
NEVER = -1e9  # added to a score, it is as good as minus infinity


def from_sizes(graph: fx.Graph, root: nn.Module) -> frozenset[fx.Node]:
    """The nodes that depend on sizes, dtypes and devices alone, and that nothing writes into."""
    written = written_storages(graph)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        value = value_of(node)
        if (value is None or value.storage not in written) and _is_from_sizes(node, found, root):
            found.add(node)
    return frozenset(found)


def written_storages(graph: fx.Graph) -> frozenset[int]:
    """The memory that the graph writes into."""
    writes = [n for n in graph.nodes if info(n).mutates]
    written = [value_of(n) for node in writes for n in (node, *info(node).mutates)]
    return frozenset(v.storage for v in written if v is not None)


def _is_from_sizes(node: fx.Node, found: set[fx.Node], root: nn.Module) -> bool:
    if node.op not in ("call_function", "call_method") or info(node).mutates or info(node).region:
        return False
    if is_reading(node):
        return True
    inputs, name = node.all_input_nodes, operation(node, root).name
    if name in _OPERATIONS:
        return set(inputs) - found <= ({node.args[0]} if name in _LIKE else set())
    # a function of numbers
    return value_of(node) is None and node.op == "call_function" and bool(inputs) and found.issuperset(inputs)


def is_reading(node: fx.Node) -> bool:
    """Whether a node reads the size, the dtype or the device of a tensor of the graph."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 2 and value_of(_first(node)) is not None
    return node.target is getattr and node.args[1] in ("dtype", "device") and value_of(_first(node)) is not None


def is_number(node: fx.Node) -> bool:
    """Whether a node is a number computed from sizes."""
    if is_reading(node):
        return True
    plain = node.op == "call_function" and value_of(node) is None and bool(node.all_input_nodes)
    return plain and all(is_number(n) for n in node.all_input_nodes)


def _first(node: fx.Node) -> fx.Node:
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


# --- at given sizes ---------------------------------------------------------------------------------------------------


class AtSizes:
    """Computes nodes at given sizes.

    Args:
        root: the modules of the graph.
        alone: the nodes that depend on sizes alone.
        sizes: of the symbols; none where all sizes are fixed, and as large as the model has them.
        floating: the dtype of every floating-point tensor of the model.
    """

    def __init__(
        self,
        root: nn.Module,
        alone: frozenset[fx.Node],
        sizes: Mapping[Symbol, int],
        floating: torch.dtype = torch.float32,
    ) -> None:
        self.root, self.alone, self.sizes, self.floating = root, alone, sizes, floating
        self._known: dict[fx.Node, object] = {}

    def give(self, node: fx.Node, value: T) -> None:
        """Use a tensor as the value of a node."""
        self._known[node] = value

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a tensor of the graph."""
        return tuple(d.of(self.sizes) if isinstance(d, Size) else d for d in tensor(node).shape)

    def __call__(self, node: fx.Node) -> Any:
        """The value of a node.

        Raises:
            ValueError: it is too large, or not exact.
            Exception: whatever torch raises at these sizes.
        """
        if node not in self._known:
            if self.sizes and value_of(node) is not None and math.prod(self.shape(node)) > _LARGEST:
                raise ValueError(f"{node} is too large")
            self._known[node] = self._read(node) if is_reading(node) else self._run(node)
        return self._known[node]

    def _read(self, node: fx.Node) -> object:
        source, what = _first(node), node.args[1]
        if node.target == "size":
            return self.shape(source)[what]  # type: ignore[index]
        return self._dtype(source) if what == "dtype" else torch.device("cpu")

    def _dtype(self, node: fx.Node) -> torch.dtype:
        dtype = tensor(node).dtype
        return self.floating if dtype.is_floating_point else dtype

    def _run(self, node: fx.Node) -> object:
        name = operation(node, self.root).name
        if name in _LIKE and _first(node) not in self.alone:
            blank = torch.zeros((), dtype=self._dtype(_first(node)))
            self._known.setdefault(_first(node), blank.expand(self.shape(_first(node))))
        given, named = _on_cpu(fx.node.map_arg((node.args, node.kwargs), self))
        if node.op == "call_method":
            result = getattr(given[0], str(node.target))(*given[1:], **named)
        else:
            result = node.target(*given, **named)  # type: ignore[operator]
        _check_exact(node, result, given if name in _OF_MASKS else ())
        return result


def _on_cpu(arguments: A) -> A:
    return fx.node.map_aggregate(arguments, lambda a: torch.device("cpu") if isinstance(a, torch.device) else a)


def _check_exact(node: fx.Node, result: object, factors: Iterable[object]) -> None:
    """Positions count exactly, and no product is of positions."""
    if isinstance(result, T):
        doubtful = [*([] if result.dtype in _EXACT else [result]), *(t for t in factors if isinstance(t, T))]
        if any(t.unique().numel() > 2 for t in doubtful):
            raise ValueError(f"{node} is not exact")
    elif value_of(node) is None and node.op == "call_function" and not isinstance(result, (*_NUMBERS, tuple, list)):
        raise ValueError(f"{node} is no number")


# --- the sizes that tell ----------------------------------------------------------------------------------------------


def cone(node: fx.Node, alone: frozenset[fx.Node]) -> list[fx.Node]:
    """A node and the nodes that it is computed from, as far as they depend on sizes alone, in graph order."""
    above = ancestors([node], until=lambda n: n not in alone or is_reading(n))
    return sorted(n for n in above if n in alone)


def symbols_of(nodes: Iterable[fx.Node]) -> dict[Symbol, int]:
    """The symbols in the sizes of tensors that nodes yield or read, the batch first, each with the step between sizes
    that are whole."""
    read = {n for node in nodes for n in (node, *node.all_input_nodes)}
    sizes = [d for n in read if (v := value_of(n)) is not None for d in v.shape if isinstance(d, Size)]
    found = {s for d in sizes for symbols, _ in d.terms for s in symbols}
    whole = all(d.is_whole for d in sizes)
    return {s: 1 if whole else s.step for s in sorted(found, key=lambda s: (s != BATCH, s.name))}


def reach(nodes: Iterable[fx.Node], root: nn.Module) -> int:
    """The size beyond which the constants of a computation from sizes decide nothing new.

    The truth of a comparison between sums turns where a position or a size passes a sum of constants. A division, also
    by repeating positions, multiplies that place, and so does the sum of a position with itself.
    """
    total, factor = 0.0, 1.0
    for node in nodes:
        constants = [max(c, 1 / c) for c in _constants(node) if c]
        total += sum(constants)
        name = operation(node, root).name
        if value_of(node) is None and not is_reading(node):
            multiplies = node.target not in _SUMS
        else:
            # of repeated or reshaped positions, position i becomes i // c
            multiplies = name in _REPEATED or name == "reshape" or any(c != int(c) for c in constants)
        factor *= math.prod(constants) if multiplies else 1
        factor *= 2 if name in ("add", "sub") and len(node.all_input_nodes) > 1 else 1
    return math.ceil(min(2 * total * factor, _LARGEST)) + _SMALL[-1] + 2


def _constants(node: fx.Node) -> Iterator[float]:
    """The numbers in a call, except for those that mean minus infinity; and those in the sizes that it reads."""
    found: list[object] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    yield from (abs(n) for n in found if isinstance(n, (int, float)) and n == n and abs(n) < -NEVER)
    if is_reading(node):
        for size in tensor(_first(node)).shape:
            yield from (abs(float(f)) for _, f in (size.terms if isinstance(size, Size) else ()))


def telling_sizes(symbols: Mapping[Symbol, int], beyond: int) -> Iterator[dict[Symbol, int]]:
    """The example's sizes; small ones, co-prime, in both orders; and each beyond all constants next to small ones.

    Args:
        symbols: the sizes that vary, with their steps.
        beyond: a size in steps at which no constant decides anything any more.
    """
    if all(s.example <= _LONGEST * step for s, step in symbols.items()):
        yield {s: s.example for s in symbols}
    if not symbols:
        return
    yield dict(symbols)
    for i in range(len(_SMALL)):
        yield {s: step * _SMALL[(i + 3 * k) % len(_SMALL)] for k, (s, step) in enumerate(symbols.items())}
    for far in symbols:
        yield {s: step * (beyond if s == far else _SMALL[1 + k % 3]) for k, (s, step) in enumerate(symbols.items())}
    lengths = [s for s in symbols if s != BATCH]
    for order in (lengths, lengths[::-1]) if len(lengths) > 1 else ():
        yield {BATCH: 2} | {s: symbols[s] * (beyond + k) for k, s in enumerate(order)}

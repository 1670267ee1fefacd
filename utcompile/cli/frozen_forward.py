"""One frozen forward for many methods: side networks and heads read values of the backbone that no method changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import utcompile as utc
from utcompile.errors import UtcError
from utcompile.graph import GraphView, Size, UtcGraphModule, flops, info, tensor, value_of
from utcompile.memory.segments import out_of_place
from utcompile.modes import evaluating
from utcompile.rewrite import TunedModule
from utcompile.train import Data
from utcompile.train.metrics import called

_MOST = 0.25  # of the model's FLOPs in what trains: of more, the frozen forward is not most of the work


@dataclass(frozen=True)
class Shareable:
    """A method whose backbone computes what it would compute without the method.

    Attributes:
        names: of the values of the backbone that it reads.
        rest: from these values to the model's output; it shares its parameters with the tuned module.
    """

    names: tuple[str, ...]
    rest: nn.Module


def shareable(tuned: TunedModule, captured: UtcGraphModule) -> Shareable | None:
    """What of a tuned module trains, where that is a small part and reads tensors of the backbone alone."""
    try:
        prefix, rest = utc.split_prefix(tuned)
    except UtcError:
        return None
    nodes = {node.name: node for node in captured.graph.nodes}
    (returned,) = (node for node in prefix.graph.nodes if node.op == "output")
    border = [node.name for node in returned.args[0]]
    if any(name not in nodes or value_of(nodes[name]) is None for name in border):
        return None
    if any(tensor(nodes[name]).sizes(n)[:1] != (n,) for name in border for n in (2, 3)):
        return None
    every, frozen = _flops(captured), _flops(prefix)
    # no operation is counted in a layer whose weight is tuned; what of the backbone is not in the prefix is in the rest
    own = max(_flops(rest), every - frozen)
    return Shareable(tuple(border), rest) if own <= _MOST * every else None


def _flops(module: fx.GraphModule) -> int:
    return sum(flops(node, op) for node, op in GraphView(module.graph, module).operations.items())


@dataclass
class FrozenForward:
    """The values of the backbone that several methods read, of every sample, computed once.

    Attributes:
        captured: the model without tuners.
        data: the data; and more datasets of the same kind.
        budget: bytes that the values may take.
        seconds: how long computing them took.
    """

    captured: UtcGraphModule
    data: Data
    more: Sequence[Dataset[object]] = ()
    budget: float = 4e9
    seconds: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)
    targets: list[Tensor] = field(default_factory=list)

    @property
    def parts(self) -> list[Dataset[object]]:
        """All datasets, in the order of the rows."""
        return [self.data.train, self.data.validation, *self.more]

    @property
    def samples(self) -> int:
        """Of all datasets."""
        return sum(map(_length, self.parts))

    @cached_property
    def tokens(self) -> int:
        """The length that all texts are padded to: that of the longest; 0 where samples are no texts."""
        if self.data.task != "text":
            return 0
        return max(len(next(iter(inputs.values()))) for part in self.parts for inputs, _ in _samples(part))

    def has_room(self, names: Sequence[str]) -> bool:
        """Whether the values of these names fit."""
        nodes = {node.name: node for node in self.captured.graph.nodes}
        each = sum(self._bytes(nodes[name]) for name in set(names))
        return each * self.samples <= self.budget

    def _bytes(self, node: fx.Node) -> int:
        """Of one sample's value, where each size that is not the batch's is at most that of the longest text."""
        value = tensor(node)
        each = zip(value.shape[1:], value.sizes(1)[1:], strict=True)
        return prod(max(self.tokens, n) if isinstance(d, Size) else n for d, n in each) * value.dtype.itemsize

    def fill(self, names: Sequence[str], channels_last: bool = False) -> None:
        """Compute the values that are missing, in one pass."""
        missing = [name for name in dict.fromkeys(names) if name not in self.values]
        if not missing:
            return
        started, at = time.perf_counter(), 0
        model, targets, kept = _up_to(self.captured, missing), list[Tensor](), dict[str, Tensor]()
        loader: DataLoader[object] = DataLoader(ConcatDataset(self.parts), 64, collate_fn=self._collate())
        with evaluating(model):
            for inputs, wanted in cast(Iterable[tuple[Any, Tensor]], loader):
                found = cast(tuple[Tensor, ...], called(model, _placed(inputs, channels_last)))
                targets.append(wanted)
                for name, value in zip(missing, found, strict=True):
                    if name not in kept:
                        kept[name] = value.new_empty((self.samples, *value.shape[1:]))
                    kept[name][at : at + len(value)] = value
                at += len(wanted)
        self.values |= kept
        self.targets = [torch.cat(targets)]
        self.seconds += time.perf_counter() - started

    def _collate(self) -> Callable[[list[Any]], object] | None:
        """Makes batches; of texts, all of one length."""
        if not self.tokens:
            return self.data.collate
        tokens: Any = self.data.train.tokens  # type: ignore[attr-defined]
        return partial(tokens.batch, length=self.tokens)

    def model(self, method: Shareable) -> nn.Module:
        """A module from rows of the data to the model's output."""
        return _OnRows(method.rest, [self.values[name] for name in method.names])

    def rows(self) -> tuple[Data, list[Dataset[object]]]:
        """The data as rows, for `model`; after `fill`."""
        starts, at = [], 0
        for part in self.parts:
            starts.append(_Rows(self.targets[0][at : at + _length(part)], at))
            at += _length(part)
        train, validation, *more = starts
        return replace(self.data, train=train, validation=validation, collate=None), list(more)


class _OnRows(nn.Module):
    def __init__(self, rest: nn.Module, values: list[Tensor]) -> None:
        super().__init__()
        self.rest, self.values = rest, values

    def forward(self, rows: Tensor) -> Any:
        return self.rest(*(value[rows] for value in self.values))


class _Rows(Dataset[object]):
    """The targets of a dataset, with its rows among all."""

    def __init__(self, targets: Tensor, start: int) -> None:
        self.targets, self.start = targets, start

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return self.start + index, self.targets[index]


def _length(dataset: Dataset[object]) -> int:
    return len(cast(Sized, dataset))


def _samples(dataset: Dataset[object]) -> Iterator[tuple[Mapping[str, Any], object]]:
    return (cast(tuple[Mapping[str, Any], object], dataset[i]) for i in range(_length(dataset)))


def _placed(inputs: Any, channels_last: bool) -> Any:
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and channels_last:
        return inputs.contiguous(memory_format=torch.channels_last)
    return tuple(inputs) if isinstance(inputs, list) else inputs


def _up_to(captured: UtcGraphModule, names: Sequence[str]) -> UtcGraphModule:
    """The captured module up to some of its values."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in captured.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if info(node).inplace is not None:  # else a later layer may write over what is kept
                out_of_place(copies[node], captured)
    named = {node.name: copy for node, copy in copies.items()}
    graph.output(tuple(named[name] for name in names))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not info(node).check:
            graph.erase_node(node)
    graph.lint()
    return UtcGraphModule(captured, graph, "FrozenForward").eval()

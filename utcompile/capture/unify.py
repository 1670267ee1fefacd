"""Several recordings at different batch sizes become one graph with a dynamic batch.

The recordings must be isomorphic. An integer that differs is the one `a·B + c` through all of them and becomes an
expression of the input's size; any other difference is an error that names it. Two sizes would be too few: `B**2` is
affine at 2 and 3.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from utcompile.capture.recorder import Seen
from utcompile.errors import UtcError
from utcompile.graph import Affine, Value, describe, fit_affine


def unify(graphs: list[fx.Graph], batches: tuple[int, ...], batch_node: Callable[[], fx.Node]) -> fx.Graph:
    """Make the first graph the one graph.

    Args:
        graphs: one recording a batch size.
        batches: the batch sizes.
        batch_node: makes the node that reads the batch from the inputs, in the first graph.
    """
    first = graphs[0]
    rows = list(zip(*(list(g.nodes) for g in graphs), strict=False))
    lengths = {len(g.nodes) for g in graphs}
    _check_isomorphic(rows, batches, lengths)
    sizes = _Expressions(first, batch_node)
    storages: dict[int, int] = {}
    for row in rows:
        node = row[0]
        for field in ("args", "kwargs"):
            merged = _merge([getattr(n, field) for n in row], node, batches, sizes)
            setattr(node, field, merged)
        seen = [n.meta.pop("seen", None) for n in row]
        if isinstance(seen[0], Seen):
            dims = [fit_affine(batches, s) for s in zip(*(s.shape for s in seen), strict=True)]
            if None in dims:
                raise UtcError(
                    "a size is not affine in the batch",
                    where=describe(node),
                    why=f"its shapes at batch {batches} are {[list(s.shape) for s in seen]}",
                    fix="pass dynamic={} to capture at the example's batch only",
                )
            number = storages.setdefault(seen[0].storage, len(storages))
            node.meta["value"] = Value(tuple(d for d in dims if d is not None), seen[0].dtype, seen[0].device, number)
    return first


def _check_isomorphic(rows: list[tuple[fx.Node, ...]], batches: tuple[int, ...], lengths: set[int]) -> None:
    for row in rows:
        if len({(n.op, n.target if n.op != "placeholder" else n.name) for n in row}) > 1:
            raise UtcError(
                "the model runs different operations at different batch sizes",
                where=describe(row[0]),
                why="; ".join(f"batch {b}: {n.op} {n.target}" for b, n in zip(batches, row, strict=True)),
                fix="pass dynamic={} to capture at the example's batch only",
            )
    if len(lengths) > 1:
        raise UtcError(
            "the model runs more operations at some batch sizes than at others",
            where=describe(rows[-1][0]),
            fix="pass dynamic={} to capture at the example's batch only",
        )


class _Expressions:
    """Nodes for `a·B + c`, each made once, right after the inputs."""

    def __init__(self, graph: fx.Graph, batch_node: Callable[[], fx.Node]) -> None:
        self.graph, self._batch_node = graph, batch_node
        self.known: dict[tuple[int, int], fx.Node] = {}
        self.last: fx.Node | None = None

    def __call__(self, line: Affine) -> fx.Node:
        if self.last is None:
            self.known[1, 0] = self.last = self._batch_node()
            self.last.meta["size"] = Affine(1, 0)
        scaled = self._make(
            (line.scale, 0), lambda: self.graph.call_function(operator.mul, (self.known[1, 0], line.scale))
        )
        if not line.offset:
            return scaled
        return self._make(
            (line.scale, line.offset), lambda: self.graph.call_function(operator.add, (scaled, line.offset))
        )

    def _make(self, key: tuple[int, int], build: Callable[[], fx.Node]) -> fx.Node:
        if key not in self.known:
            assert self.last is not None
            with self.graph.inserting_after(self.last):
                self.known[key] = self.last = build()
            self.last.meta["size"] = Affine(*key)
        return self.known[key]


def _merge(values: list[Any], node: fx.Node, batches: tuple[int, ...], sizes: _Expressions) -> Any:
    first = values[0]
    if isinstance(first, fx.Node):
        return first
    if isinstance(first, (tuple, list)):
        if len({len(v) for v in values}) > 1:
            raise _difference(values, node, batches)
        parts = [_merge(list(v), node, batches, sizes) for v in zip(*values, strict=True)]
        return parts if isinstance(first, list) else tuple(parts)
    if isinstance(first, dict):
        return {k: _merge([v[k] for v in values], node, batches, sizes) for k in first}
    if isinstance(first, slice):
        return slice(
            *(_merge([getattr(v, f) for v in values], node, batches, sizes) for f in ("start", "stop", "step"))
        )
    if all(type(v) is type(first) and (v is first or v == first) for v in values[1:]):
        return first
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        line = fit_affine(batches, tuple(values))
        if isinstance(line, Affine):
            return sizes(line)
    raise _difference(values, node, batches)


def _difference(values: list[Any], node: fx.Node, batches: tuple[int, ...]) -> UtcError:
    shown = "; ".join(f"batch {b}: {v!r}"[:80] for b, v in zip(batches, values, strict=True))
    return UtcError(
        "an argument differs between batch sizes and is no a·B + c",
        where=describe(node),
        why=shown,
        fix="pass dynamic={} to capture at the example's batch only",
    )

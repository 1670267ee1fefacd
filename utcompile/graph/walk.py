"""Walks over a graph: every node above or below some, each node once, with the given ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import fx

Test = Callable[[fx.Node], bool]


def ancestors(nodes: Iterable[fx.Node], until: Test | None = None) -> Iterator[fx.Node]:
    """The nodes and all nodes that they are computed from.

    Args:
        nodes: where the walk begins; they are yielded too.
        until: a node for which it is true is yielded, but the walk does not go on above it.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x"); y = graph.call_method("neg", (x,)); z = graph.call_method("abs", (y,))
    >>> [n.name for n in ancestors([z], until=lambda n: n is y)]
    ['abs_1', 'neg']
    """
    return _walk(nodes, lambda n: n.all_input_nodes, until)


def descendants(nodes: Iterable[fx.Node], until: Test | None = None) -> Iterator[fx.Node]:
    """The nodes and all nodes that are computed from them.

    Args:
        nodes: where the walk begins; they are yielded too.
        until: a node for which it is true is yielded, but the walk does not go on below it.
    """
    return _walk(nodes, lambda n: n.users, until)


def between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on a way from one node to another, without the two.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x"); y = graph.call_method("neg", (x,)); z = graph.call_method("add", (y, x))
    >>> between(x, z)
    {neg}
    """
    above = set(ancestors([end], until=lambda n: n is start))
    return above.intersection(descendants([start], until=lambda n: n is end)) - {start, end}


def _walk(
    nodes: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]], until: Test | None
) -> Iterator[fx.Node]:
    stack = [*dict.fromkeys(nodes)][::-1]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        if until is None or not until(node):
            new = [n for n in step(node) if n not in seen]
            seen.update(new)
            stack += new

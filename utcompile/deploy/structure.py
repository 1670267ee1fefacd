"""Nested arguments and results as flat lists of named tensors, and back.

ONNX knows named tensors only. A tuple, list, mapping or named tuple becomes one name a tensor: `pair_0`, `pair_1_mask`.
Everything that is no tensor (`None`, numbers, flags) is a constant of the call and is baked into the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from utcompile.graph.nested import map_tensors

V = TypeVar("V")


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tuples, lists and mappings with their names, in order.

    >>> list(leaves({"a": 1, "b": (2, [3])}))
    [('a', 1), ('b_0', 2), ('b_1_0', 3)]
    """
    children = _children(tree)
    if children is None:
        yield name, tree
        return
    for key, value in children:
        yield from leaves(value, f"{name}_{key}" if name else str(key))


def substitute(tree: V, tensors: Iterator[Tensor]) -> V:
    """`tree` with its tensors replaced, in order, by `tensors`."""
    return map_tensors(lambda _: next(tensors), tree)


def unique(names: list[str], taken: tuple[str, ...] = ()) -> list[str]:
    """The names with `_` appended where one is already taken: ONNX allows a value name only once.

    >>> unique(["x", "x", "y"], taken=("y",))
    ['x', 'x_', 'y_']
    """
    seen, result = set(taken), []
    for name in names:
        while name in seen:
            name += "_"
        seen.add(name)
        result.append(name)
    return result


def _children(tree: object) -> list[tuple[object, object]] | None:
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    return list(enumerate(tree)) if isinstance(tree, (tuple, list)) else None

"""Walks over nested values: their tensors, their structure, and the same values with other tensors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch

from utcompile.graph.nested import alike, map_tensors, tensors, tuple_like

Pair = namedtuple("Pair", "first second")


@dataclass
class Held:
    kept: torch.Tensor
    name: str = "held"


def test_each_kind_of_container_stays_what_it_is() -> None:
    one = torch.ones(1)
    values = [
        (one, 2), [one], {"a": one, "b": "text"}, Pair(one, None), torch.max(torch.ones(2, 2), 0),
        OrderedDict(b=one, a=2), Held(one), {"deep": [Pair((one,), {"x": one})]},
    ]  # fmt: skip
    for value in values:
        mapped = map_tensors(lambda t: t + 1, value)
        assert type(mapped) is type(value)
        assert [t.tolist() for t in tensors(mapped)] == [(t + 1).tolist() for t in tensors(value)]
    assert torch.equal(one, torch.ones(1))  # nothing was written into


def test_what_has_no_tensor_is_the_same_object() -> None:
    plain = {"sizes": torch.Size([2, 3]), "names": ["a"]}
    assert map_tensors(lambda t: t + 1, plain) is plain


def test_a_tuple_keeps_its_names() -> None:
    assert tuple_like(Pair(1, 2), [3, 4]) == Pair(3, 4)
    assert type(tuple_like(torch.Size([1]), [3])) is tuple
    assert type(tuple_like(torch.max(torch.ones(2, 2), 0), [1, 2])).__name__ == "max"


def test_values_are_alike_where_structure_and_leaves_are() -> None:
    def equal(a: object, b: object) -> bool:
        return a == b

    assert alike(([1, {"a": slice(0, 2)}], ()), ((1, {"a": slice(0, 2)}), []), equal)
    for other in ([1, {"a": slice(0, 3)}], [1, {"b": slice(0, 2)}], [1], [1, 2], 1):
        assert not alike([1, {"a": slice(0, 2)}], other, equal)

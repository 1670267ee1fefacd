"""What the rows of the table say of operations, tried on numbers."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utcompile import ops
from utcompile.graph import function_of, module_of
from utcompile.ops import GROUPS, ROWS, Axes, Trait, callables, callables_with, having, made, moves, words
from utcompile.rules.names import OPERATIONS

X = torch.tensor([[0.3, -1.4, 2.0, -0.5], [1.1, -0.1, -2.2, 0.7]], dtype=torch.float64)
IMAGE = torch.arange(1.0, 33.0, dtype=torch.float64).reshape(1, 8, 2, 2)
# the arguments of operations that move numbers, without the numbers
GIVEN: dict[str, tuple[Any, ...]] = {
    "reshape": ((-1,),), "permute": ((0, 2, 3, 1),), "transpose": (1, 2), "roll": (1, 1), "flip": ((1,),),
    "expand": ((3, 8, 2, 2),), "repeat": ((2, 1, 1, 1),), "repeat_interleave": (2, 1), "select": (1, 0),
    "narrow": (1, 0, 2), "getitem": (0,), "pixel_shuffle": (2,), "pixel_unshuffle": (2,), "channel_shuffle": (2,),
    "sliding_window": (1, 2, 1), "pad": ((1, 1),), "unfold": (2,), "split": (2, 1), "to": (torch.float64,),
}  # fmt: skip
METHODS = {"repeat": "repeat", "expand": "expand", "sliding_window": "unfold", "to": "to"}


def call(name: str, *args: Any) -> Any:
    if name in METHODS:
        return getattr(args[0], METHODS[name])(*args[1:])
    if name == "identity":
        return nn.Identity()(*args)
    return function_of(name)(*args)


def of(trait: Trait) -> list[str]:
    return sorted(having(trait))


@pytest.mark.parametrize("name", of(Trait.SAME | Trait.AXES | Trait.MOVES | Trait.PADS | Trait.CUTS))
def test_numbers_are_moved_and_not_computed(name: str) -> None:
    result = call(name, IMAGE, *GIVEN.get(name, ()))
    found = torch.cat([part.flatten() for part in (result if isinstance(result, (tuple, list)) else [result])])
    numbers = set(found.tolist())
    assert numbers - {0.0} <= set(IMAGE.flatten().tolist())
    if name in having(Trait.SAME):
        assert torch.equal(result, IMAGE)
    if name in having(Trait.AXES):
        assert sorted(found.tolist()) == IMAGE.flatten().tolist()
    if name not in having(Trait.PADS):
        assert 0.0 not in numbers
    if name in having(Trait.REPEATS):
        assert len(found) > IMAGE.numel() and numbers == set(IMAGE.flatten().tolist())


def test_what_moves_numbers_is_one_of_the_kinds_that_say_how() -> None:
    moved = having(Trait.MOVES | Trait.SAME | Trait.PADS | Trait.CUTS)
    assert having(Trait.LAYOUT) <= moved
    assert having(Trait.VIEW) <= having(Trait.MOVES | Trait.CUTS)
    assert having(Trait.REPEATS) | having(Trait.AXES) <= having(Trait.MOVES)
    assert "dropout" not in having(Trait.SAME) and {"flip", "roll"} <= having(Trait.LAYOUT)


@pytest.mark.parametrize("name", of(Trait.COMMUTATIVE))
def test_operands_may_change_places(name: str) -> None:
    a, b = ((X > 0, X > 1) if name.startswith(("bitwise", "logical")) else (X, X.flip(1)))  # fmt: skip
    assert torch.equal(call(name, a, b), call(name, b, a))


def elementwise(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if name == "clamp":
        return lambda x: x.clamp(-1, 1)
    cls = module_of(name)
    return cls() if cls is not None else function_of(name)


@pytest.mark.parametrize("name", of(Trait.POSITIVE))
def test_never_below_zero(name: str) -> None:
    assert elementwise(name)(8 * X).min() >= 0


@pytest.mark.parametrize("name", of(Trait.SATURATES))
def test_between_two_bounds(name: str) -> None:
    far = torch.tensor([-1e3, 1e3, -1e6, 1e6], dtype=torch.float64)
    low, high, *farther = elementwise(name)(far).tolist()
    assert [low, high] == farther


@pytest.mark.parametrize("name", of(Trait.HOMOGENEOUS))
def test_a_positive_factor_passes(name: str) -> None:
    g = elementwise(name)
    assert torch.allclose(g(3 * X), 3 * g(X)) and not torch.allclose(g(-3 * X), -3 * g(X))


@pytest.mark.parametrize("name", of(Trait.IDENTITY_ABOVE_ZERO))
def test_the_identity_above_zero(name: str) -> None:
    assert torch.equal(elementwise(name)(X.abs()), X.abs())


@pytest.mark.parametrize("name", of(Trait.ODD_PART))
def test_the_difference_of_both_signs_is_the_value(name: str) -> None:
    g = elementwise(name)
    assert torch.allclose(g(X) - g(-X), X)


@pytest.mark.parametrize("name", of(Trait.OUTPUTS_FIRST | Trait.CONV_TRANSPOSE))
def test_where_a_weight_has_its_outputs(name: str) -> None:
    cls: Any = module_of(name)
    layer = cls(4, 6) if name == "linear" else cls(4, 6, 1)
    assert layer.weight.shape[0 if name in having(Trait.OUTPUTS_FIRST) else 1] == 6


@pytest.mark.parametrize("name", of(Trait.LAYER))
def test_a_layer_has_a_module_with_a_weight(name: str) -> None:
    signatures = [signature for signature, _ in ROWS[name].spellings]
    assert module_of(name) is not None and all("weight" in signature for signature in signatures)


def test_a_set_is_one_for_all_who_ask_and_words_are_the_patterns() -> None:
    assert having(Trait.MOVES) is having(Trait.MOVES) and having(Axes.KEEP) is having(Axes.KEEP)
    assert words(["skip"]) == OPERATIONS.keys() | {"skip"}
    assert callables(["max"]) == {"amax", "max"} and "new_zeros" in callables_with("size")
    assert "new_zeros" not in callables_with("size", without="input")


def test_the_table_needs_no_torch() -> None:
    for path in Path(ops.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torch" for n in names), path


def test_every_operation_is_one_row() -> None:
    rows = [row.name for group in (*GROUPS.values(), moves.DROPOUT, made.MADE) for row in group]
    assert [name for name, count in Counter(rows).items() if count > 1] == []
    assert {*rows} <= ROWS.keys() and len(rows) > 200

"""Every error of the package has a code, every code is used, and a code survives copies and context."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest
import torch

import utcompile as utc
from utcompile.error_codes import AREAS, CODES, UNKNOWN
from utcompile.errors import GuardError, UtcError

PACKAGE = Path(utc.__file__).parent
CLASSES = ("UtcError", "GuardError")


def raised() -> list[tuple[str, str | None]]:
    """For each place of the package that makes an error: the place, and its code."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
                code = next((k.value for k in node.keywords if k.arg == "code"), None)
                text = code.value if isinstance(code, ast.Constant) and isinstance(code.value, str) else None
                found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", text))
    return found


def test_every_error_has_a_code_and_every_code_is_used() -> None:
    found = raised()
    assert len(found) > 300
    assert [where for where, code in found if code not in CODES] == []
    assert CODES.keys() - {code for _, code in found} == set()


def test_codes_are_an_area_and_words() -> None:
    assert {code.partition("/")[0] for code in CODES} == AREAS.keys()
    for code, meaning in CODES.items():
        assert code == code.lower() and " " not in code
        assert meaning.what.endswith(".") and meaning.fix


@pytest.mark.parametrize("cls", [UtcError, GuardError])
def test_code_and_context_survive(cls: type[UtcError]) -> None:
    error = cls("what", why="why", fix="fix", code="match/count")
    inside = error.within("rule 'a'", where="r.yaml:3:9")
    assert type(inside) is cls and inside.within(where="elsewhere").where == "r.yaml:3:9"
    for one in (inside, copy.copy(inside), pickle.loads(pickle.dumps(inside))):
        assert (str(one), one.code) == ("r.yaml:3:9: rule 'a': what\n  why: why\n  fix: fix", "match/count")
    assert str(error) == "what\n  why: why\n  fix: fix"
    assert cls("x").code == UNKNOWN


def test_a_program_tells_errors_apart() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(2, 4)
    codes = {}
    for name, call in {
        "a rule set that is not there": lambda: utc.compile(model, "lora/al_linear", (x,)),
        "a rule that finds nothing": lambda: utc.compile(model, "lora/all_conv", (x,)),
        "an argument that is not there": lambda: utc.compile(model, "lora/all_linear", (x,), wars={}),
        "a rank that is too large for every layer": lambda: utc.compile(model, "lora/all_linear", (x,), vars={"r": 99}),
        "a call that does not fit": lambda: utc.capture(model, (x,))(),
    }.items():
        with pytest.raises(UtcError) as caught:
            call()
        codes[name] = caught.value.code
    assert list(codes.values()) == [
        "rule/not-found",
        "match/count",
        "arguments/unknown",
        "match/nothing",
        "call/inputs",
    ]

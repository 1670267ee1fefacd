"""Wrong types in any argument of a public function are one `UtcError`, and no traceback from within."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import utcompile as utc

X = (torch.ones(2, 4),)
WRONG: list[Any] = [
    None, 3, -1, 2.5, float("nan"), 10**30, True, "nonsense", "a\0b", "x" * 5000, b"x", [], {}, (), [None], [1, "b"], {3: 4},
    {"a": object()}, object(), torch.ones(1), lambda: 1, nn.Linear,
]  # fmt: skip


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function with arguments that fit."""
    folder = tmp_path_factory.mktemp("types")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    captured = utc.capture(model, X)
    plan = utc.match(captured, "lora/all_linear", vars={"r": 2})
    tuned = plan.apply()
    run, peft = utc.save_tuners(tuned, folder / "run"), utc.save_peft(tuned, folder / "peft")
    captures = {"model": model, "example_inputs": X, "dynamic": None, "base": "frozen", "verify": "shapes"}
    export = {"model": model, "path": folder / "m.onnx", "example_inputs": X, "batch_sizes": (1,), "tolerance": None}
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "capture": (utc.capture, captures),
        "match": (utc.match, {"captured": captured, "rules": "lora/all_linear", "vars": {"r": 2}}),
        "compile": (utc.compile, {**captures, "rules": "lora/all_linear", "vars": {"r": 2}}),
        "explain": (plan.explain, {"path": "0"}),
        "tuner": (tuned.tuner, {"site_id": "linear/0/0"}),
        "fold": (utc.fold, {"tuned": tuned}),
        "disable_tuners": (lambda tuned: utc.disable_tuners(tuned).__enter__(), {"tuned": 0}),
        "save_tuners": (utc.save_tuners, {"tuned": tuned, "folder": folder / "run", "extra": None}),
        "load_tuners": (utc.load_tuners, {"tuned": tuned, "folder": run}),
        "add_task": (tuned.add_task, {"name": "a", "folder": run}),
        "set_task": (tuned.set_task, {"name": "default"}),
        "save_peft": (utc.save_peft, {"tuned": tuned, "folder": folder / "peft"}),
        "load_peft": (utc.load_peft, {"tuned": tuned, "folder": peft}),
        "peft_rules": (utc.peft_rules, {"folder": peft}),
        "RuleSet.load": (utc.RuleSet.load, {"source": "lora/all_linear", "vars": None, "included": None}),
        "register_tuner": (utc.register_tuner, {"name": "some_name"}),
        "export_onnx": (utc.export_onnx, {**export, "opset": None, "batch_inputs": None, "metadata": None}),
    }
    return found


FAST = """capture match compile explain tuner fold disable_tuners save_tuners load_tuners add_task set_task save_peft load_peft
    peft_rules RuleSet.load register_tuner""".split()


@pytest.mark.parametrize("name", FAST)
def test_wrong_types_are_one_error(name: str, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(name, calls, WRONG)


@pytest.mark.full
def test_wrong_types_in_an_export_are_one_error(calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check("export_onnx", calls, WRONG)


def test_wrong_types_in_an_export_that_is_not_begun_are_one_error(calls: Any, tmp_path: Path) -> None:
    function, arguments = calls["export_onnx"]
    for name, wrong in [("model", 3), ("path", 3), ("path", "x" * 300), ("batch_sizes", 3), ("tolerance", "x"), ("opset", "x"),
                        ("metadata", 3), ("batch_inputs", 3), ("example_inputs", 3)]:  # fmt: skip
        with pytest.raises(utc.UtcError):
            function(**{**arguments, name: wrong})


def check(function_name: str, calls: Any, values: list[Any]) -> None:
    function, arguments = calls[function_name]
    for name in arguments:
        for wrong in values:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    function(**{**arguments, name: copy.copy(wrong)})
                except utc.UtcError as error:
                    assert str(error)


@pytest.mark.parametrize(
    ("name", "more", "fix"),
    [
        ("compile", {"r": 4}, "given as vars={'r': …}"),
        ("match", {"alpha": 16}, "given as vars={'alpha': …}"),
        ("compile", {"verfy": "shapes"}, "did you mean 'verify'?"),
        ("match", {"Vars": {"r": 4}}, "did you mean 'vars'?"),
    ],
)
def test_an_argument_that_there_is_not_says_where_it_goes(
    name: str, more: dict[str, Any], fix: str, calls: Any
) -> None:
    function, arguments = calls[name]
    with pytest.raises(utc.UtcError, match=f"{name} has no argument {next(iter(more))!r}") as refused:
        function(**arguments, **more)
    assert refused.value.fix is not None and fix in refused.value.fix

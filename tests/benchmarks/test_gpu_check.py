"""The check of a GPU: it always ends with one row per check, and on a CPU each row is ok or a failure that is known."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu.known import KNOWN, Known, judged  # noqa: E402
from benchmarks.gpu.plan import checks  # noqa: E402
from benchmarks.gpu.row import Row  # noqa: E402
from benchmarks.gpu.supervisor import Job, run  # noqa: E402
from benchmarks.gpu.table import counted, line, page  # noqa: E402
from benchmarks.gpu.worker import load, perform  # noqa: E402

TOYS = Job("support.gpu_toys:checks", "cpu", quick=True, budget=300, grace=10)


@pytest.fixture(scope="module")
def toys() -> dict[str, Row]:
    return {row.key.removeprefix("toy: "): row for row in run(TOYS)}


def test_every_check_is_a_row_whatever_becomes_of_it(toys: dict[str, Row]) -> None:
    found = {name: row.status for name, row in toys.items()}
    assert found == {
        "passes": "ok",
        "is beyond its bound": "failed",
        "raises": "failed",
        "hangs in Python": "failed",
        "hangs and hears nothing": "failed",
        "crashes": "failed",
        "cannot run": "not run",
        "needs a package": "not run",
        "needs a GPU": "not run",
        "breaks its process": "ok",
        "prints and passes": "ok",
    }
    assert toys["breaks its process"].figures["process"] != toys["prints and passes"].figures["process"]


def test_a_row_says_what_was_wrong(toys: dict[str, Row]) -> None:
    problems = {name: " and ".join(row.problems) for name, row in toys.items()}
    assert problems["is beyond its bound"] == (
        "error is 0.5, at most 0.1 is right and share is nan, at least 0.1 is right"
    )
    assert problems["raises"].startswith("ValueError: Empty module name (gpu/worker.py:")
    assert toys["raises"].figures == {"before": 1}
    assert problems["hangs in Python"] == "stopped after 0 s"
    assert "killed" in problems["hangs and hears nothing"]
    assert "code 7" in problems["crashes"]
    assert toys["needs a package"].why == "no_such_package is not installed"
    assert toys["cannot run"].why == "there is no second machine"


def test_what_the_budget_does_not_reach_is_not_run() -> None:
    clock = iter([0.0, 1.0, 1.0, *[299.0] * 20])
    rows = list(run(replace(TOYS, only=("passes", "prints")), lambda: next(clock)))
    assert [(row.status, row.why) for row in rows] == [("ok", ""), ("not run", "no time left")]


def test_known_failures_are_compared_by_what_they_say() -> None:
    known = [Known("fold: *", "proof is", "TF32 counts as an error", ("cuda",))]
    failed = Row("fold: resnet", "failed", problems=("proof is 1, at most 0 is right",))
    assert judged(failed, "cuda", known) == replace(failed, status="known", why="TF32 counts as an error")
    assert judged(failed, "cpu", known) == failed
    two = replace(failed, problems=(*failed.problems, "another one"))
    assert judged(two, "cuda", known) == two
    mended = judged(Row("fold: resnet", "ok"), "cuda", known)
    assert mended.status == "mended" and mended.alarming
    skipped = Row("fold: resnet", "not run", why="timm is not installed")
    assert judged(skipped, "cuda", known) == skipped


def test_every_known_failure_belongs_to_a_check() -> None:
    keys = [check.key for check in checks("cuda", False)]
    assert len(set(keys)) == len(keys)
    assert [k.checks for k in KNOWN if not any(fnmatchcase(key, k.checks) for key in keys)] == []


def test_the_table_can_stand_in_a_page() -> None:
    step = {"what": "PEFT", "ms": 2.0, "lower": 1.0, "upper": 3.0, "ratio": 1.0, "kept_mb": 7.0, "parameters": 1234567}
    rows = [
        Row("machine: versions", "ok", figures={"device": "a card", "torch": "2.11"}),
        Row("fold: a|b", "known", 1.0, {"error": 0.123456}, ("error is 1",), "a reason"),
        Row("speed: ViT", "ok", figures={"batch": 64, "steps": [step | {"peak_mb": 1234.0, "peak_ratio": 0.5}]}),
        Row("speed: ViT on a CPU", "ok", figures={"steps": [step | {"peak_mb": 0.0, "peak_ratio": None}]}),
    ]
    text = page(rows)
    assert text.startswith("device a card, torch 2.11.\n")
    assert "| fold: a\\|b | known: a reason | 1.0 | error is 1; error 0.123 |" in text
    assert "| ViT | PEFT | 1,234,567 | 2.00 ms | 1.00 to 3.00 | 1.000 | 1,234 MB | 0.500 | 7 MB |" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [{len(one.replace("\\|", "").split("|")) for one in table} for table in tables] == [{6}, {11}]
    assert counted(rows) == "1 known, 3 ok" and "a reason" in line(rows[1])


@pytest.fixture
def accelerate_anew() -> Iterator[None]:
    """accelerate keeps the precision of its first use for the whole process, and a check uses another."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def first_of_each_kind(keys: list[str]) -> list[str]:
    """Of each group of checks the first one, and those that a CPU is known to fail; a kernel's compiler is the full run's."""
    first = {key.partition(":")[0]: key for key in reversed(keys)}
    known = [key for key in keys if any("cpu" in k.on and fnmatchcase(key, k.checks) for k in KNOWN)]
    return [key for key in keys if key in first.values() or key in known]


@pytest.mark.usefixtures("accelerate_anew")
@pytest.mark.parametrize("which", ["first", pytest.param("all", marks=pytest.mark.full)])
def test_on_a_cpu_each_row_is_ok_or_a_known_failure(which: str) -> None:
    """The rows of `--quick`, in this process: what a child costs is imports."""
    asked = checks("cpu", True)
    if which == "first":
        some = first_of_each_kind([check.key for check in asked])
        asked = [check for check in asked if check.key in some]
    with warnings.catch_warnings(action="ignore"):
        rows = [judged(perform(check, 900, "cpu"), "cpu") for check in asked]
    assert [row.key for row in rows] == [check.key for check in asked]
    assert [row for row in rows if row.alarming] == []
    assert all(row.why for row in rows if row.status in ("known", "not run"))
    assert {row.why for row in rows if row.status == "not run"} == {"it needs a GPU"}
    assert "| speed:" not in page(rows) and "PEFT, LoRA" in page(rows)


def test_the_command_writes_rows_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(command.PLAN) is checks
    monkeypatch.setattr(command, "PLAN", TOYS.plan)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    given = [
        "benchmarks.gpu",
        "--quick",
        "--device",
        "cpu",
        "--budget",
        "300",
        "--out",
        str(tmp_path / "new"),
        "--only",
    ]
    for only, code in ((["passes"], 0), (["passes", "raises"], 1)):
        monkeypatch.setattr(sys, "argv", [*given, *only])
        assert command.main() == code
        assert ("These rows need attention" in capsys.readouterr().out) == bool(code)
    rows = [json.loads(text) for text in (tmp_path / "new" / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"].removeprefix("toy: ") for row in rows] == [
        "passes", "prints and passes", "passes", "raises", "prints and passes",
    ]  # fmt: skip
    assert "raises" in (tmp_path / "new" / "table.md").read_text(encoding="utf-8")

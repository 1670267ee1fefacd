"""The command as a whole: help, version, exit codes, what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_toys import utc

import utcompile
from utcompile.cli import app as application
from utcompile.cli import main, output
from utcompile.errors import UtcError

VERBS = (
    *("inspect", "suggest", "explain", "train", "evaluate", "fold", "export", "verify", "predict", "bench", "report"),
    *("compare", "demo"),
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utcompile", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_help_lists_the_verbs_of_this_release():
    result = utc("--help")
    assert result.exit_code == 0
    for verb in (*VERBS, "rules"):
        assert verb in result.stdout


@pytest.mark.parametrize("verb", [*((v,) for v in VERBS), *(("rules", v) for v in ("list", "show", "test", "schema"))])
def test_every_help_has_examples(verb):
    result = utc(*verb, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"$ utcompile {' '.join(verb)}" in result.stdout


def test_version():
    from importlib.metadata import version

    assert utc("--version").stdout == f"utcompile {version('utcompile')}\n"


def test_the_command_line_itself_imports_nothing_heavy():
    # The package is stood in for by its folder alone, so that only what utcompile.cli imports counts.
    code = f"""
import sys, types
package = types.ModuleType("utcompile")
package.__path__ = [{str(Path(utcompile.__file__).parent)!r}]
sys.modules["utcompile"] = package
from utcompile.cli import app
heavy = {{"torch", "timm", "numpy", "onnx", "onnxruntime", "networkx", "yaml", "pydantic"}}
print(sorted(heavy & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "[]\n"


def test_python_m_and_exit_codes():
    assert command("--version").returncode == 0
    wrong = command("rules", "show", "u_tuning/duel")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: no rules 'u_tuning/duel'")
    assert "did you mean 'u_tuning/dual'?" in wrong.stderr
    assert wrong.stdout == ""
    assert "Traceback" not in wrong.stderr
    usage = command("fold")
    assert usage.returncode == 2
    assert "Missing argument" in usage.stderr


def test_usage_errors_are_not_tracebacks():
    for arguments in (("inspct",), ("inspect",), ("train", "-o", "x"), ("inspect", "-m", "timm:resnet18", "--nope")):
        result = utc(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def raising(monkeypatch, error: BaseException) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("utcompile.rules.shipped_rules", fail)


def test_interrupt_gives_130(monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    assert utc("rules", "list").exit_code == 130


def test_another_exception_is_a_bug_and_says_so(monkeypatch, capsys):
    raising(monkeypatch, ZeroDivisionError("nought"))
    monkeypatch.setattr(sys, "argv", ["utcompile", "rules", "list"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert "ZeroDivisionError: nought" in stderr
    assert "This is a bug in utcompile. Please report it" in stderr


def test_an_error_keeps_its_brackets_and_lines(capsys):
    output.fail(UtcError("shape [2, 3]", where="[bold]r.yaml:1:2", why="a b", fix="c"))
    assert capsys.readouterr().err == "error: [bold]r.yaml:1:2: shape [2, 3]\n  why: a b\n  fix: c\n"


def test_json_has_no_nan():
    assert output.as_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")}) == (
        '{\n  "a": null,\n  "b": [\n    null,\n    1.5\n  ],\n  "c": "x"\n}\n'
    )


def test_verbs_are_registered_in_the_order_of_the_work():
    assert [c.callback.__name__ for c in application.registered_commands] == list(VERBS)


def test_help_need_not_wait_for_torch():
    code = (
        "import sys, utcompile, utcompile.cli\nassert 'torch' not in sys.modules, 'imported'\nprint(utcompile.UtcError)"
    )
    assert "UtcError" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

"""What the tests of the command line share: a runner, and tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from utcompile.cli import app

# test_efficientnet has 356,196 parameters; lora/all_conv is absorbed entirely
MODEL = ("-m", "timm:test_efficientnet", "--no-pretrained", "--input-size", "32")
RULES = ("-r", "lora/all_conv", "--var", "r=2")
TRAINING = ("--epochs", "2", "--batch-size", "8", "--lr", "0.01")


def utc(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def passed(*arguments: str | Path) -> Result:
    """Run it, and see that it worked."""
    result = utc(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def parsed(*arguments: str | Path) -> Any:
    """Run it with `--json`: stdout is one JSON document."""
    return json.loads(passed(*arguments, "--json").stdout)


def refused(*arguments: str | Path, says: tuple[str, ...]) -> None:
    """Run it, and see that it fails with one error that says all of this, on stderr, with exit code 1."""
    result = utc(*arguments)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") == 1
    for text in says:
        assert text in result.stderr, result.stderr


def write_data(path: Path, samples: int = 40, classes: int = 2) -> Path:
    """Grey images whose brightness tells their class."""
    random = np.random.default_rng(0)
    y = np.arange(samples) % classes
    x = (random.random((samples, 12, 12)) * 60 + 180 * y[:, None, None] / max(1, classes - 1)).astype(np.uint8)
    np.savez(path, x=x, y=y)
    return path


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden entries too."""
    return sorted(entry.name for entry in folder.iterdir())

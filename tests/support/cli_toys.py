"""What the tests of the command line share: a runner, and tiny data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner, Result

import utcompile
from utcompile.cli import app
from utcompile.cli.models import ModelChoice

# test_efficientnet has 356,196 parameters; lora/all_conv is absorbed entirely
MODEL = ("-m", "timm:test_efficientnet", "--no-pretrained", "--input-size", "32")
RULES = ("-r", "lora/all_conv", "--var", "r=2")
TRAINING = ("--epochs", "2", "--batch-size", "8", "--lr", "0.01", "--no-report")


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


@contextmanager
def captures_shared() -> Iterator[None]:
    """One capture for all commands that only look at a model that is chosen in the same way: they leave it as it is."""
    capture, build = utcompile.capture, ModelChoice.build
    chosen: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
    known: dict[str, utcompile.CapturedModule] = {}

    def built(self: ModelChoice) -> nn.Module:
        model = build(self)
        chosen[model] = str(self.as_dict())
        return model

    def captured(model: nn.Module, *args: Any, **options: Any) -> utcompile.CapturedModule:
        if model not in chosen:
            return capture(model, *args, **options)
        key = chosen[model] + str(options)
        if key not in known:
            known[key] = capture(model, *args, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelChoice, "build", built)
        patch.setattr(utcompile, "capture", captured)
        yield


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

"""The tuners of `examples/`, imported as a user imports them, and forgotten by the registry afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from utcompile.tuners import base

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("vera", "oft")


@contextmanager
def registered() -> Iterator[None]:
    """Inside the context, rules may say `kind: vera` and `kind: oft`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
        patch.syspath_prepend(EXAMPLES)
        for name in NAMES:
            sys.modules.pop(name, None)
            importlib.import_module(name)
        yield

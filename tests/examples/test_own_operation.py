"""The kernel of `examples/own_operation.py`: registered as a user registers it, found by its name and as an activation."""

from __future__ import annotations

import runpy

import pytest
from support import own_tuners

from utcompile.graph.register import forget


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(own_tuners.EXAMPLES / "own_operation.py"))
    try:
        example["main"]()
    finally:
        forget("scaled_relu")
    printed = capsys.readouterr().out
    assert printed.count("2 sites (2 ffn)") == 2

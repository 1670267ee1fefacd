"""The recorder of terminals shows what a terminal shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recordings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recordings", ROOT / "docs" / "recordings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_bar_is_drawn_over_and_long_lines_go_on_below(recordings: ModuleType) -> None:
    screen = recordings.Screen(10)
    screen.feed("one\r\n\x1b[?25lbar 1/2\r\x1b[2K\x1b[2mbar 2/2\x1b[0m")
    assert str(screen) == "one\nbar 2/2"
    screen.feed("\r\x1b[2Kabove, and longer\r\nbar\r\x1b[1A\x1b[2Kgone\x1b[K")
    assert str(screen) == "one\nabove, and\ngone\nbar"


def test_commands_run_in_a_terminal_of_a_width(recordings: ModuleType, tmp_path: Path) -> None:
    screen, status = recordings.run("sh -c 'stty size; test -t 1 && echo is a terminal; exit 3'", tmp_path, 72)
    assert str(screen).splitlines() == [f"{recordings.LINES} 72", "is a terminal"] and status == 3


def test_every_recording_has_its_place_and_is_whole() -> None:
    text = (ROOT / "docs" / "day.md").read_text(encoding="utf-8")
    for name, told in {"image": "digits.onnx", "text": "tweets.onnx", "segment": "scenes.onnx"}.items():
        recording = text.partition(f"<!-- recorded: {name} -->\n")[2].partition("<!-- recorded end -->")[0]
        assert f"$ utcompile predict {told}" in recording and "equal in ONNX Runtime" in recording
        assert "Warning" not in recording and "Traceback" not in recording
        commands = [line for line in recording.splitlines() if line.startswith("$ ")]
        assert all(len(line) <= 80 for line in recording.splitlines() if line not in commands)

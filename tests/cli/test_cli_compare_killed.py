"""A comparison whose process is killed, or stopped with Ctrl-C, goes on and gives the same figures."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.cli_toys import MODEL, write_data

pytestmark = pytest.mark.full

RULES = "probe/linear,lora/all_conv,prefix/prefix,bitfit/biases"
SHORT = ("--seeds", "2", "--epochs", "2", "--batch-size", "8", "--lr", "1e-3,1e-2", "--latency", "none")


def command(data: Path, out: Path) -> list[str]:
    given = ("compare", *MODEL, "-d", str(data), "-r", RULES, "-o", str(out), *SHORT)
    return [sys.executable, "-m", "utcompile", *given]


def figures(out: Path) -> list[list[str]]:
    """All of the table but how long it took."""
    rows = csv.DictReader((out / "comparison.csv").read_text().splitlines())
    return [[value for name, value in row.items() if name != "seconds"] for row in rows]


def stopped(arguments: list[str], with_signal: signal.Signals, after: str) -> tuple[int, str]:
    """Run a command until it says something, and stop it then; returns its exit code and what it said."""
    said = list[str]()
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        watch = threading.Timer(500, process.kill)
        watch.start()
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if after in line:
                process.send_signal(with_signal)
        watch.cancel()
    return process.returncode, "".join(said)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on(with_signal: signal.Signals, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz")
    code, said = stopped(command(data, tmp_path / "cut"), with_signal, "lora/all_conv, seed 0, lr 0.001")
    assert code != 0 and "Traceback" not in said
    assert json.loads((tmp_path / "cut" / "comparison.json").read_text()).keys() == {"settings"}
    done = {path: path.read_bytes() for path in (tmp_path / "cut").rglob("result.json")}
    assert 4 <= len(done) < 9  # the probe's three runs and one of LoRA's, or a little more
    again = subprocess.run(command(data, tmp_path / "cut"), capture_output=True, text=True, timeout=500, check=True)
    assert "prefix/prefix does not fit" in again.stderr and "probe/linear, seed" not in again.stderr
    assert all(path.read_bytes() == text for path, text in done.items())  # nothing is lost, nothing is run twice
    subprocess.run(command(data, tmp_path / "whole"), capture_output=True, timeout=500, check=True)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert len(figures(tmp_path / "cut")) == 6

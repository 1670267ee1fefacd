"""A process that runs a program of this folder with the code of a checkout, so that two checkouts can take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent


class Worker:
    """Asks a program that answers each line of its input with a line of JSON.

    Args:
        checkout: the folder whose `utcompile` is imported.
        program: the name of a file of this folder, which imports nothing of it.
    """

    def __init__(self, checkout: Path, program: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(program))],
            cwd=checkout, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, line: str) -> dict[str, Any]:
        """The program's answer; one with the key `error` if it has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        found: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        return found

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

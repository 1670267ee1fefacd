"""Shared by all tests: helpers beside this file can be imported, workers share the cores fairly, draws are the same."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one core a worker
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80; commands under test find no terminal, as in a log

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and inputs are those of the last run, in whatever order the tests run."""
    torch.manual_seed(0)

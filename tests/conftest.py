"""Shared by all tests: helpers beside this file can be imported, workers share the cores fairly, draws are the same.

Each test also leaves the process as it was, so that no test depends on another.
"""

import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one core a worker
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80; commands under test find no terminal, as in a log

import pytest
from hypothesis import HealthCheck, settings

gc.disable()  # until all files are imported: none of the million objects that they make is garbage

# No example may fail for its time: a machine may be slow or busy.
_UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_UNTIMED)
settings.register_profile("random", print_blob=True, **_UNTIMED)  # `make test-full`
settings.load_profile("same")

collect_ignore = ["typing"]  # is read by mypy alone


# torch is imported where it is used: the process that hands out the tests to the workers needs none.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the texts of tests/golden anew")


def pytest_collectstart() -> None:
    """What a file draws while it is imported is the same too."""
    import torch

    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at torch's million objects again (an eighth of all)."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and inputs are those of the last run, in whatever order the tests run."""
    import torch

    torch.default_generator.manual_seed(0)  # `torch.manual_seed` also notes, with a traceback, what CUDA will do


@pytest.fixture(autouse=True)
def table_of_the_exporter_is_made_once() -> None:
    """torch makes its table of ONNX translations anew in every export: half a second each, over a hundred times."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    if registry is not None and isinstance(registry.__dict__.get("from_torchlib"), classmethod):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture(autouse=True)
def process_left_as_it_was() -> Iterator[None]:
    """What a test changes in the process, and another test could see, is an error of the test that changed it."""
    before = _process()
    yield
    after = _process()
    assert [k for k in {**before, **after} if before.get(k) != after.get(k)] == []


@pytest.fixture(autouse=True, scope="session")
def shared_captures_left_as_they_were() -> Iterator[None]:
    yield
    if "support.models" in sys.modules:  # not imported for tests that do without: it takes seconds
        assert sys.modules["support.models"].changed() == []


_OTHERS = ("PYTEST_", "TORCHINDUCTOR_", "TRITON_")  # variables that pytest and torch's compiler set themselves


def _process() -> dict[str, Any]:
    import torch
    from torch import nn

    loggers = [*logging.root.manager.loggerDict.items()]
    return {
        "logging.disable": logging.root.manager.disable,
        "disabled loggers": {n for n, found in loggers if isinstance(found, logging.Logger) and found.disabled},
        "working directory": Path.cwd(),
        **{f"environment variable {k}": hash(v) for k, v in os.environ.items() if not k.startswith(_OTHERS)},
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "patches": (nn.Module.__call__, torch.autograd.Function.__dict__["apply"], torch.autocast.__enter__),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "profiler": sys.getprofile(),
    }

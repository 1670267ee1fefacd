"""What the figures depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata

import torch

from benchmarks.gpu.row import Check, Findings

_PACKAGES = "timm transformers peft accelerate onnxruntime onnxruntime-gpu triton".split()


def checks(device: str, quick: bool) -> Iterator[Check]:
    """One row, which cannot fail."""
    yield Check("machine", "versions", lambda found: _versions(found, device))


def _versions(found: Findings, device: str) -> None:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found.note(device=name, torch=torch.__version__, Python=platform.python_version(), cores=os.cpu_count())
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found.note(driver=_driver(), cuDNN=torch.backends.cudnn.version(), memory=f"{total / 2**30:.0f} GiB")
        found.note(free=f"{free / 2**30:.0f} GiB")
    found.note(**{package: version for package in _PACKAGES if (version := _version(package))})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"

"""The memory of one ONNX file in ONNX Runtime: measured in a process of which it is the only content."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from utcompile.deploy.runtime import as_numpy

_SECONDS = 600
_CODE = """
import sys
import numpy as np
import onnxruntime as ort
path, inputs, adapter, provider, threads = sys.argv[1:]
def most():
    try:  # on Linux the other figure begins with the memory of the parent
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with np.load(inputs) as file:
    feeds = dict(file)
before = most()
options = ort.SessionOptions()
options.intra_op_num_threads = int(threads)
session = ort.InferenceSession(path, options, providers=[provider])
run, loaded = ort.RunOptions(), ort.LoraAdapter()
if adapter:
    loaded.Load(adapter)
    run.add_active_adapter(loaded)
for _ in range(3):
    session.run(None, feeds, run)
print(most() - before)
"""


def resident(
    path: Path,
    feeds: Mapping[str, Tensor],
    *,
    adapter: Path | None = None,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
) -> float | None:
    """The peak of the memory that opening a file and three runs add to a process, in MB.

    Only the main memory counts, and not that of a GPU. None where the system does not say (Windows), or where the
    process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        with inputs.open("wb") as file:
            np.savez(file, **{name: as_numpy(tensor) for name, tensor in feeds.items()})  # type: ignore[arg-type]
        given = [path, inputs, adapter or "", provider, threads]
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CODE, *map(str, given)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except (subprocess.SubprocessError, OSError):
            return None
    return int(done.stdout) / 1e6

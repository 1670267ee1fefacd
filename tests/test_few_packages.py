"""The main job needs few packages: what trains, exports, shows or times is imported where it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = """accelerate onnx onnxruntime onnxscript peft psutil rich tensorboard timm torchvision transformers typer""".split()
JOB = """
import sys

for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it raises, as if it were not installed

import pickle
import tempfile

import torch

import utcompile as utc

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 2))
x = torch.randn(2, 4)
captured = utc.capture(model, (x,), verify="full")
plan = utc.match(captured, "lora/all_linear", vars={"r": 2})
assert str(plan) and plan.sites
tuned = utc.compile(model, "lora/all_linear", (x,), vars={"r": 2})
tuned(x).sum().backward()
with utc.disable_tuners(tuned):
    assert torch.equal(tuned(x), model(x))
with tempfile.TemporaryDirectory() as folder:
    utc.save_tuners(tuned, folder)
    utc.load_tuners(tuned, folder)
    utc.save_peft(tuned, folder)
folded, report = utc.fold(pickle.loads(pickle.dumps(tuned)))
assert str(report) and not report.kept
assert torch.allclose(folded(x), tuned(x), atol=1e-6)
print("done")
"""


def test_capture_to_fold_without_other_packages() -> None:
    ended = subprocess.run([sys.executable, "-c", JOB, *OTHERS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout == "done\n", ended.stderr[-2000:]


def test_the_package_itself_needs_nothing() -> None:
    """`import utcompile` loads no other package, not even torch."""
    code = "import sys; before = {*sys.modules}; import utcompile; print(sorted({*sys.modules} - before - {*sys.stdlib_module_names}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = ended.stdout.strip()
    assert all(f"'{name}" not in loaded for name in ["torch", "numpy", *OTHERS]), loaded

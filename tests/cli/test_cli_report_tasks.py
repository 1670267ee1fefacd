"""The page of a run on every task, with names that are no plain words; a run that has moved; pictures that have gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import BROWSER, drive
from support.cli_toys import MODEL, parsed, write_data
from support.processes import launched
from support.task_toys import NET, write_bert, write_csv, write_scenes

pytestmark = pytest.mark.full

SHORT = ("--epochs", "1", "--batch-size", "8", "--no-report")
# markup, a name without spaces, right to left, other letters, a quote
NAMES = ("<b>x</b>", "long" * 40, "\u05e9\u05dc\u05d5\u05dd", "\u65e5\u672c \u8a9e", "it's \"&amp;")
_STEPS = """
return {
  sections: [...document.querySelectorAll("section h2")].map((h) => h.textContent.split(":")[0]),
  broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length,
  figures: document.querySelectorAll(".samples figure").length,
  wide: document.documentElement.scrollWidth <= innerWidth,
  bold: document.querySelectorAll("main b b, figcaption b").length,
};"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "net.py").write_text(NET)
    write_scenes(folder / "scenes")
    write_bert(folder / "bert")
    rows = [(f"the film was {('fine', 'poor')[i % 2]} <i>{i}</i>", NAMES[i % 2]) for i in range(24)]
    write_csv(folder / "reviews.csv", ("text", "label"), rows)
    for i in range(20):
        target = folder / "photos" / f"{i % 5}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 50 * (i % 5) + i % 7, np.uint8)).save(target / f"{i}.png")
    flags = [(f"photos/{i % 5}/{i}.png", *(int(i % 5 == c or i % 3 == c) for c in range(3))) for i in range(20)]
    write_csv(folder / "labels.csv", ("image", *NAMES[:3]), flags)
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=x[:, :1])
    pictures = np.random.default_rng(0).integers(0, 255, (30, 12, 12, 3)).astype(np.uint8)
    np.savez(folder / "numbers.npz", x=pictures, y=pictures.mean((1, 2, 3)).astype(np.float32)[:, None])
    return folder


def train(home: Path, run: Path, *arguments: str | Path) -> Path:
    parsed("train", *arguments, "-o", run, *SHORT)
    return run


def page(run: Path, folder: Path, *arguments: str | Path) -> tuple[dict[str, object], str]:
    """What `report` says, and its page, which a browser opens without a complaint."""
    said = parsed("report", run, "--no-fold", *arguments)
    text = Path(said["page"]).read_text()
    if BROWSER is not None:
        seen = drive(text, _STEPS, folder)
        assert seen["broken"] == 0 and seen["wide"]
        assert ("Predictions" in seen["sections"]) == (seen["figures"] > 0)
    return said, text


TASKS: dict[str, tuple[str | Path, ...]] = {
    "multilabel": (*MODEL, "-r", "lora/all_conv", "--task", "multilabel", "-d", "labels.csv"),
    "regress": (*MODEL, "-r", "lora/all_conv", "--task", "regress", "--num-classes", "1", "-d", "numbers.npz"),
    "segment": ("-m", "net.py:pixels", "--input-size", "16", "-r", "lora/all_conv", "--task", "segment", "-d", "scenes"),
    "text": ("-m", "hf:bert", "-r", "lora/all_linear", "--task", "text", "-d", "reviews.csv", "--no-pretrained"),
    "custom": (
        "-m", "net.py:numbers", "-r", "lora/all_linear", "--task", "custom", "-d", "rows.npz", "--loss", "net.py:loss",
        "--metrics-function", "net.py:metrics", "--metric", "worst", "--lower-is-better", "--example", "net.py:example",
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_page(task: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    run = train(home, tmp_path / "run", *TASKS[task])
    said, text = page(run, tmp_path, "--trust")
    assert said["notes"] == [] and said["epochs"] == 1
    assert ("Worst by loss" in text) == (task != "custom")
    assert "<b>x</b>" not in text and "<i>" not in text


def _photos(home: Path, folder: Path, names: Sequence[str]) -> Path:
    for i, name in enumerate(names):
        shutil.copytree(home / "photos" / f"{i}", folder / name)
    return folder


def test_names_of_folders_a_moved_run_and_pictures_that_have_gone(home: Path, tmp_path: Path) -> None:
    photos = _photos(home, tmp_path / "photos", [name.replace("/", "\u2215") for name in NAMES])
    train(home, tmp_path / "run", *MODEL, "-r", "lora/all_conv", "-d", photos)
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    said, text = page(Path(moved), tmp_path)
    assert said["notes"] == [] and said["page"] == str(tmp_path / "elsewhere" / "report.html")
    assert "<b>x" not in text and "&lt;b&gt;x" in text and "\u05e9\u05dc\u05d5\u05dd" in text

    history = tmp_path / "elsewhere" / "history.jsonl"
    entry = json.loads(history.read_text())
    history.write_text(
        json.dumps({**entry, "validation_loss": float("nan"), "validation_accuracy": float("nan")}) + "\n"
    )
    said, _ = page(Path(moved), tmp_path)
    assert said["epochs"] == 1

    for file in photos.rglob("*.png"):
        file.unlink()
    said, text = page(Path(moved), tmp_path)
    assert said["accuracy"] is None and "Predictions are left out" in said["notes"][0] and "Curves" in text
    shutil.rmtree(photos)
    said, _ = page(Path(moved), tmp_path)
    assert "Predictions are left out" in said["notes"][0]


def test_several_processes_end_with_one_page(tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data.npz"), tmp_path / "run"
    given = ("train", *MODEL, "-r", "lora/all_conv", "-d", data, "-o", run, "--epochs", "1", "--batch-size", "8")
    done = launched(2, "-m", "utcompile", *given, "--cache", "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("how it went") == 1 and "no page" not in done.stderr
    assert "What is inserted" in (run / "report.html").read_text()

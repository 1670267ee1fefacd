"""`predict` for tasks other than one class per image: probabilities of labels, numbers, masks; of runs and of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli_toys import parsed, passed, refused, utc
from support.task_toys import write_csv, write_images, write_scenes

from utcompile.cli.predict_tasks import answers
from utcompile.cli.predictors import Predictor
from utcompile.train.masks import read_mask

NET = """
from torch import nn

def pixels(num_classes=7):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

def numbers(num_classes=7):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes))
"""
HOW = {"kind": "image", "size": [3, 8, 8], "mean": [0.0] * 3, "std": [1.0] * 3, "resize": "squash"}


def predictor(values: np.ndarray, labels: tuple[str, ...], **outputs: Any) -> Predictor:
    """Something that says the same of every image."""
    return Predictor("toy", ("x",), lambda feeds: np.stack([values] * len(feeds["x"])), labels, HOW, outputs=outputs)


def test_labels_have_probabilities_of_their_own(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    toy = predictor(np.array([2.0, -1.0, 0.0]), ("a", "b", "c"), task="multilabel", kind="logits")
    ((_, ranked),) = toy.ranked([str(tmp_path / "0.png")], 2)
    wanted = torch.tensor([2.0, 0.0]).double().sigmoid().tolist()
    assert [name for name, _ in ranked] == ["a", "c"] and [p for _, p in ranked] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    "outputs", [{"kind": "standardised", "mean": [10.0, 0.0], "std": [2.0, 1.0]}, {"kind": "custom"}]
)
def test_numbers_are_in_the_units_of_the_targets(outputs: dict[str, Any], tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    toy = predictor(np.array([1.5, -1.0]), ("x",), **outputs)
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    found = list(answers(toy, files, None, 5))
    first = 13.0 if "mean" in outputs else 1.5
    assert [a.sample for a in found] == files and found[0].values == (("x", first), ("1", -1.0))
    assert found[0].lines() == [f"{files[0]}: x {first:g}", f"{files[0]}: 1 -1"]


def test_masks_are_as_large_as_their_images_and_read_as_masks_of_training(tmp_path: Path) -> None:
    logits = np.zeros((3, 8, 8), np.float32)
    logits[1] = np.where(np.arange(8) < 4, -9, 9)  # the right half
    logits[2, 6:] = 99  # the last quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 40)).save(tmp_path / "turned photo.jpg", exif=exif)  # 40 x 24 when it is upright
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    toy = predictor(logits, ("ground", "cat"), task="segment", kind="logits")
    files = [str(tmp_path / "turned photo.jpg"), str(tmp_path / "a.npz")]
    of_arrays, again, of_image = answers(toy, files, tmp_path / "masks", 5)
    assert of_image.mask == tmp_path / "masks" / "turned photo.png" and of_arrays.mask == tmp_path / "masks" / "a-0.png"
    mask = read_mask(of_image.mask)
    assert mask.shape == (24, 40) and set(np.unique(mask)) == {0, 1}  # the third output has no label
    assert (mask[:, :19] == 0).all() and (mask[:, 21:] == 1).all()
    assert of_image.values == (("ground", 0.5), ("cat", 0.5)) and again.mask == tmp_path / "masks" / "a-1.png"
    assert of_image.lines() == [f"{files[0]}: ground 50.00%, cat 50.00%; {of_image.mask}"]


def test_masks_replace_nothing(tmp_path: Path) -> None:
    toy = predictor(np.zeros((2, 8, 8), np.float32), (), task="segment")
    for folder in ("a", "b"):
        write_images(tmp_path / folder, 1)
    files = [str(tmp_path / folder / "0.png") for folder in ("a", "b")]
    with pytest.raises(Exception, match="two masks would have one name"):
        list(answers(toy, files, tmp_path / "masks", 5))
    list(answers(toy, files[:1], tmp_path / "masks", 5))
    with pytest.raises(Exception, match="the file exists"):
        list(answers(toy, files[:1], tmp_path / "masks", 5))


@pytest.mark.full
def test_from_runs_to_masks_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    write_scenes(tmp_path / "scenes")
    shared = ("--no-report", "--input-size", "16", "epochs=3", "lr=0.05", "batch_size=4", "var=r=2")
    run, file = tmp_path / "run", tmp_path / "scenes.onnx"
    model = ("-m", f"{tmp_path / 'net.py'}:pixels", "-r", "lora/all_conv")
    passed("train", *model, "--task", "segment", "-d", tmp_path / "scenes", "-o", run, *shared)
    passed("export", run, "--trust", "-o", file)
    picture = tmp_path / "scenes" / "images" / "3.png"
    of_file = parsed("predict", file, picture, "--masks", tmp_path / "of file")
    of_run = parsed("predict", run, "--trust", picture, "--masks", tmp_path / "of run")
    assert of_file[0]["shares"] == of_run[0]["shares"]
    found, wanted = read_mask(Path(of_file[0]["mask"])), read_mask(tmp_path / "scenes" / "masks" / "3.png")
    assert (found == read_mask(Path(of_run[0]["mask"]))).all() and (found == wanted).mean() > 0.9
    names = write_images(tmp_path / "greys")
    table = write_csv(
        tmp_path / "greys" / "t.csv", ("path", "grey"), [(n, 1000 + 160 * (i % 2)) for i, n in enumerate(names)]
    )
    run, file = tmp_path / "numbers", tmp_path / "numbers.onnx"
    model = ("-m", f"{tmp_path / 'net.py'}:numbers", "-r", "lora/all_conv")
    passed("train", *model, "--task", "regress", "-d", table, "label_column=grey", "-o", run, *shared)
    passed("export", run, "--trust", "-o", file)
    pictures = [tmp_path / "greys" / name for name in names[:2]]
    of_file, of_run = parsed("predict", file, *pictures), parsed("predict", run, "--trust", *pictures)
    for a, b in zip(of_file, of_run, strict=True):
        assert a["values"][0]["label"] == "grey"
        assert a["values"][0]["value"] == pytest.approx(b["values"][0]["value"], rel=1e-4)  # 1e-4 is what export allows
    measured = json.loads(passed("evaluate", run, "--trust", "-d", table, "--json").stdout)
    assert measured["figures"]["mae"] < 200 and all(800 < a["values"][0]["value"] < 1400 for a in of_file)
    assert utc("predict", file, pictures[0], "--csv").stdout.splitlines()[0] == "input,label,value,mask"
    refused("predict", file, tmp_path / "nowhere.png", says=("there is no such file",))

"""Tables, masks and texts: every layout that is read, and every way it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.task_toys import write_csv, write_images, write_reviews, write_scenes
from torch.utils.data import DataLoader

from utcompile.errors import UtcError
from utcompile.train import Data, load_data
from utcompile.train.tables import read_table

SMALL: dict[str, Any] = {"input_size": (3, 8, 8), "interpolation": "bilinear"}


class Words:
    """A tokenizer of words, as transformers' are called."""

    def __call__(self, text: str, pair: str | None = None, **options: Any) -> dict[str, list[int]]:
        ids = [len(word) for word in f"{text} {pair or ''}".split()][: options.get("max_length", 99)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def pad(self, samples: list[dict[str, list[int]]], return_tensors: str) -> dict[str, torch.Tensor]:
        longest = max(len(s["input_ids"]) for s in samples)
        return {k: torch.tensor([s[k] + [0] * (longest - len(s[k])) for s in samples]) for k in samples[0]}


def table(folder: Path, header: list[str], cells: Any) -> Path:
    names = write_images(folder / "images")
    return write_csv(folder / "data.csv", header, [(f"images/{n}", *cells(i)) for i, n in enumerate(names)])


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UtcError) as caught:
        load_data(path, **SMALL | options)
    return str(caught.value)


def test_classes_of_a_table(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, ["path", "label"], lambda i: [i % 3]), check=True, **SMALL)
    assert (
        data.class_names == ("0", "1", "2")
        and data.drawn
        and str(data) == "9 training and 3 validation samples of 3 classes"
    )
    image, label = data.train[0]  # type: ignore[misc]
    assert image.shape == (3, 8, 8) and label == 0


def test_a_split_in_a_column_or_in_files(tmp_path: Path) -> None:
    path = table(tmp_path, ["image", "class", "split"], lambda i: ["ab"[i % 2], "val" if i > 7 else "train"])
    data = load_data(path, **SMALL)
    assert (data.samples, len(data.validation), data.drawn) == (8, 4, False)  # type: ignore[arg-type]
    rows = path.read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(rows[:7]))
    (tmp_path / "val.csv").write_text("\n".join([rows[0], *rows[7:9]]))
    assert load_data(tmp_path, **SMALL).samples == 6
    assert "unknown split 'trian'" in refused(write_csv(path, ["image", "label", "split"], [("a.png", "a", "trian")]))


def test_labels_of_several_and_numbers(tmp_path: Path) -> None:
    data = load_data(
        table(tmp_path, ["path", "labels"], lambda i: [("red;big", "red", "")[i % 3]]), task="multilabel", **SMALL
    )
    assert data.class_names == ("big", "red") and next(iter(DataLoader(data.train, 2)))[1].shape == (2, 2)
    data = load_data(table(tmp_path, ["path", "big", "red"], lambda i: [i % 2, 1 - i % 2]), task="multilabel", **SMALL)
    assert data.class_names == ("big", "red")
    path = table(tmp_path, ["path", "width", "height"], lambda i: [i, 10 * i])
    data = load_data(path, task="regress", label_columns=("width", "height"), **SMALL)
    assert data.class_names == ("width", "height") and data.standard is not None
    assert (
        "no column has the label\n  why: its columns are path, width, height\n  fix: name the column of the label with --label-column"
        in refused(path, task="regress")
    )


@pytest.mark.parametrize(
    ("header", "cells", "says"),
    [
        (["path", "label"], lambda i: ["" if i == 4 else "ab"[i % 2]], ("1 of 12 samples cannot be used", "data.csv:6: the label is missing", "--skip-bad")),
        (["path", "label"], lambda i: ["a"], ("all samples have the label 'a'",)),
        (["path", "lable"], lambda i: ["a"], ("no column has the label", "its columns are path, lable")),
        (["path", "label", "label"], lambda i: ["a", "b"], ("the header has 'label' twice",)),
        (["path", "label"], lambda i: ["a", "b"], ("the row has 3 fields, the header 2", "data.csv:2")),
    ],
    ids=["no label", "one class", "misspelt", "twice", "too many"],
)  # fmt: skip
def test_bad_tables(header: list[str], cells: Any, says: tuple[str, ...], tmp_path: Path) -> None:
    found = refused(table(tmp_path, header, cells))
    assert all(text in found for text in says), found


def test_bad_numbers_and_files(tmp_path: Path) -> None:
    found = refused(table(tmp_path, ["path", "target"], lambda i: ["wide" if i == 2 else i]), task="regress")
    assert "target is 'wide', which is no number" in found
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    path = table_without_images(tmp_path)
    found = refused(path, check=True)
    assert "2 of 12 samples cannot be used" in found and "there is no file" in found and "4.png" in found
    data = load_data(path, check=True, skip_bad=True, **SMALL)
    assert data.samples + len(data.validation) == 10  # type: ignore[arg-type]


def table_without_images(folder: Path) -> Path:
    return write_csv(folder / "again.csv", ["path", "label"], [(f"images/{i}.png", i % 2) for i in range(12)])


def test_a_validation_label_that_training_lacks(tmp_path: Path) -> None:
    path = table(
        tmp_path, ["path", "label", "split"], lambda i: ["abc"[i % 2 if i < 11 else 2], "train" if i < 9 else "val"]
    )
    assert "data.csv:13: the validation sample has the label 'c', which no training sample has" in refused(path)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    for name, content, says in (
        ("a.csv", b"", "contains no rows"),
        ("a.csv", b"path,label\n\xff\xfe,a\n", "is not UTF-8"),
        ("a.jsonl", b'{"text": 1}\nno json\n', "a.jsonl:2: the line is no JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: the line is a list"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UtcError, match=says):
            read_table(tmp_path / name)


def test_policies_of_timm(tmp_path: Path) -> None:
    path = table(tmp_path, ["path", "label"], lambda i: [i % 2])
    data = load_data(path, augment="rand-m9-n2-mstd0.5-inc1", **SMALL)
    assert data.train[0][0].shape == (3, 8, 8)  # type: ignore[index]
    for policy in ("rand-x", "rand-m", "augmx", "original-m3"):
        assert f"timm has no augmentation '{policy}'" in refused(path, augment=policy)


def test_damaged_images_of_folders_are_all_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 6)
    for bad in ("cat/1.png", "dog/2.png"):
        (tmp_path / bad).write_bytes((tmp_path / bad).read_bytes()[:80])
    found = refused(tmp_path, check=True)
    assert "2 of 12 samples cannot be used" in found and "cat/1.png" in found and "dog/2.png" in found
    assert load_data(tmp_path, check=True, skip_bad=True, **SMALL).samples == 8
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"")
    assert "no image of the class 'cat' can be read" in refused(tmp_path, check=True, skip_bad=True)


@pytest.mark.parametrize(("values", "names"), [((0, 1), ("0", "1")), ((0, 255), ("background", "object"))])
def test_masks(values: tuple[int, int], names: tuple[str, ...], tmp_path: Path) -> None:
    data = load_data(write_scenes(tmp_path, values=values), task="segment", augment=True, **SMALL)
    assert data.class_names == names and data.counts is not None and data.counts[0] > data.counts[1] > 0
    for image, mask in (data.train[0], data.validation[0]):  # type: ignore[misc]
        assert image.shape == (3, 8, 8) and mask.shape == (8, 8) and set(mask.unique().tolist()) <= {0, 1}
    plain = load_data(tmp_path, task="segment", input_size=(3, 16, 16)).validation[0]  # type: ignore[misc]
    light = plain[0].mean(0) > plain[0].mean()
    assert torch.equal(light, plain[1] == 1)  # the mask lies where the square is


def test_classes_of_masks_are_named(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\nsquare\ncircle\n")
    assert load_data(tmp_path, task="segment", **SMALL).class_names == ("ground", "square", "circle")
    (tmp_path / "classes.txt").write_text("ground\n")
    assert "a mask has the class 1, and classes.txt names 1 classes" in refused(tmp_path, task="segment")


def test_bad_masks(tmp_path: Path) -> None:
    assert "there is no folder 'images'" in refused(tmp_path, task="segment")
    write_scenes(tmp_path)
    Image.fromarray(np.zeros((9, 16), np.uint8)).save(tmp_path / "masks" / "1.png")
    (tmp_path / "masks" / "2.png").unlink()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "masks" / "3.png")
    found = refused(tmp_path, task="segment")
    for says in ("3 of 12 samples", "the image has 16 x 16 pixels, its mask 16 x 9", "there is no mask", "mode RGB"):
        assert says in found
    assert len(load_data(tmp_path, task="segment", skip_bad=True, **SMALL).validation) == 1  # type: ignore[arg-type]
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(file)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "masks" / "2.png")
    assert "all pixels of all masks are of one class" in refused(tmp_path, task="segment")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_texts(suffix: str, tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "r.csv")
    if suffix == ".jsonl":
        rows = read_table(path).rows
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps({**row, "text_pair": "more words"}) + "\n" for row in rows))
    data = load_data(path, task="text", tokenizer=Words(), max_length=7)
    assert data.class_names == ("bad", "good") and str(data).startswith("22 training and 2 validation samples")
    inputs, labels = next(iter(DataLoader(data.train, 4, collate_fn=data.collate)))
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape and inputs["input_ids"].shape[1] <= 7
    assert labels.dtype is torch.int64
    assert data.preprocessing["pair"] == (suffix == ".jsonl")


def test_bad_texts(tmp_path: Path) -> None:
    assert "texts need a tokenizer" in refused(write_reviews(tmp_path / "r.csv"), task="text")
    assert "there is no folder with this tokenizer" in refused(tmp_path / "r.csv", task="text", tokenizer="nowhere")
    path = write_csv(tmp_path / "b.csv", ["text", "label"], [("", "a"), ("b", "b"), ("c", "")])
    found = refused(path, task="text", tokenizer=Words())
    assert "b.csv:2: the text is missing" in found and "b.csv:4: the label is missing" in found


@pytest.mark.full
def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["bad", "good"])
    rows = {"text": [f"a {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    found = datasets.Dataset.from_dict(
        rows, features=datasets.Features({"text": datasets.Value("string"), "label": labels})
    )
    datasets.DatasetDict({"train": found, "test": found.select(range(4))}).save_to_disk(str(tmp_path / "texts"))
    data: Data = load_data(tmp_path / "texts", task="text", tokenizer=Words())
    assert data.class_names == ("bad", "good") and (data.samples, len(data.validation)) == (20, 4)  # type: ignore[arg-type]
    names = write_images(tmp_path / "images")
    pictures = {"image": [str(tmp_path / "images" / n) for n in names], "label": [i % 2 for i in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    datasets.Dataset.from_dict(pictures, features=features).save_to_disk(str(tmp_path / "pictures"))
    data = load_data(tmp_path / "pictures", **SMALL)
    assert data.drawn and data.train[0][0].shape == (3, 8, 8)  # type: ignore[index]

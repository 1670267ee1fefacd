"""Data: every layout that is read, and every way it can be wrong, by the full text of the error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.train_toys import SMALL, images
from torch.utils.data import DataLoader

from utcompile.errors import UtcError
from utcompile.train import accuracy, load_data
from utcompile.train.split import stratified


def write(path: Path, value: int = 128, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (16, 10), value if mode == "L" else (value, 0, 0)).save(path)


def folders(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    for label, name in enumerate(names):
        for index in range(count):
            write(root / name / f"{index}.png", 100 * label, "L" if index % 2 else "RGB")
    return root


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def message(path: Path, **options: Any) -> str:
    with pytest.raises(UtcError) as caught:
        data = load_data(path, **SMALL | options)
        list(DataLoader(data.train, 4))
    return str(caught.value)


def test_split_is_stratified_and_stable() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    train, held = stratified(labels, seed=1)
    assert np.bincount(labels[held]).tolist() == [5, 3, 1]
    assert sorted([*train, *held]) == list(range(84))
    assert np.array_equal(stratified(labels, seed=1)[1], held)
    assert not np.array_equal(stratified(labels, seed=2)[1], held)
    with pytest.raises(
        UtcError, match="no sample can be held out for validation\n  why: every class has a single sample"
    ):
        stratified([0, 1, 2], seed=0)


@pytest.mark.parametrize("held", ["val", "validation", "test"])
def test_folders_with_validation(held: str, tmp_path: Path) -> None:
    folders(tmp_path / "train"), folders(tmp_path / held, count=3)
    data = load_data(tmp_path, **SMALL)
    assert (len(data.train), len(data.validation), data.num_classes, data.class_names) == (20, 6, 2, ("cat", "dog"))
    image, label = data.train[19]
    assert image.shape == (3, 12, 12) and image.dtype is torch.float32 and label == 1
    assert str(data) == "20 training and 6 validation samples of 2 classes"


@pytest.mark.parametrize("root", ["", "train"])
def test_folders_that_are_split(root: str, tmp_path: Path) -> None:
    folders(tmp_path / root, count=20)
    (tmp_path / ".hidden").mkdir()
    data = load_data(tmp_path, seed=5, **SMALL)
    assert (len(data.train), len(data.validation)) == (36, 4)
    paths = [path for path, _ in data.validation.samples]
    assert paths == [path for path, _ in load_data(tmp_path, seed=5, **SMALL).validation.samples]
    assert not set(paths) & {path for path, _ in data.train.samples}


def test_folders_are_normalised_and_augmented(tmp_path: Path) -> None:
    folders(tmp_path)
    image, _ = load_data(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **SMALL).train[0]
    assert image.min() == -1
    data = load_data(tmp_path, augment=True, input_size=(3, 8, 8), interpolation="bilinear")
    assert torch.equal(data.validation[1][0], data.validation[1][0])
    assert any(not torch.equal(data.train[17][0], data.train[17][0]) for _ in range(5))
    grey, _ = load_data(tmp_path, input_size=(1, 8, 8)).train[0]
    assert grey.shape == (1, 8, 8)


LAYOUTS = {"NHW": (12, 8, 8), "NHWC": (12, 8, 8, 3), "NCHW": (12, 3, 8, 8), "NHW1": (12, 8, 8, 1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_arrays(layout: str, dtype: str, interpolation: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, LAYOUTS[layout]).astype(np.uint8)
    y = np.arange(12) % 2
    stored = x if dtype == "uint8" else (x / 255).astype(dtype)
    path = npz(tmp_path, x_train=stored, y_train=y[:, None], x_test=stored[:4], y_test=y[:4].astype(np.uint8))
    data = load_data(path, input_size=(3, 8, 8), interpolation=interpolation)
    image, label = data.train[5]
    assert image.shape == (3, 8, 8) and label == 1 and data.class_names == ("0", "1")
    first = {"NHW": x[5], "NCHW": x[5, 0]}.get(layout, x[5, ..., 0])
    np.testing.assert_allclose(image[0].numpy() * 0.229 + 0.485, first / 255, atol=1e-6)
    resized, _ = load_data(path, input_size=(3, 20, 16), interpolation=interpolation).train[5]
    assert resized.shape == (3, 20, 16)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    back = resized * std + mean
    assert back.min() >= -1e-6 and back.max() <= 1 + 1e-6


def test_arrays_that_are_split(tmp_path: Path) -> None:
    x, y = images(80)
    data = load_data(npz(tmp_path, x=x, y=y), **SMALL)
    assert (len(data.train), len(data.validation), data.num_classes) == (72, 8, 4)
    batch, labels = next(iter(DataLoader(data.train, 10)))
    assert batch.shape == (10, 3, 12, 12) and labels.dtype is torch.int64
    assert torch.equal(batch[3], data.train[3][0])
    assert load_data(npz(tmp_path, x=x, y=y), input_size=(1, 8, 8)).train[0][0].shape == (1, 8, 8)


def test_validation_comes_before_test(tmp_path: Path) -> None:
    x, y = images(8)
    path = npz(tmp_path, x_train=x, y_train=y, x_val=x[:4], y_val=y[:4], x_test=x, y_test=y)
    assert len(load_data(path, **SMALL).validation) == 4


X, Y = images(8)
BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": (
        {"images": X, "labels": Y},
        "the .npz file lacks 'x' and 'y'\n  why: it holds images, labels\n"
        "  fix: save x and y, or x_train, y_train with x_val, y_val (or x_test, y_test)",
    ),
    "nothing": (
        {},
        "the .npz file lacks 'x' and 'y'\n  why: it holds nothing\n"
        "  fix: save x and y, or x_train, y_train with x_val, y_val (or x_test, y_test)",
    ),
    "no validation": (
        {"x_train": X, "y_train": Y},
        "the .npz file lacks 'x_val' and 'y_val'\n  why: it holds x_train, y_train\n"
        "  fix: save x and y, or x_train, y_train with x_val, y_val (or x_test, y_test)",
    ),
    "half a validation": (
        {"x_train": X, "y_train": Y, "x_test": X},
        "the .npz file lacks 'y_test'\n  why: it holds x_test, x_train, y_train\n"
        "  fix: save x and y, or x_train, y_train with x_val, y_val (or x_test, y_test)",
    ),
    "rank": (
        {"x": X.reshape(8, 64), "y": Y},
        "x is of shape (8, 64)\n  fix: give (N, H, W), (N, H, W, C) or (N, C, H, W)",
    ),
    "channels": (
        {"x": np.zeros((8, 4, 8, 8), np.uint8), "y": Y},
        "x is of shape (8, 4, 8, 8)\n  why: no axis is 1 or 3 channels\n"
        "  fix: give (N, H, W, C) or (N, C, H, W) with 1 or 3 channels",
    ),
    "either axis": (
        {"x": np.zeros((8, 3, 8, 3), np.uint8), "y": Y},
        "x is of shape (8, 3, 8, 3)\n  why: both the second and the last axis could be the channels\n"
        "  fix: give (N, H, W, C) or (N, C, H, W) with 1 or 3 channels",
    ),
    "no pixels": (
        {"x": np.zeros((8, 0, 8), np.uint8), "y": Y},
        "x is of shape (8, 0, 8)\n  why: its images have no pixel",
    ),
    "length": ({"x": X, "y": Y[:5]}, "x holds 8 images and y 5 labels"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "x is empty"),
    "negative": ({"x": X, "y": Y - 1}, "y has the negative label -1\n  fix: number the classes from 0 on"),
    "fractions": (
        {"x": X, "y": Y + 0.5},
        "y is float64\n  fix: give integers from 0 on: y.astype(np.int64)",
    ),
    "one-hot": ({"x": X, "y": np.eye(4)[Y]}, "y is of shape (8, 4)\n  fix: give one integer per sample: (N,)"),
    "gaps": (
        {"x": X, "y": Y * 2},
        "the labels leave gaps: 4 distinct values up to 6\n  why: without training samples: 1, 3, 5\n"
        "  fix: number the classes from 0 on: y = np.unique(y, return_inverse=True)[1]",
    ),
    "unseen label": (
        {"x_train": X, "y_train": Y, "x_val": X, "y_val": Y + 1},
        "y_val has the label 4, which no training sample has\n  why: y_train runs from 0 to 3",
    ),
    "float range": (
        {"x": X.astype(np.float32), "y": Y},
        f"x runs from {X.min()} to {X.max()}\n"
        "  fix: give floats in [0, 1], not normalised, or uint8: x.astype(np.uint8)",
    ),
    "nan": (
        {"x": np.full((8, 4, 4), np.nan, np.float32), "y": Y},
        "x runs from nan to nan\n  fix: give floats in [0, 1], not normalised, or uint8: x.astype(np.uint8)",
    ),
    "integers": (
        {"x": X.astype(np.int32), "y": Y},
        "x is int32\n  fix: give uint8 in 0 to 255, or floats in [0, 1]",
    ),
    "objects": (
        {"x": np.array([{}] * 8, dtype=object), "y": Y},
        "the array 'x' holds Python objects\n  why: reading it would run code from the file\n"
        "  fix: save plain numbers: np.savez(path, x=x.astype(np.uint8), y=y.astype(np.int64))",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str, tmp_path: Path) -> None:
    arrays, expected = BAD_ARRAYS[case]
    path = npz(tmp_path, **arrays)
    assert message(path) == f"{path}: {expected}"


def test_grey_model_with_colour_images(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.zeros((8, 3, 8, 8), np.uint8), y=Y)
    assert message(path, input_size=(1, 8, 8)) == (
        f"{path}: x is of shape (8, 3, 8, 8)\n  why: its images have 3 channels, the model takes 1"
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"not an archive"])
def test_no_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert message(path) == f"{path}: the file is not an .npz archive\n  fix: write it with np.savez"
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").replace(path)
    assert message(path) == f"{path}: the file is not an .npz archive\n  fix: write it with np.savez"


def test_damaged_archive(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[200:210] = b"\0" * 10
    path.write_bytes(content)
    assert message(path) == f"{path}: the file is damaged\n  why: Bad CRC-32 for file 'x.npy'\n  fix: write it again"


def test_bad_options(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, y=Y)
    assert message(path, interpolation="bicubik") == (
        "arrays cannot be resized with interpolation 'bicubik'\n  fix: did you mean 'bicubic'?"
    )
    assert message(path, input_size=(4, 8, 8)) == (
        "input_size is (4, 8, 8)\n  fix: give (channels, height, width) with 1 or 3 channels"
    )
    assert message(path, augment=True) == (f"{path}: augment works on image folders only\n  fix: train without it")


def test_bad_paths(tmp_path: Path) -> None:
    missing, text = tmp_path / "no", tmp_path / "data.md"
    text.write_text("")
    give = (
        "\n  fix: give a folder with one folder of images per class, a table of image paths (.csv), or an .npz file with "
        "arrays x and y"
    )
    assert message(missing) == f"{missing}: the data path does not exist{give}"
    assert message(text) == f"{text}: data of the kind '.md' cannot be read for the task 'classify'{give}"


def test_bad_folders(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    put = "\n  fix: put the images of each class into a folder named for it"
    assert message(root) == f"{root}: the folder contains no class folders\n  why: it is empty{put}"
    write(root / "a.png")
    assert message(root) == f"{root}: the folder contains no class folders\n  why: 1 images lie in it directly{put}"
    (root / "cat").mkdir()
    assert message(root).startswith(
        f"{root / 'cat'}: the class folder contains no image\n  fix: files that are read end in"
    )
    folders(root / "val")
    assert message(root) == (
        f"{root}: there is a folder 'val' but no folder 'train'\n  fix: move the training classes to {root / 'train'}"
    )
    folders(root / "train", names=("cat", "cow"))
    assert message(root) == (
        f"{root}: the class folders of train and val differ\n  why: only in train: cow; only in val: dog\n"
        "  fix: give both the same class folders"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image(workers: int, tmp_path: Path) -> None:
    folders(tmp_path)
    bad = tmp_path / "cat" / "0.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    data = load_data(tmp_path, **SMALL)
    with pytest.raises(UtcError, match=re.escape(f"{bad}: the image file cannot be read\n  why: ")):
        for dataset in (data.train, data.validation):
            list(DataLoader(dataset, 4, num_workers=workers))


def test_accuracy(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path, x=X, y=Y), **SMALL)

    class Always(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            assert not self.training
            return {"logits": torch.eye(4)[torch.ones(len(x), dtype=torch.int64)]}

    model = Always()
    assert accuracy(model, data.train, batch_size=3) == 0.25 and model.training
    with pytest.raises(UtcError, match="there is no sample to measure accuracy on"):
        accuracy(model, torch.utils.data.Subset(data.train, []))

"""Data as people have it: pictures of every kind, tables from other programs, odd labels; and data that is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.task_toys import write_csv, write_images, write_scenes
from support.train_toys import SMALL

from utcompile.errors import UtcError
from utcompile.train import load_data
from utcompile.train.masks import MaskedImages
from utcompile.train.pictures import FAILURES, check_picture, read_picture, size_of
from utcompile.train.renumbered import Renumbered

RAMP = np.linspace(0, 1, 12 * 20).reshape(12, 20)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UtcError) as caught:
        load_data(path, **SMALL | options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", (RAMP * 255).astype(np.uint8)),
        ("a.png", (RAMP * 65535).astype(np.uint16)),
        ("a.tif", (RAMP * 65535).astype(np.uint16)),
        ("big endian.tif", (RAMP * 65535).astype(">u2")),
    ],
)
def test_sixteen_bits_are_scaled_and_not_cut_off(name: str, pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    for mode in ("L", "RGB"):
        found = np.asarray(read_picture(tmp_path / name, mode), dtype=float).reshape(12, 20, -1)
        assert np.abs(found - 255 * RAMP[..., None]).max() <= 1  # a step of 8 bits


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype: type, tmp_path: Path) -> None:
    Image.fromarray((RAMP * 1000).astype(dtype)).save(tmp_path / "a.tif")
    for look in (check_picture, lambda path: read_picture(path, "RGB")):
        with pytest.raises(FAILURES, match="whose range is not known"):
            look(tmp_path / "a.tif")


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_pictures_are_turned_upright(turn: int, tmp_path: Path) -> None:
    half = np.zeros((12, 20, 3), np.uint8)
    half[:6] = 255  # the upper half of what the camera stored
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(half).save(tmp_path / "a.png", exif=exif)
    found = np.asarray(read_picture(tmp_path / "a.png", "L"))
    bright = {1: found[:6], 3: found[6:], 6: found[:, 6:], 8: found[:, :6]}[turn]
    assert bright.min() == 255 and found.mean() == 127.5
    assert size_of(tmp_path / "a.png") == found.shape[::-1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_pictures_of_any_mode(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
    assert np.asarray(read_picture(tmp_path / "a.tif", "RGB")).tolist() == np.full((6, 8, 3), 255).tolist()


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    write_images(folder)
    (folder / name).write_bytes(text.encode())
    return folder / name


ROWS = [(f"{i}.png", "xy"[i % 2]) for i in range(12)]
CSV = "path,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS)


def test_a_column_split_in_any_case_is_used(tmp_path: Path) -> None:
    rows = [(*row, "train" if i < 8 else "Test") for i, row in enumerate(ROWS)]
    write_images(tmp_path)
    data = load_data(write_csv(tmp_path / "t.csv", ("path", "label", "Split"), rows), **SMALL)
    assert (data.samples, len(data.validation), data.drawn) == (8, 4, False)  # type: ignore[arg-type]


def test_lines_end_where_csv_says(tmp_path: Path) -> None:
    text = CSV + "".join(f'0.png,"x{mark}y"\n1.png,x{mark}y\n' for mark in ("\x0b", "\x1c", "\x85", "\u2028"))
    assert len(load_data(table(tmp_path, text), **SMALL).class_names) == 6


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    text = "path,label\n" + "".join(f"{i}.png,{i % 2}{'.0' * (i < 6)}\n" for i in range(12))
    assert load_data(table(tmp_path, text), **SMALL).class_names == ("0", "1")
    text = CSV.replace(",y", ",1.10.0")  # a version is no number
    assert load_data(table(tmp_path, text), **SMALL).class_names == ("1.10.0", "x")


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("t.csv", CSV.replace("label", "label,Label").replace("x\n", "x,x\n").replace("y\n", "y,y\n"), {}, "in case alone"),
    ("t.csv", CSV + '0.png,"x\n1.png,y\n', {}, "close every quote"),
    ("t.csv", CSV + "x" * 3000 + ".png,x\n", {"check": True}, "there is no file"),
    ("t.csv", CSV + "a\0b.png,x\n", {"check": True}, "there is no file"),
    ("t.jsonl", '{"path": ' + "[" * 200_000, {}, "the line is no JSON"),
    ("t.csv", CSV.replace(",y", ",x"), {}, "all samples have the label 'x'"),
    ("t.jsonl", "".join(json.dumps({"path": p, "label": y.replace("y", "\ud800")}) + "\n" for p, y in ROWS), {},
     "no valid Unicode"),
    ("t.csv", "path,a,b\n" + "".join(f"{i}.png,{i % 2},{i}\n" for i in range(12)),
     {"task": "multilabel", "label_columns": ("a", "b")}, "b is '2', which is neither 0 nor 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "options", "says"), WRONG)
def test_wrong_tables(name: str, text: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refused(table(tmp_path, text, name), **options)


@pytest.mark.parametrize(("mark", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_columns_with_other_marks_between_them(mark: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"path{mark}label\n" + f"0.png{mark}a\n1.png{mark}b\n" * 4)
    with pytest.raises(UtcError, match=f"by commas instead of {word}"):
        load_data(tmp_path / "t.csv")


def test_what_is_no_image_is_told_and_a_link_to_nowhere_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name)
    for name in ("1.heic", "2.heic", "notes.txt", ".hidden"):
        (tmp_path / "a" / name).write_bytes(b"")
    assert load_data(tmp_path, input_size=(3, 16, 16)).counts == (11, 11)
    assert "3 files in" in caplog.text and ".heic, .txt" in caplog.text
    (tmp_path / "b" / "3.png").unlink()
    (tmp_path / "b" / "3.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UtcError, match="1 of 24 samples cannot be used"):
        load_data(tmp_path, input_size=(3, 16, 16), check=True)
    assert load_data(tmp_path, input_size=(3, 16, 16), check=True, skip_bad=True).counts == (11, 10)
    assert "left out: 1 of 24 samples: " in caplog.text and "3.png" in caplog.text


def test_one_class_is_nothing_to_train_on(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "only")
    assert "all samples have the label 'only'" in refused(tmp_path / "data")
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.zeros(9, int))
    assert "all samples have the label '0'" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.eye(3, dtype=int)[[0, 1] * 4 + [0]])
    assert "no training sample has the label 2" in refused(tmp_path / "a.npz", task="multilabel")
    np.savez(tmp_path / "a.npz", x=np.float32(3), y=np.float32(1))
    assert "do not fit each other" in refused(tmp_path / "a.npz", task="custom")


def test_masks_with_gaps_are_refused_until_their_classes_are_named(tmp_path: Path) -> None:
    write_scenes(tmp_path, values=(0, 128))
    assert "the masks have the values 0, 128, which leave gaps" in refused(tmp_path, task="segment")
    (tmp_path / "classes.txt").write_text("\ufeff" + "\n".join(f"c{i}" for i in range(129)))
    data = load_data(tmp_path, task="segment", **SMALL)
    assert data.num_classes == 129 and data.class_names[0] == "c0"
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.arange(144).reshape(9, 4, 4) % 2 * 7)
    assert "the masks have the values 0, 7" in refused(tmp_path / "a.npz", task="segment")
    (tmp_path / "classes.txt").write_bytes("Köter\n".encode("latin-1"))
    assert "save them as UTF-8" in refused(tmp_path, task="segment")
    (tmp_path / "classes.txt").write_text("a\na\n")
    assert "the class 'a' is named twice" in refused(tmp_path, task="segment")


@pytest.mark.parametrize("low", [0, 255])
def test_255_is_an_object_only_where_there_are_two_classes(low: int, tmp_path: Path) -> None:
    write_scenes(tmp_path, values=(low, 255))
    (tmp_path / "classes.txt").write_text("ground\nsquare\ncircle\n")
    assert "all pixels of all masks are of one class" in refused(tmp_path, task="segment")
    if low:
        (tmp_path / "classes.txt").unlink()
        assert "all pixels of all masks are of one class" in refused(tmp_path, task="segment")


def test_a_policy_is_refused_where_it_would_leave_the_masks_behind(tmp_path: Path) -> None:
    assert "without their masks" in refused(write_scenes(tmp_path), task="segment", augment="rand-m9-mstd0.5-inc1")


def test_masks_of_a_table(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    rows = [(f"images/{i}.png", f"masks/{i}.png") for i in [*range(12), 0]]  # one image twice
    path = write_csv(tmp_path / "t.csv", ("path", "mask"), rows)
    data = load_data(path, task="segment", **SMALL)
    assert data.class_names == ("0", "1") and data.samples + len(data.validation) == 13  # type: ignore[arg-type]
    Image.fromarray(np.zeros((9, 16), np.uint8)).save(tmp_path / "masks" / "1.png")
    assert f"{path}:3: the image has 16 x 16 pixels, its mask 16 x 9" in refused(path, task="segment")


@pytest.mark.full
def test_masks_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_scenes(tmp_path)
    rows = {name: [str(tmp_path / f"{name}s" / f"{i}.png") for i in range(12)] for name in ("image", "mask")}
    features = datasets.Features({name: datasets.Image() for name in rows})
    found = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": found, "validation": found}).save_to_disk(str(tmp_path / "saved"))
    data = load_data(tmp_path / "saved", task="segment", **SMALL)
    of_files = load_data(tmp_path, task="segment", measured=True, **SMALL)
    for found, wanted in zip(data.train[3], of_files.validation[_place(of_files.validation, 3)], strict=True):  # type: ignore[arg-type, misc]
        assert torch.equal(found, wanted)
    rows["image"][2] = ""  # no image
    datasets.Dataset.from_dict({**rows, "image": [p or None for p in rows["image"]]}, features=features).save_to_disk(
        str(tmp_path / "holes")
    )
    assert "row 2: the cell has no image" in refused(tmp_path / "holes", task="segment")
    labelled = {"image": rows["image"], "label": [i % 2 for i in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(
        {**labelled, "image": [p or None for p in rows["image"]]}, features=features
    ).save_to_disk(str(tmp_path / "labelled"))
    assert "row 2: the cell has no image" in refused(tmp_path / "labelled", check=True)
    assert load_data(tmp_path / "labelled", check=True, skip_bad=True, **SMALL).samples == 9


def _place(dataset: object, number: int) -> int:
    assert isinstance(dataset, MaskedImages)
    return [Path(pair.where).name for pair in dataset.samples].index(f"{number}.png")


def _folders(folder: Path) -> Path:
    write_images(folder / "b", 1)
    return folder


def _rows(folder: Path) -> Path:
    write_images(folder, 2)
    return write_csv(folder / "t.csv", ("path", "label"), [("0.png", "b"), ("1.png", "b")])


def _only_test(folder: Path) -> Path:
    write_images(folder, 2)
    return write_csv(folder / "t.csv", ("path", "label", "split"), [("0.png", "b", "test"), ("1.png", "b", "test")])


def _arrays(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "a.npz", x=np.zeros((1, 4, 4), np.uint8), y=np.ones(1, int))
    return folder / "a.npz"


@pytest.mark.parametrize(
    ("make", "count", "classes"),
    [(_folders, 1, ("a", "b")), (_rows, 2, ("a", "b")), (_only_test, 2, ("a", "b")), (_arrays, 1, ("0", "1"))],
)
def test_data_that_is_measured_may_be_one_sample_of_one_class(
    make: Callable[[Path], Path], count: int, classes: tuple[str, ...], tmp_path: Path
) -> None:
    data = load_data(make(tmp_path / "test"), measured=True, **SMALL)
    found = Renumbered(data.validation, data, classes)
    assert len(found) == count and {found[i][1] for i in range(count)} == {1}


def test_one_number_and_one_mask_are_measured(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    path = write_csv(tmp_path / "t.csv", ("path", "target"), [("0.png", 3)])
    data = load_data(path, task="regress", measured=True, **SMALL)
    assert data.validation[0][1].tolist() == [3]  # type: ignore[index]
    write_scenes(tmp_path / "one", 1, values=(0, 0))
    assert len(load_data(tmp_path / "one", task="segment", measured=True, **SMALL).validation) == 1  # type: ignore[arg-type]


def test_masks_are_matched_by_the_names_of_their_classes(tmp_path: Path) -> None:
    write_scenes(tmp_path, 2)
    (tmp_path / "classes.txt").write_text("square\nground\n")
    data = load_data(tmp_path, task="segment", measured=True, **SMALL)
    plain = data.validation[0][1]  # type: ignore[index]
    found = Renumbered(data.validation, data, ("ground", "circle", "square"))[0][1]
    assert torch.equal(found, torch.tensor([2, 0])[plain])
    with pytest.raises(UtcError, match="the class 'square', which the run does not have"):
        Renumbered(data.validation, data, ("ground", "circle", "disc"))

"""The samples that a run held out are found again, or the data are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.task_toys import write_csv, write_images, write_scenes

from utcompile.errors import UtcError
from utcompile.train import load_data
from utcompile.train.held_out import check_held_out, held_out, seed_of_split

SMALL = {"input_size": (3, 16, 16)}


class Words:
    """What `load_data` needs of a tokenizer to read a table."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1]}


def _folders(home: Path) -> Path:
    for name in ("cats", "dogs"):
        write_images(home / name)
    return home


def _table(home: Path) -> Path:
    names = write_images(home)
    return write_csv(home / "t.csv", ("path", "label"), [(name, i % 2) for i, name in enumerate(names)])


def _texts(home: Path) -> Path:
    return write_csv(home / "t.csv", ("text", "label"), [(f"text {i}", i % 2) for i in range(20)])


def _arrays(home: Path) -> Path:
    np.savez(home / "a.npz", x=np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), y=np.arange(20) % 2)
    return home / "a.npz"


def _more_folders(path: Path) -> None:
    shutil.copy(path / "cats" / "0.png", path / "cats" / "00.png")


def _other_table(path: Path) -> None:
    text = path.read_text()
    head, *rows = text.splitlines()
    path.write_text("\n".join([head, *rows[1:], rows[0]]) + "\n")


def _less_scenes(path: Path) -> None:
    for name in ("images", "masks"):
        (path / name / "3.png").unlink()


def _other_arrays(path: Path) -> None:
    with np.load(path) as file:
        x, y = file["x"].copy(), file["y"]
    x[7] += 1
    np.savez(path, x=x, y=y)


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "folders": (_folders, _more_folders, SMALL),
    "images of a table": (_table, _other_table, SMALL),
    "scenes": (write_scenes, _less_scenes, {**SMALL, "task": "segment"}),
    "texts": (_texts, _other_table, {"task": "text", "tokenizer": Words()}),
    "arrays": (_arrays, _other_arrays, SMALL),
    "arrays of a custom task": (_arrays, _other_arrays, {"task": "custom"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_samples_are_refused_and_the_same_ones_elsewhere_are_not(kind: str, tmp_path: Path) -> None:
    make, change, how = KINDS[kind]
    (tmp_path / "a").mkdir()
    path = make(tmp_path / "a")
    manifest = held_out(load_data(path, seed=3, **how), 3)
    assert seed_of_split(manifest) == 3 and len(manifest["held_out"]["digest"]) == 32  # type: ignore[index, arg-type]
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "a")
    moved = tmp_path / "b" / path.relative_to(tmp_path)
    check_held_out(load_data(moved, seed=3, **how), manifest, "moved")
    change(path)
    with pytest.raises(UtcError, match="not those that the run was trained on") as error:
        check_held_out(load_data(path, seed=3, **how), manifest, "changed")
    assert error.value.code == "data/changed"


def test_a_split_of_the_data_needs_no_entry(tmp_path: Path) -> None:
    for part in ("train", "val"):
        _folders(tmp_path / part)
    data = load_data(tmp_path, **SMALL)  # type: ignore[arg-type]
    assert held_out(data, 0) == {} and seed_of_split({"training": {"seed": 5}}) == 5
    check_held_out(data, {"held_out": {"seed": 0}}, "split since")

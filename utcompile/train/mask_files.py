"""Images and masks from two folders of files with the same names, or from the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.plain_data import Keywords
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.folders import HELD_OUT, SUFFIXES
from utcompile.train.image_table import PATH
from utcompile.train.mask_classes import read_names
from utcompile.train.masks import Pair, masked_data
from utcompile.train.pictures import Source
from utcompile.train.tables import Table

_MASKS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})  # lossless: a JPEG would invent classes
_MASK = ("mask", "masks", "annotation", "segmentation", "segmentation_mask", "mask_path", "label")


def load_masks(
    path: Path, how: Preprocessing, *, seed: int, augment: bool, skip_bad: bool, measured: bool = False
) -> Data:
    """Read `path/images` and `path/masks`, or the two in `path/train` and `path/val`; `classes.txt` names the classes.

    Raises:
        UtcError: folders or masks are missing, a mask has another size than its image, or classes do not fit.
    """
    root = path / "train" if (path / "train").is_dir() else path
    held_root = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    if measured and root == path and held_root is not None and not (path / "images").is_dir():
        root, held_root = held_root, None
    held = None if held_root is None else _pairs(held_root)
    options: Keywords = {"seed": seed, "augment": augment, "skip_bad": skip_bad, "measured": measured}
    return masked_data(path, _pairs(root), held, how, named=read_names(path), **options)


def _pairs(root: Path) -> list[Pair]:
    """The images of a folder, each with its mask, or with where that should be."""
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UtcError(
                f"there is no folder {name!r}",
                where=str(root),
                fix="put the images into 'images' and their masks, under the same names, into 'masks'",
                code="data/not-found",
            )
    images = sorted(f for f in (root / "images").rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    masks = {_key(f, root / "masks"): f for f in sorted((root / "masks").rglob("*")) if f.suffix.lower() in _MASKS}
    if not images:
        raise UtcError("there is no image", where=str(root / "images"), code="data/not-found")
    keys = [_key(image, root / "images") for image in images]
    if twice := next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None:
        raise UtcError(
            f"two images are named {twice!r}",
            where=str(root / "images"),
            why="their mask is found by the name without its ending",
            fix="rename one of them, and its mask",
            code="data/labels",
        )
    return [
        Pair(image, masks.get(key, root / "masks" / f"{key}.png"), str(image))
        for image, key in zip(images, keys, strict=True)
    ]


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def load_mask_table(
    tables: tuple[Table, Table | None],
    how: Preprocessing,
    *,
    seed: int,
    augment: bool,
    input_column: str | None,
    label_columns: Sequence[str],
    skip_bad: bool,
    measured: bool = False,
) -> Data:
    """Make data of tables with an image and a mask per row: paths, relative to the table, or what `datasets` saved.

    Raises:
        UtcError: a column is missing, or what `load_masks` raises.
    """
    train, held = tables
    column = train.column(input_column, PATH, "input")
    mask = train.column(label_columns[0] if label_columns else None, _MASK, "label")
    pairs = [_rows(table, column, mask) for table in (train, held) if table is not None]
    folder = train.path if train.path.is_dir() else train.path.parent
    options: Keywords = {"seed": seed, "augment": augment, "skip_bad": skip_bad, "measured": measured}
    return masked_data(
        train.path, pairs[0], None if held is None else pairs[1], how, named=read_names(folder), **options
    )


def _rows(table: Table, column: str, mask: str) -> list[Pair]:
    return [
        Pair(_source(table, row.get(column)), _source(table, row.get(mask)), place)
        for row, place in zip(table.rows, table.places, strict=True)
    ]


def _source(table: Table, cell: object) -> Source:
    return partial(cell) if callable(cell) else table.path.parent / str(cell or "")

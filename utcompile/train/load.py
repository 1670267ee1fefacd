"""Training data from a path: image folders, tables, masks, arrays, saved data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from utcompile.errors import UtcError, did_you_mean
from utcompile.files import path_of
from utcompile.plain_data import Keywords
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.tables import SUFFIXES, Table, tables_in
from utcompile.train.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAYOUTS = {
    "classify": "a folder with one folder of images per class, a table of image paths (.csv), or an .npz file with "
    "arrays x and y",
    "multilabel": "a table of image paths (.csv), or an .npz file with arrays x and y",
    "regress": "a table of image paths (.csv), or an .npz file with arrays x and y",
    "segment": "a folder with the folders images and masks, a table of paths with columns path and mask (.csv), or an "
    ".npz file with arrays x and y",
    "text": "a table of texts (.csv, .tsv or .jsonl)",
    "custom": "an .npz file with arrays x and y, or file.py:function",
}


def load_data(
    path: str | Path,
    *,
    input_size: Sequence[int] = (3, 224, 224),
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    seed: int = 0,
    augment: bool | str = False,
    task: str = "classify",
    input_column: str | None = None,
    label_columns: Sequence[str] = (),
    tokenizer: object = None,
    max_length: int = 128,
    check: bool = False,
    skip_bad: bool = False,
    measured: bool = False,
) -> Data:
    """Read training and validation data from `path`.

    Image folders: `path/train/CLASS/*.png` with `path/val`, `path/validation` or `path/test` next to it; or
    `path/CLASS/*.png` alone, of which a tenth of every class is held out. Read through timm's transforms.

    Tables (`.csv`, `.tsv`, `.jsonl`): one row per sample, with a path (relative to the table) or a text, and a label.
    A column `split`, or a folder with `train.csv` and `val.csv`, says what is held out. `multilabel` reads
    `cat;dog`, or columns of 0 and 1; `regress` reads numbers.

    Masks (`segment`): `path/images` and `path/masks` with files of the same names, or both in `path/train` and
    `path/val`; a mask has the class of each pixel, or 0 and 255. `path/classes.txt` names the classes. Or a table with
    columns `path` and `mask`.

    An `.npz` file: `x_train`, `y_train` with `x_val`, `y_val` or `x_test`, `y_test`; or `x`, `y`, of which a tenth
    is held out. `x` is `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, uint8 or float in [0, 1]; grey images are
    repeated to three channels. Arrays are resized as a whole, without the centre crop that folders get.

    A folder that `datasets` saved to disk, as a table.

    Args:
        input_size, mean, std, interpolation, crop_pct: as in `timm.data.resolve_data_config(model=model)`.
        seed: of the split, where one is made.
        augment: train on random crops, flips and colour jitter (image files only); or a policy of timm's.
        input_column, label_columns: of a table; found by their names otherwise.
        tokenizer: of transformers, or the local folder of one (`text`).
        max_length: in tokens; longer texts are cut.
        check: decode every image before anything else.
        skip_bad: leave out samples that cannot be used.
        measured: the data is measured and not trained on: it may lack classes, and without a split all of it is
            validation data.

    Raises:
        UtcError: anything about the data that would not train as meant, with the file and the reason.
    """
    path = path_of(path, "path")
    if task not in TASKS:
        raise UtcError(f"unknown task {task!r}", fix=did_you_mean(task, TASKS), code="train/settings")
    if len(input_size) != 3 or input_size[0] not in (1, 3):
        raise UtcError(
            f"input_size is {tuple(input_size)}",
            fix="give (channels, height, width) with 1 or 3 channels",
            code="train/settings",
        )
    channels, height, width = input_size
    # timm's configurations always have three; a grey model takes the first.
    how = Preprocessing(
        (channels, height, width), tuple(mean)[:channels], tuple(std)[:channels], interpolation, crop_pct
    )
    if not path.exists():
        raise UtcError(
            "the data path does not exist", where=str(path), fix=f"give {_LAYOUTS[task]}", code="data/not-found"
        )
    if (input_column is not None or label_columns) and not _is_table(path):
        raise UtcError(
            "a column is named, and the data is no table",
            where=str(path),
            fix="leave out input_column and label_column, or give a .csv, .tsv or .jsonl file",
            code="train/settings",
        )
    if path.suffix == ".npz" and not path.is_dir():
        return _arrays(path, how, seed, task, augment, measured)
    shared: Keywords = {"seed": seed, "skip_bad": skip_bad, "measured": measured}
    columns: Keywords = {"input_column": input_column, "label_columns": label_columns, **shared}
    if task == "text":
        from utcompile.train.texts import load_texts, read_tokenizer

        if tokenizer is None:
            raise UtcError(
                "texts need a tokenizer", fix="give the local folder of one: --tokenizer DIR", code="data/tokenizer"
            )
        if isinstance(tokenizer, str | Path):
            tokenizer = read_tokenizer(tokenizer)
        tables = _tables(path, task, measured)
        return load_texts(
            tables, tokenizer=cast("PreTrainedTokenizerBase", tokenizer), max_length=max_length, **columns
        )
    if task == "segment":
        return _masks(path, how, augment, shared, columns)
    if task == "classify" and path.is_dir() and not _has_tables(path):
        from utcompile.train.folders import load_folders

        return load_folders(path, how, augment=augment, check=check, **shared)
    if task == "custom":
        raise _unreadable(path, task)
    from utcompile.train.image_table import load_image_table

    tables = _tables(path, task, measured)
    return load_image_table(tables, how, task=task, augment=augment, check=check, **columns)


def _masks(path: Path, how: Preprocessing, augment: bool | str, shared: Keywords, columns: Keywords) -> Data:
    from utcompile.train.mask_files import load_mask_table, load_masks

    if isinstance(augment, str):
        raise UtcError(
            f"the augmentation {augment!r} would change images without their masks",
            fix="leave out the policy: segment flips and cuts out both alike",
            code="train/settings",
        )
    if path.is_dir() and not _has_tables(path):
        return load_masks(path, how, augment=augment, **shared)
    return load_mask_table(_tables(path, "segment", shared["measured"]), how, augment=augment, **columns)


def _arrays(path: Path, how: Preprocessing, seed: int, task: str, augment: bool | str, measured: bool) -> Data:
    if augment:
        raise UtcError(
            "augment works on image folders only", where=str(path), fix="train without it", code="train/settings"
        )
    if task == "custom":
        from utcompile.train.own_data import load_own_arrays

        return load_own_arrays(path, seed=seed, measured=measured)
    if task == "text":
        raise _unreadable(path, task)
    from utcompile.train.arrays import load_arrays

    return load_arrays(path, how, seed=seed, task=task, measured=measured)


def _tables(path: Path, task: str, measured: bool) -> tuple[Table, Table | None]:
    from utcompile.train.hub import is_saved_dataset, read_hub

    if path.is_dir() and is_saved_dataset(path):
        return read_hub(path, measured=measured)
    if not path.is_dir() and path.suffix not in SUFFIXES:
        raise _unreadable(path, task)
    return tables_in(path, measured=measured)


def _is_table(path: Path) -> bool:
    return _has_tables(path) if path.is_dir() else path.suffix in SUFFIXES


def _has_tables(path: Path) -> bool:
    from utcompile.train.hub import is_saved_dataset

    return is_saved_dataset(path) or any((path / f"train{suffix}").is_file() for suffix in SUFFIXES)


def _unreadable(path: Path, task: str) -> UtcError:
    return UtcError(
        f"data of the kind {path.suffix or 'without a suffix'!r} cannot be read for the task {task!r}",
        where=str(path),
        fix=f"give {_LAYOUTS[task]}",
        code="data/damaged",
    )

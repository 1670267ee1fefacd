"""Image classification data from a path: image folders or an `.npz` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.files import path_of
from utcompile.train.dataset import Data, Preprocessing


def load_data(
    path: str | Path,
    *,
    input_size: Sequence[int] = (3, 224, 224),
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    seed: int = 0,
    augment: bool = False,
) -> Data:
    """Read training and validation data from `path`.

    Image folders: `path/train/CLASS/*.png` with `path/val`, `path/validation` or `path/test` next to it; or
    `path/CLASS/*.png` alone, of which a tenth of every class is held out. Read through timm's transforms.

    An `.npz` file: `x_train`, `y_train` with `x_val`, `y_val` or `x_test`, `y_test`; or `x`, `y`, of which a tenth
    is held out. `x` is `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, uint8 or float in [0, 1]; grey images are
    repeated to three channels. Arrays are resized as a whole, without the centre crop that folders get.

    Args:
        input_size, mean, std, interpolation, crop_pct: as in `timm.data.resolve_data_config(model=model)`.
        seed: of the split, where one is made.
        augment: train on timm's random crops, flips and colour jitter (image folders only).

    Raises:
        UtcError: anything about the data that would not train as meant, with the file and the reason.
    """
    from utcompile.train.arrays import load_arrays
    from utcompile.train.folders import load_folders

    path = path_of(path, "path")
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
            "the data path does not exist",
            where=str(path),
            fix="give an image folder or an .npz file",
            code="data/not-found",
        )
    if path.is_dir():
        return load_folders(path, how, seed=seed, augment=augment)
    if path.suffix == ".npz":
        if augment:
            raise UtcError(
                "augment works on image folders only", where=str(path), fix="train without it", code="train/settings"
            )
        return load_arrays(path, how, seed=seed)
    raise UtcError(
        f"data of the kind {path.suffix or 'without a suffix'!r} cannot be read",
        where=str(path),
        fix="give a folder with one folder of images a class, or an .npz file with arrays x and y",
        code="data/damaged",
    )

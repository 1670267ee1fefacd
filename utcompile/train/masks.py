"""Images with a mask of classes per pixel, from two folders of files with the same names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.damaged import Bad, reason_of, refuse, unreadable
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.folders import HELD_OUT, SUFFIXES
from utcompile.train.split import stratified
from utcompile.train.tasks import IGNORED

_MASKS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})  # lossless: a JPEG would invent classes
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images `(C, H, W)`, float32, normalised, and masks `(H, W)`, int64.

    Args:
        pairs: files of an image and of its mask.
        binary: masks have 0 and 255 for background and object.
        augment: flip and cut out at random, image and mask alike.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], how: Preprocessing, *, binary: bool, augment: bool = False
    ) -> None:
        self.samples, self.how, self.binary, self.augment = list(pairs), how, binary, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, mask_path = self.samples[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB" if self.how.input_size[0] == 3 else "L")
            mask = read_mask(mask_path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UtcError(
                "the image or its mask cannot be read", where=str(path), why=reason_of(error), code="data/damaged"
            ) from error
        box = (0, 0, *image.size)
        if self.augment:
            box = _part(image.size)
        height, width = self.how.input_size[1:]
        kind = _RESAMPLING.get(self.how.interpolation, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image.resize((width, height), kind, box))).float() / 255
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box)
        labels = torch.from_numpy(np.array(small)).long()
        if self.binary:
            labels = (labels > 0).long()
        if self.augment and random.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.how.mean, self.how.std))
        return (pixels - mean) / std, labels


def _part(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A random box of half to all of each side."""
    share = random.uniform(0.5, 1.0)
    width, height = max(1, round(share * size[0])), max(1, round(share * size[1]))
    left, top = random.randint(0, size[0] - width), random.randint(0, size[1] - height)
    return left, top, left + width, top + height


def read_mask(path: Path) -> np.ndarray:
    """The classes of a mask's pixels, uint8 `(H, W)`: palette indices, or grey values."""
    with Image.open(path) as file:
        if file.mode not in ("L", "P", "1", "I", "I;16"):
            raise ValueError(f"the mask has mode {file.mode}; it must have one channel, with the class of each pixel")
        pixels = np.array(file)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.max(initial=0) > 255:
        raise ValueError(f"the mask has the class {int(pixels.max())}; at most 254, and 255 for what is ignored")
    return pixels.astype(np.uint8)


def load_masks(path: Path, how: Preprocessing, *, seed: int, augment: bool, skip_bad: bool) -> Data:
    """Read `path/images` and `path/masks`, or the two in `path/train` and `path/val`; `classes.txt` names the classes.

    Raises:
        UtcError: folders or masks are missing, a mask has another size than its image, or classes do not fit.
    """
    root = path / "train" if (path / "train").is_dir() else path
    held_root = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    train, seen = _checked(root, skip_bad)
    held, held_seen = ([], set[int]()) if held_root is None else _checked(held_root, skip_bad)
    if held_root is None:
        kept, rest = stratified([0] * len(train), seed)
        train, held = [train[i] for i in kept], [train[i] for i in rest]
    names, binary = _names(path, seen | held_seen)
    counts = _counts([mask for _, mask in train], len(names), binary)
    return Data(
        MaskedImages(train, how, binary=binary, augment=augment),
        MaskedImages(held, how, binary=binary),
        len(names),
        names,
        "segment",
        counts=counts,
        drawn=held_root is None,
        preprocessing=how.as_dict("squash"),
    )


def _names(path: Path, seen: set[int]) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether masks are 0 and 255."""
    binary = seen <= {0, IGNORED} and IGNORED in seen
    highest = 1 if binary else max(seen - {IGNORED}, default=0)
    file = path / "classes.txt"
    names = tuple(str(i) for i in range(highest + 1))
    if binary:
        names = ("background", "object")
    if file.is_file():
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        if len(names) <= highest:
            raise UtcError(
                f"a mask has the class {highest}, and {file.name} names {len(names)} classes",
                where=str(file),
                fix=f"name the classes 0 to {highest}, one per line",
                code="data/labels",
            )
    if len(names) < 2:
        raise UtcError(
            "all pixels of all masks are of one class",
            where=str(path),
            fix="write the class of each pixel: 0, 1, 2 …; or 0 and 255 for background and object",
            code="data/labels",
        )
    return names, binary


def _counts(masks: Sequence[Path], classes: int, binary: bool) -> tuple[int, ...]:
    total = np.zeros(256, dtype=np.int64)
    for mask in masks:
        pixels = read_mask(mask)
        total += np.bincount((pixels > 0).ravel() if binary else pixels.ravel(), minlength=256)
    return tuple(total[:classes].tolist())


def _checked(root: Path, skip_bad: bool) -> tuple[list[tuple[Path, Path]], set[int]]:
    """The pairs of a folder that can be used, and the values in their masks."""
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise UtcError(
                f"there is no folder {name!r}",
                where=str(root),
                fix="put the images into 'images' and their masks, under the same names, into 'masks'",
                code="data/not-found",
            )
    images = sorted(f for f in (root / "images").rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    masks = {
        f.relative_to(root / "masks").with_suffix("").as_posix(): f
        for f in sorted((root / "masks").rglob("*"))
        if f.suffix.lower() in _MASKS and f.is_file()
    }
    if not images:
        raise UtcError("there is no image", where=str(root / "images"), code="data/not-found")
    seen: set[int] = set()
    keys = {f: f.relative_to(root / "images").with_suffix("").as_posix() for f in images}

    def look(image: Path) -> str | None:
        mask = masks.get(keys[image])
        if mask is None:
            return f"there is no mask {root / 'masks' / keys[image]}.png"
        return _wrong_with(image, mask, seen)

    bad: list[Bad] = unreadable(images, look)
    refuse(bad, len(images), skip=skip_bad)
    out = {sample.index for sample in bad}
    return [(f, masks[keys[f]]) for i, f in enumerate(images) if i not in out], seen


def _wrong_with(image: Path, mask: Path, seen: set[int]) -> str | None:
    try:
        with Image.open(image) as file:
            file.draft("RGB", (32, 32))
            file.load()
        with Image.open(image) as file:  # `draft` changes the size
            size = file.size
        pixels = read_mask(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return reason_of(error)
    if pixels.shape != (size[1], size[0]):
        return f"the image has {size[0]} x {size[1]} pixels, its mask {pixels.shape[1]} x {pixels.shape[0]}"
    seen.update(np.unique(pixels).tolist())
    return None

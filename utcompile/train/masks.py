"""Images with a mask of classes per pixel."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.damaged import Bad, looked_at, refuse
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.mask_classes import names_of
from utcompile.train.pictures import FAILURES, Source, opened, read_picture, reason_of, size_of
from utcompile.train.split import stratified

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        where: for messages.
    """

    image: Source
    mask: Source
    where: str


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images `(C, H, W)`, float32, normalised, and masks `(H, W)`, int64.

    Args:
        binary: masks have 0 and 255 for background and object.
        augment: flip and cut out at random, image and mask alike.
    """

    def __init__(self, pairs: Sequence[Pair], how: Preprocessing, *, binary: bool, augment: bool = False) -> None:
        self.samples, self.how, self.binary, self.augment = list(pairs), how, binary, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.samples[index]
        try:
            image = read_picture(pair.image, "RGB" if self.how.input_size[0] == 3 else "L")
            mask = read_mask(pair.mask)
        except FAILURES as error:
            raise UtcError(
                "the image or its mask cannot be read", where=pair.where, why=reason_of(error), code="data/damaged"
            ) from error
        box = _part(image.size) if self.augment else (0, 0, *image.size)
        pixels, labels = resized(image, self.how, box), self._labels(mask, box)
        if self.augment and random.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        return pixels, labels

    def _labels(self, mask: np.ndarray, box: tuple[int, int, int, int]) -> Tensor:
        height, width = self.how.input_size[1:]
        small = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box)
        labels = torch.from_numpy(np.array(small)).long()
        return (labels > 0).long() if self.binary else labels


def resized(image: Image.Image, how: Preprocessing, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """A part of an image (all of it by default), with both sides resized, normalised: `(C, H, W)`."""
    height, width = how.input_size[1:]
    kind = _RESAMPLING.get(how.interpolation, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image.resize((width, height), kind, box))).float() / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (how.mean, how.std))
    return (pixels - mean) / std


def _part(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A random box of half to all of each side."""
    share = random.uniform(0.5, 1.0)
    width, height = max(1, round(share * size[0])), max(1, round(share * size[1]))
    left, top = random.randint(0, size[0] - width), random.randint(0, size[1] - height)
    return left, top, left + width, top + height


def read_mask(source: Source) -> np.ndarray:
    """The classes of a mask's pixels, uint8 `(H, W)`: palette indices, or grey values."""
    with opened(source) as file:
        if file.mode not in ("L", "P", "1", "I", "I;16"):
            raise ValueError(f"the mask has mode {file.mode}; it must have one channel, with the class of each pixel")
        pixels = np.array(file)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.max(initial=0) > 255 or pixels.min(initial=0) < 0:
        wrong = int(pixels.max(initial=0)) if pixels.max(initial=0) > 255 else int(pixels.min(initial=0))
        raise ValueError(f"the mask has the class {wrong}; from 0 to 254, and 255 for what is ignored")
    return pixels.astype(np.uint8)


def masked_data(
    path: Path,
    train: Sequence[Pair],
    held: Sequence[Pair] | None,
    how: Preprocessing,
    *,
    named: tuple[str, ...],
    seed: int,
    augment: bool,
    skip_bad: bool,
    measured: bool,
) -> Data:
    """Make data of pairs, all of which are looked at; without held-out pairs a tenth is held out.

    Args:
        named: the names of the classes, where they are known.
        measured: the data is measured and not trained on, so it may lack classes, and need not be split.

    Raises:
        UtcError: a mask has another size than its image, one of both cannot be read, or classes do not fit.
    """
    seen: set[int] = set()
    kept = usable(train, seen, skip_bad)
    others = [] if held is None else usable(held, seen, skip_bad)
    if held is None:
        rows, rest = stratified([0] * len(kept), seed, whole=measured)
        kept, others = [kept[i] for i in rows], [kept[i] for i in rest]
    names, binary = names_of(seen, named, path, measured=measured)
    return Data(
        MaskedImages(kept, how, binary=binary, augment=augment),
        MaskedImages(others, how, binary=binary),
        len(names),
        names,
        "segment",
        counts=_counts((pair.mask for pair in kept), len(names), binary),
        drawn=held is None,
        preprocessing=how.as_dict("squash"),
    )


def _counts(masks: Iterable[Source], classes: int, binary: bool) -> tuple[int, ...]:
    total = np.zeros(256, dtype=np.int64)
    for mask in masks:
        pixels = read_mask(mask)
        total += np.bincount((pixels > 0).ravel() if binary else pixels.ravel(), minlength=256)
    return tuple(total[:classes].tolist())


def usable(pairs: Sequence[Pair], seen: set[int], skip_bad: bool) -> list[Pair]:
    """The pairs that can be used; adds the values in their masks to `seen`.

    Raises:
        UtcError: some cannot, and they are not to be skipped.
    """
    bad = [Bad(b.index, pairs[b.index].where, b.why) for b in looked_at(pairs, partial(_wrong_with, seen))]
    refuse(bad, len(pairs), skip=skip_bad)
    out = {sample.index for sample in bad}
    return [pair for i, pair in enumerate(pairs) if i not in out]


def _wrong_with(seen: set[int], pair: Pair) -> str | None:
    if isinstance(pair.mask, Path) and not pair.mask.is_file():
        return f"there is no mask {pair.mask}"
    try:
        read_picture(pair.image, "L")
        size, pixels = size_of(pair.image), read_mask(pair.mask)
    except FAILURES as error:
        return reason_of(error)
    if pixels.shape != (size[1], size[0]):
        return f"the image has {size[0]} x {size[1]} pixels, its mask {pixels.shape[1]} x {pixels.shape[0]}"
    seen.update(np.unique(pixels).tolist())
    return None

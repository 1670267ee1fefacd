"""Images from folders, one folder a class, through timm's transforms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.damaged import left_out, refuse, unreadable
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.pictures import FAILURES, Source, damaged, read_picture
from utcompile.train.split import check_several, stratified

HELD_OUT = ("val", "validation", "test")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})

Sample = tuple[Path, int]
_POLICY = re.compile(
    r"rand(-(m|n|w|p|t|mstd|mmax|inc)\d+(\.\d+)?)*|augmix(-(m|w|d|b|mstd)\d+(\.\d+)?)*|"
    r"(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)
_SCALE = (0.35, 1.0)  # of the area: timm's 0.08 is meant for hundreds of epochs


class ImageFiles(Dataset[tuple[Tensor, object]]):
    """Image files with their targets.

    Args:
        samples: a path, or a function that opens the image; and its label or target.

    Raises:
        UtcError: on reading a file that is no image, with its path.
    """

    def __init__(
        self, samples: Iterable[tuple[Source, object]], transform: Callable[[object], Tensor], mode: str = "RGB"
    ) -> None:
        self.samples, self.transform, self.mode = list(samples), transform, mode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, object]:
        path, label = self.samples[index]
        try:
            pixels = read_picture(path, self.mode)
        except FAILURES as error:
            raise damaged(path, index, error) from error
        return self.transform(pixels), label


def transforms(
    how: Preprocessing, augment: bool | str
) -> tuple[Callable[[object], Tensor], Callable[[object], Tensor]]:
    """What makes tensors of images in validation and in training.

    Args:
        augment: random crops, flips and colour jitter; or a policy of timm's, such as `rand-m9-mstd0.5-inc1`, with
            random erasing.

    Raises:
        UtcError: timm has no such policy.
    """
    make = partial(
        create_transform,
        how.input_size,
        mean=how.mean,
        std=how.std,
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
    )
    plain = make(is_training=False)
    if not augment:
        return plain, plain
    if isinstance(augment, str) and not _POLICY.fullmatch(augment):  # timm leaves out what it does not know
        raise UtcError(
            f"timm has no augmentation {augment!r}",
            fix="give e.g. rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original or 3a",
            code="train/settings",
        )
    policy, erased = (augment, 0.25) if isinstance(augment, str) else (None, 0.0)
    return plain, make(is_training=True, scale=_SCALE, auto_augment=policy, re_prob=erased)


def load_folders(
    path: Path,
    how: Preprocessing,
    *,
    seed: int,
    augment: bool | str,
    check: bool = False,
    skip_bad: bool = False,
    measured: bool = False,
) -> Data:
    """Read image folders; see `load_data` for how they are laid out.

    Args:
        measured: the data is measured and not trained on, so it may lack classes, and need not be split.

    Raises:
        UtcError: no class folder, a single one, no image in one, or other classes in validation than in training; with
            `check`, an image that cannot be decoded.
    """
    held = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    if (path / "train").is_dir():
        names, train = _samples(path / "train")
        validation: list[Sample] = []
        if held is not None:
            held_names, validation = _samples(held)
            _check_same(names, held_names, held)
    elif held is None:
        names, train = _samples(path)
        validation = []
    elif measured:
        names, validation = _samples(held)
        train = []
    else:
        raise UtcError(
            f"there is a folder {held.name!r} but no folder 'train'",
            where=str(path),
            fix=f"move the training classes to {path / 'train'}",
            code="data/not-found",
        )
    if not measured:
        check_several(names, path)
    if check:
        train = _readable(train, () if measured else names, skip_bad)
        validation = [] if held is None else _readable(validation, (), skip_bad)
    if held is None:
        kept, held_out = stratified([label for _, label in train], seed, whole=measured)
        train, validation = [train[i] for i in kept], [train[i] for i in held_out]
    mode = "RGB" if how.input_size[0] == 3 else "L"
    plain, random = transforms(how, augment)
    counts = Counter(label for _, label in train)
    return Data(
        ImageFiles(train, random, mode),
        ImageFiles(validation, plain, mode),
        len(names),
        names,
        counts=tuple(counts[i] for i in range(len(names))),
        drawn=held is None,
        preprocessing=how.as_dict("crop"),
    )


def _readable(samples: list[Sample], names: tuple[str, ...], skip_bad: bool) -> list[Sample]:
    """The samples that can be decoded; at least one of each class in `names`."""
    bad = unreadable([path for path, _ in samples])
    refuse(bad, len(samples), skip=skip_bad)
    out = {sample.index for sample in bad}
    kept = [sample for i, sample in enumerate(samples) if i not in out]
    left = {label for _, label in kept}
    for label, name in enumerate(names):
        if label not in left:
            raise UtcError(
                f"no image of the class {name!r} can be read",
                where=str(next(path for path, other in samples if other == label).parent),
                fix="replace them, or remove the folder",
                code="data/damaged",
            )
    return kept


def _samples(folder: Path) -> tuple[tuple[str, ...], list[Sample]]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        loose = sum(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())
        raise UtcError(
            "the folder contains no class folders",
            where=str(folder),
            why=f"{loose} images lie in it directly" if loose else "it is empty",
            fix="put the images of each class into a folder named for it",
            code="data/not-found",
        )
    samples: list[Sample] = []
    others: Counter[str] = Counter()
    for label, folder_of_class in enumerate(classes):
        # a link that leads nowhere is a damaged image, and is reported as one
        found = sorted(file for file in folder_of_class.rglob("*") if not file.is_dir() and file.name[0] != ".")
        files = [file for file in found if file.suffix.lower() in SUFFIXES]
        others.update(file.suffix.lower() or "none" for file in found if file.suffix.lower() not in SUFFIXES)
        if not files:
            raise UtcError(
                "the class folder contains no image",
                where=str(folder_of_class),
                fix=f"files that are read end in {', '.join(sorted(SUFFIXES))}",
                code="data/not-found",
            )
        samples += [(file, label) for file in files]
    if others:
        left_out(
            f"{others.total()} files in {folder}, whose suffixes are those of no image: {', '.join(sorted(others))}"
        )
    return tuple(entry.name for entry in classes), samples


def _check_same(train: tuple[str, ...], held: tuple[str, ...], folder: Path) -> None:
    # Labels are positions in the sorted list, so a class that is missing would shift all that follow.
    if train == held:
        return
    only_train, only_held = sorted(set(train) - set(held)), sorted(set(held) - set(train))
    why = [
        f"only in {name}: {', '.join(only)}" for name, only in (("train", only_train), (folder.name, only_held)) if only
    ]
    raise UtcError(
        f"the class folders of train and {folder.name} differ",
        where=str(folder.parent),
        why="; ".join(why),
        fix="give both the same class folders",
        code="data/labels",
    )

"""Images from folders, one folder a class, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.split import stratified

HELD_OUT = ("val", "validation", "test")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})

Sample = tuple[Path, int]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their labels.

    Raises:
        UtcError: on reading a file that is no image, with its path.
    """

    def __init__(self, samples: Iterable[Sample], transform: Callable[[object], Tensor], mode: str = "RGB") -> None:
        self.samples, self.transform, self.mode = list(samples), transform, mode

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                pixels = image.convert(self.mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UtcError(
                "the image file cannot be read",
                where=str(path),
                why=reason,
                fix="replace it or take it away",
                code="data/damaged",
            ) from error
        return self.transform(pixels), label


def load_folders(path: Path, how: Preprocessing, *, seed: int, augment: bool) -> Data:
    """Read image folders; see `load_data` for how they are laid out.

    Raises:
        UtcError: no class folder, no image in one, or other classes in validation than in training.
    """
    held = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
    if (path / "train").is_dir():
        names, train = _samples(path / "train")
        if held is not None:
            held_names, validation = _samples(held)
            _check_same(names, held_names, held)
    elif held is not None:
        raise UtcError(
            f"there is a folder {held.name!r} but no folder 'train'",
            where=str(path),
            fix=f"move the training classes to {path / 'train'}",
            code="data/not-found",
        )
    else:
        names, train = _samples(path)
    if held is None:
        kept, held_out = stratified([label for _, label in train], seed)
        train, validation = [train[i] for i in kept], [train[i] for i in held_out]
    options: dict[str, Any] = {
        "mean": how.mean,
        "std": how.std,
        "interpolation": how.interpolation,
        "crop_pct": how.crop_pct,
    }
    mode = "RGB" if how.input_size[0] == 3 else "L"
    plain = create_transform(how.input_size, is_training=False, **options)
    random = create_transform(how.input_size, is_training=True, **options) if augment else plain
    return Data(ImageFiles(train, random, mode), ImageFiles(validation, plain, mode), len(names), names)


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
    for label, folder_of_class in enumerate(classes):
        files = sorted(
            file for file in folder_of_class.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not files:
            raise UtcError(
                "the class folder contains no image",
                where=str(folder_of_class),
                fix=f"files that are read end in {', '.join(sorted(SUFFIXES))}",
                code="data/not-found",
            )
        samples += [(file, label) for file in files]
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

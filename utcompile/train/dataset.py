"""What the readers of data yield, and how they make tensors of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.utils.data import Dataset

_UNITS = {"regress": ("target", "targets"), "multilabel": ("label", "labels")}


@dataclass(frozen=True)
class Data:
    """Two datasets of `(input, target)`. For image classification: float32 `(C, H, W)`, normalised, and an int.

    Attributes:
        train, validation: map-style datasets with a length.
        num_classes: labels run from 0 to `num_classes - 1`; for `regress`, how many numbers there are per sample.
        class_names: one name per label (or per number).
        task: what it is for: `classify multilabel regress segment text custom`.
        collate: makes a batch of samples, as a `DataLoader` takes it; None for torch's own.
        counts: training samples per class (pixels for `segment`), where they are known.
        standard: mean and standard deviation of each training target of `regress`.
        drawn: whether the validation samples were drawn from one set, because the data has no split.
        preprocessing: how an input is made of a file, as plain data: what a run's `task.json` says.
    """

    train: Dataset[object]
    validation: Dataset[object]
    num_classes: int
    class_names: tuple[str, ...]
    task: str = "classify"
    collate: Callable[[list[object]], object] | None = None
    counts: tuple[int, ...] | None = None
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    drawn: bool = False
    preprocessing: Mapping[str, object] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many there are to train on."""
        return len(self.train)  # type: ignore[arg-type]

    def __str__(self) -> str:
        sizes = f"{self.samples} training and {len(self.validation)} validation samples"  # type: ignore[arg-type]
        if self.task == "custom":
            return sizes
        one, many = _UNITS.get(self.task, ("class", "classes"))
        return f"{sizes} of {self.num_classes} {one if self.num_classes == 1 else many}"


@dataclass(frozen=True)
class Preprocessing:
    """How images become tensors; the fields of timm's `resolve_data_config`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

    def as_dict(self, resize: str) -> dict[str, object]:
        """Plain data for `task.json`.

        Args:
            resize: `crop` for the short side to `size / crop_pct` and the centre; `squash` for both sides to `size`.
        """
        return {
            "kind": "image",
            "size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct if resize == "crop" else 1.0,
            "resize": resize,
        }

"""What the readers of data yield, and how they make tensors of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.data import Dataset


@dataclass(frozen=True)
class Data:
    """Two datasets of `(image, label)`: images are float32 `(C, H, W)`, normalised; labels are ints.

    Attributes:
        train, validation: map-style datasets with a length.
        num_classes: labels run from 0 to `num_classes - 1`.
        class_names: one name a label.
    """

    train: Dataset[object]
    validation: Dataset[object]
    num_classes: int
    class_names: tuple[str, ...]

    def __str__(self) -> str:
        sizes = f"{len(self.train)} training and {len(self.validation)} validation samples"  # type: ignore[arg-type]
        return f"{sizes} of {self.num_classes} classes"


@dataclass(frozen=True)
class Preprocessing:
    """How images become tensors; the fields of timm's `resolve_data_config`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

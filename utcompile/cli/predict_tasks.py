"""What `utcompile predict` prints and writes for tasks other than one class per sample: numbers, and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from utcompile.errors import UtcError
from utcompile.files import replace_file, reported
from utcompile.train.pictures import size_of

if TYPE_CHECKING:
    from utcompile.cli.predictors import Predictor


@dataclass(frozen=True)
class Answer:
    """What a model says of one sample.

    Attributes:
        sample: its file, or its place in an array.
        kind: of the values: `value` of numbers, `share` of the pixels of a class.
        values: by name.
        mask: the file of the mask, where one was written.
    """

    sample: str
    kind: str
    values: tuple[tuple[str, float], ...]
    mask: Path | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        found: dict[str, object] = {"input": self.sample}
        found |= {f"{self.kind}s": [{"label": name, self.kind: value} for name, value in self.values]}
        return found if self.mask is None else {**found, "mask": str(self.mask)}

    def lines(self) -> list[str]:
        """Lines for a person."""
        texts = [
            f"{name} {value:.2%}" if self.kind == "share" else f"{name} {value:.6g}" for name, value in self.values
        ]
        if self.kind == "value":
            return [f"{self.sample}: {text}" for text in texts]
        return [f"{self.sample}: {', '.join(texts)}{f'; {self.mask}' if self.mask else ''}"]


def has_other_answers(outputs: Mapping[str, object]) -> bool:
    """Whether outputs are numbers or masks, and not logits of classes or labels."""
    return outputs.get("task") == "segment" or outputs.get("kind") in ("standardised", "custom")


def answers(predictor: Predictor, inputs: Sequence[str], masks: Path | None, top: int) -> Iterator[Answer]:
    """The numbers of each sample; or the classes of its pixels, with the mask in `masks` where this is given.

    A mask is as large as its image, and named as the image. It is a PNG file whose palette indices are the classes.

    Raises:
        UtcError: the outputs are no masks or numbers, or a mask would replace a file.
    """
    if predictor.outputs.get("task") != "segment":
        yield from _numbers(predictor, inputs)
        return
    if masks is not None:
        _check_free(masks, inputs)
    for names, feeds in predictor.batches(inputs):
        logits = _of_rank(predictor, predictor.logits(feeds), 4, len(names))
        for name, row in zip(names, logits, strict=True):
            yield _masked(predictor.labels, name, row, masks, top)


def _numbers(predictor: Predictor, inputs: Sequence[str]) -> Iterator[Answer]:
    mean, std = (np.asarray(predictor.outputs.get(key, base), float) for key, base in (("mean", 0.0), ("std", 1.0)))
    for names, feeds in predictor.batches(inputs):
        found = predictor.logits(feeds)
        found = found[:, None] if found.ndim == 1 else found
        for name, row in zip(names, _of_rank(predictor, found, 2, len(names)), strict=True):
            values = row.astype(np.float64) * std + mean
            yield Answer(name, "value", tuple((_label(predictor.labels, i), float(v)) for i, v in enumerate(values)))


def _of_rank(predictor: Predictor, found: np.ndarray, rank: int, samples: int) -> np.ndarray:
    if found.ndim != rank or len(found) != samples:
        raise UtcError(
            f"the first output is of shape {found.shape}, and not {samples} x {'C x H x W' if rank == 4 else 'N'}",
            where=predictor.where,
            fix="call the model in Python: utc.OnnxModel",
            code="onnx/inputs",
        )
    return found


def _masked(labels: Sequence[str], name: str, logits: np.ndarray, masks: Path | None, top: int) -> Answer:
    width, height = size_of(Path(name)) if Path(name).is_file() else logits.shape[:0:-1]
    wanted = torch.from_numpy(logits[None, : len(labels) or None].astype(np.float32))
    large = F.interpolate(wanted, (height, width), mode="bilinear", align_corners=False)
    classes = large[0].argmax(0).numpy().astype(np.uint8)
    counts = np.bincount(classes.ravel(), minlength=wanted.shape[1])
    best = [i for i in np.argsort(-counts, kind="stable")[:top] if counts[i]]
    values = tuple((_label(labels, int(i)), float(counts[i] / classes.size)) for i in best)
    return Answer(name, "share", values, None if masks is None else _written(masks / _file(name), classes))


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


def _file(name: str) -> str:
    """`photos/a.jpg` gives `a.png`, and the third row of `a.npz` gives `a-2.png`."""
    path, bracket, row = name.rpartition("[")
    return f"{Path(path).stem}-{row.rstrip(']')}.png" if bracket and row.endswith("]") else f"{Path(name).stem}.png"


def _check_free(masks: Path, inputs: Sequence[str]) -> None:
    files = [masks / _file(name) for name in inputs]
    taken = next((file for i, file in enumerate(files) if file.exists() or file in files[:i]), None)
    if taken is not None:
        raise UtcError(
            "the file exists" if taken.exists() else "two masks would have one name",
            where=str(taken),
            fix="give another folder to --masks, or predict in parts",
            code="path/taken",
        )


def _written(path: Path, classes: np.ndarray) -> Path:
    import io

    image, buffer = Image.fromarray(classes, "P"), io.BytesIO()
    image.putpalette(_palette())
    image.save(buffer, "PNG")
    with reported("the mask cannot be written", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.absolute(), buffer.getvalue())
    return path


def _palette() -> list[int]:
    """256 colours that differ for neighbouring numbers, as PASCAL VOC has them: a number's bits from the top down."""
    return [
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for number in range(256)
        for channel in range(3)
    ]

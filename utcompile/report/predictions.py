"""A look at what a classifier predicts: the confusion of classes, the worst and the best predictions."""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from utcompile.modes import evaluating

SHOWN = 12
_THUMBNAIL = 104


@dataclass(frozen=True)
class Sample:
    """One prediction.

    Attributes:
        truth, guess: names of classes.
        loss: the cross-entropy.
        share: the probability of the true class.
        image: a PNG as a data URI; empty for a text.
        text: empty for an image.
    """

    truth: str
    guess: str
    loss: float
    share: float
    image: str = ""
    text: str = ""


@dataclass(frozen=True)
class Predictions:
    """What a classifier does on a dataset.

    Attributes:
        names: of the classes.
        confusion: rows are true classes, columns predicted ones; the last column is for outputs that are no class.
        worst, best: by loss.
    """

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    worst: tuple[Sample, ...]
    best: tuple[Sample, ...]

    @property
    def accuracy(self) -> float:
        """The share of right ones."""
        total = sum(map(sum, self.confusion))
        return sum(row[i] for i, row in enumerate(self.confusion)) / total if total else 0.0


def look(
    model: nn.Module,
    dataset: Dataset[object],
    names: Sequence[str],
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    collate: Any = None,
    batch_size: int = 64,
    channels_last: bool = True,
) -> Predictions:
    """Run a classifier once over a dataset of `(inputs, label)`.

    Args:
        model: inputs to logits `(B, classes)`; run in eval mode, its modes are restored.
        names: of the classes.
        mean, std: of the images, which are shown without their normalisation.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    classes = len(names)
    confusion = torch.zeros(classes, classes + 1, dtype=torch.long)
    worst: list[tuple[float, int, int, int, float]] = []
    best: list[tuple[float, int, int, int, float]] = []
    index = count()
    with evaluating(model):
        for inputs, labels in DataLoader(dataset, batch_size, collate_fn=collate):
            logits = _logits(_called(model, _moved(inputs, device, channels_last))).float().cpu()
            losses, shares = F.cross_entropy(logits, labels, reduction="none"), logits.softmax(1)
            guesses = logits.argmax(1)
            for label, guess, loss, share in zip(labels, guesses, losses, shares, strict=True):
                at, truth = next(index), int(label)
                confusion[truth, min(int(guess), classes)] += 1
                entry = (float(loss), at, truth, int(guess), float(share[truth]))
                _keep(worst, entry)
                _keep(best, (-entry[0], *entry[1:]))

    def sample(entry: tuple[float, int, int, int, float]) -> Sample:
        loss, at, truth, guess, share = entry
        guessed = names[guess] if guess < classes else str(guess)
        image, text = _shown(dataset, at, mean, std)
        return Sample(names[truth], guessed, abs(loss), share, image, text)

    return Predictions(
        tuple(names),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(sample(e) for e in sorted(worst, reverse=True)),
        tuple(sample(e) for e in sorted(best, reverse=True)),
    )


def _keep(heap: list[tuple[float, int, int, int, float]], entry: tuple[float, int, int, int, float]) -> None:
    if len(heap) < SHOWN:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _called(model: nn.Module, inputs: Any) -> object:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _moved(inputs: Any, device: torch.device, channels_last: bool) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value.to(device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(value.to(device) for value in inputs)
    if channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs.to(device)


def _logits(output: object) -> Tensor:
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values())))
    elif isinstance(output, (tuple, list)):
        output = getattr(output, "logits", output[0])
    assert isinstance(output, Tensor)
    return output


def _shown(dataset: Any, index: int, mean: Sequence[float], std: Sequence[float]) -> tuple[str, str]:
    """A sample as an image or as a text."""
    texts = getattr(dataset, "texts", None)
    if texts is not None:
        found = texts[index]
        return "", " / ".join(filter(None, found)) if isinstance(found, tuple) else str(found)
    inputs = dataset[index][0]
    if isinstance(inputs, Tensor) and inputs.ndim == 3 and inputs.shape[0] in (1, 3):
        return _picture(inputs, mean, std), ""
    return "", f"sample {index}"


def _picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> str:
    from PIL import Image

    shift, scale = (torch.tensor(tuple(values)).view(-1, 1, 1) for values in (mean, std))
    pixels = ((image.float() * scale + shift).clamp(0, 1) * 255).round().byte()
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

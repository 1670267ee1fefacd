"""A look at what a model predicts: the confusion of classes, the worst and the best predictions."""

from __future__ import annotations

import base64
import heapq
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from utcompile.modes import evaluating
from utcompile.train.metrics import called, device_of, moved
from utcompile.train.tasks import IGNORED, Classify, Multilabel, Regress, Segment, Task

if TYPE_CHECKING:
    from PIL import Image

Collate: TypeAlias = Callable[[list[object]], object] | None
SHOWN = 12
_THUMBNAIL = 104
_NUMBERS = 6
_COLOURS = (  # of classes
    (40, 40, 60), (240, 160, 40), (60, 150, 230), (90, 190, 110), (220, 80, 90), (170, 120, 210), (250, 220, 110)
)  # fmt: skip
_Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Sample:
    """One prediction.

    Attributes:
        truth, guess: names of classes or labels, or numbers; empty for a mask, which is drawn.
        loss: of the task.
        share: the probability of the true class, the share of right labels or pixels; None for numbers.
        image: a PNG as a data URI, of a mask with the true and the predicted classes next to it; empty for a text.
        text: empty for an image.
    """

    truth: str
    guess: str
    loss: float
    share: float | None
    image: str = ""
    text: str = ""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on a dataset.

    Attributes:
        names: of the classes.
        pairs: how many samples have a true and a predicted class; the class after the last is for outputs that are
            no class. Empty where a sample has no class.
        worst, best: by loss.
    """

    names: tuple[str, ...]
    pairs: Mapping[tuple[int, int], int]
    worst: tuple[Sample, ...]
    best: tuple[Sample, ...]

    @property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Rows are true classes, columns predicted ones, the last one for no class; empty without classes."""
        if not self.pairs:
            return ()
        count = len(self.names)
        return tuple(tuple(self.pairs.get((i, j), 0) for j in range(count + 1)) for i in range(count))

    @property
    def samples(self) -> int:
        """With a class."""
        return sum(self.pairs.values())

    @property
    def accuracy(self) -> float | None:
        """The share of right ones; None where a sample has no class."""
        right = sum(number for (true, guess), number in self.pairs.items() if true == guess)
        return right / self.samples if self.pairs else None


@dataclass(frozen=True)
class _Guess:
    """The prediction of a sample that may be shown."""

    index: int
    target: Tensor
    found: Tensor
    loss: float


def look(
    model: nn.Module,
    dataset: Dataset[object],
    names: Sequence[str],
    *,
    task: Task | None = None,
    shown: Dataset[object] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    collate: Collate = None,
    batch_size: int = 64,
    channels_last: bool = True,
) -> Predictions:
    """Run a model once over a dataset of inputs and targets.

    Args:
        model: inputs to what the task takes; run in eval mode, its modes are restored.
        names: of the classes, labels or numbers.
        task: one class per sample by default.
        shown: where the images or the texts are, if not in `dataset`.
        mean, std: of the images, which are shown without their normalisation.
    """
    task = task or Classify(0)
    device, index = device_of(model), count()
    pairs = Counter[tuple[int, int]]()
    worst, best = _Most(), _Most()
    with evaluating(model):
        batches = DataLoader(dataset, batch_size, collate_fn=collate)
        for inputs, targets in cast(Iterable[tuple[object, Tensor]], batches):
            output = called(model, moved(_placed(inputs, channels_last), device))
            found = task.predictions(output, targets.to(device)).cpu()
            if isinstance(task, Classify):
                guesses = found.argmax(1).clamp(max=len(names))
                pairs.update(zip(targets.tolist(), guesses.tolist(), strict=True))
            for target, prediction, loss in zip(targets, found, _losses(task, found, targets), strict=True):
                at = next(index)
                if isinstance(task, Segment) and bool((target == IGNORED).all()):
                    continue
                guess = _Guess(at, target, prediction, math.inf if math.isnan(loss) else loss)
                worst.add(guess.loss, guess)
                best.add(-guess.loss, guess)
    sources, normal = shown or dataset, (tuple(mean), tuple(std))
    return Predictions(
        tuple(names),
        pairs,
        tuple(_sample(task, guess, names, sources, normal) for guess in worst.sorted()),
        tuple(_sample(task, guess, names, sources, normal) for guess in best.sorted()),
    )


class _Most:
    """The predictions of the largest ranks."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, _Guess]] = []

    def add(self, rank: float, guess: _Guess) -> None:
        push = heapq.heappush if len(self.heap) < SHOWN else heapq.heappushpop
        push(self.heap, (rank, guess.index, guess))

    def sorted(self) -> list[_Guess]:
        return [guess for _, _, guess in sorted(self.heap, reverse=True)]


def _losses(task: Task, found: Tensor, targets: Tensor) -> list[float]:
    if isinstance(task, Classify):
        losses: list[float] = F.cross_entropy(found, targets, reduction="none").tolist()
        return losses
    return [float(task.loss(found[i : i + 1], targets[i : i + 1])) for i in range(len(targets))]


def _sample(task: Task, guess: _Guess, names: Sequence[str], sources: Dataset[object], normal: _Normal) -> Sample:
    image, text = _shown(sources, guess.index, normal)
    match task:
        case Multilabel():
            said, true = guess.found > 0, guess.target > 0.5
            return Sample(
                _labels(names, true),
                _labels(names, said),
                guess.loss,
                float((said == true).float().mean()),
                image,
                text,
            )
        case Regress():
            numbers = task.restored(guess.found)
            return Sample(_numbers(guess.target), _numbers(numbers), guess.loss, None, image, text)
        case Segment():
            said, counted = guess.found[: len(names)].argmax(0), guess.target != IGNORED
            share = float((said == guess.target)[counted].float().mean())
            masks = [_coloured(guess.target), _coloured(torch.where(counted, said, IGNORED))]
            return Sample("", "", guess.loss, share, _strip(_pixels(sources, guess.index, normal), masks), text)
        case _:
            best = int(guess.found.argmax())
            guessed = names[best] if best < len(names) else str(best)
            share = float(guess.found.softmax(0)[int(guess.target)])
            return Sample(names[int(guess.target)], guessed, guess.loss, share, image, text)


def _labels(names: Sequence[str], flags: Tensor) -> str:
    return ", ".join(name for name, flag in zip(names, flags.tolist(), strict=True) if flag) or "none"


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.reshape(-1)[:_NUMBERS].tolist())


def _placed(inputs: object, channels_last: bool) -> object:
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and channels_last:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def _shown(dataset: Dataset[object], index: int, normal: _Normal) -> tuple[str, str]:
    """A sample as an image or as a text."""
    texts: Sequence[object] | None = getattr(dataset, "texts", None)
    if texts is not None:
        found = texts[index]
        return "", " / ".join(filter(None, found)) if isinstance(found, tuple) else str(found)
    picture = _pixels(dataset, index, normal)
    return ("", f"sample {index}") if picture is None else (_uri(picture), "")


def _pixels(dataset: Dataset[object], index: int, normal: _Normal) -> Image.Image | None:
    """A sample as a small picture; None where it is none."""
    inputs = cast(tuple[object, object], dataset[index])[0]
    if not (isinstance(inputs, Tensor) and inputs.ndim == 3 and inputs.shape[0] in (1, 3)):
        return None
    shift, scale = (torch.tensor(values[: len(inputs)]).view(-1, 1, 1) for values in normal)
    return _picture(((inputs.float() * scale + shift).clamp(0, 1) * 255).round().byte())


def _picture(pixels: Tensor) -> Image.Image:
    """Bytes `(C, H, W)` as a picture that is small enough."""
    from PIL import Image

    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture


def _coloured(mask: Tensor) -> Image.Image:
    """Classes `(H, W)` as colours; what is ignored is white."""
    colours = torch.tensor(_COLOURS, dtype=torch.uint8)
    pixels = colours[mask.clamp(min=0) % len(colours)]
    pixels[mask == IGNORED] = 255
    return _picture(pixels.permute(2, 0, 1))


def _strip(picture: Image.Image | None, masks: Sequence[Image.Image]) -> str:
    """A picture with its masks next to one another."""
    from PIL import Image

    parts = [part.convert("RGB") for part in (picture, *masks) if part is not None]
    whole = Image.new("RGB", (sum(p.width + 2 for p in parts) - 2, max(p.height for p in parts)), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + 2
    return _uri(whole)


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

"""The results of the frozen layers below the first tuner, computed once per sample instead of once per epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from utcompile.errors import UtcError, check_type
from utcompile.memory import read_bound, split_prefix
from utcompile.modes import evaluating
from utcompile.rewrite import TunedModule
from utcompile.train.dataset import Data
from utcompile.train.prefix_rows import Rows, file_is_needed
from utcompile.train.run_folder import STATE
from utcompile.train.run_state import read_state

log = logging.getLogger(__name__)
_WORTH = 0.1  # of the FLOPs of a forward pass: below, reading values costs more than computing them
_PROBE = 2  # samples


class Whole:
    """A model and its data as they are."""

    settings: Mapping[str, bool] = MappingProxyType({})

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.model, self.data = model, data

    def fill(self) -> float:
        """Nothing to compute; returns the seconds that it took."""
        return 0.0


@dataclass(frozen=True)
class How:
    """How samples reach the model.

    Attributes:
        batch_size, workers: of loading.
        device: of the model.
        memory_format: of images.
        precision: makes the context of autocast.
    """

    batch_size: int
    workers: int
    device: torch.device
    memory_format: torch.memory_format
    precision: Callable[[], AbstractContextManager[object]]

    def given(self, images: Tensor) -> Tensor:
        """Images as the model reads them."""
        images = images.contiguous(memory_format=self.memory_format) if images.ndim == 4 else images
        return images.to(self.device, non_blocking=True)


class KeptPrefix:
    """A tuned model from its first tuner on, over samples that are rows of values.

    `model` reads numbers of samples, and `data` yields these with the labels, in the order of the original data.
    """

    settings: Mapping[str, bool] = MappingProxyType({"kept_prefix": True})

    def __init__(self, prefix: nn.Module, rest: nn.Module, data: Data, how: How, probe: _Probe, rows: Rows) -> None:
        self.prefix, self.original, self.how, self.rows = prefix, data, how, rows
        self.labels: list[int] = []
        train, held = len(data.train), len(data.validation)  # type: ignore[arg-type]
        self.model = _FromRows(rest, rows, probe, how.device)
        self.data = replace(data, train=_Numbers(self.labels, 0, train), validation=_Numbers(self.labels, train, held))

    def fill(self) -> float:
        """Compute the rows, once; returns the seconds that it took.

        Batches are made in the order of the data, so a resumed run computes the same numbers.
        """
        if self.labels:
            return 0.0
        started = time.perf_counter()
        with evaluating(self.prefix), self.how.precision():
            for part in (self.original.train, self.original.validation):
                for images, labels in DataLoader(
                    part,
                    self.how.batch_size,
                    num_workers=self.how.workers,
                    collate_fn=_images_and_labels,
                    generator=torch.Generator(),
                ):
                    numbers = torch.arange(len(labels)) + len(self.labels)
                    self.rows.write(numbers, self.model.probe.rows_of(self.prefix(self.how.given(images))))
                    self.labels += labels
        return time.perf_counter() - started


def _images_and_labels(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, list[int]]:
    return torch.stack([image for image, _ in samples]), [label for _, label in samples]


class _FromRows(nn.Module):
    """The rest of a model on rows of values, which it finds by their numbers."""

    def __init__(self, rest: nn.Module, rows: Rows, probe: _Probe, device: torch.device) -> None:
        super().__init__()
        self.rest, self.rows, self.probe, self.device = rest, rows, probe, device

    def forward(self, numbers: Tensor) -> object:
        rows = (v.to(self.device, non_blocking=True) for v in self.rows.read(numbers.cpu()))
        return self.rest(*self.probe.values_of(list(rows)))


class _Numbers(Dataset[tuple[int, int]]):
    """Numbers of samples and their labels."""

    def __init__(self, labels: list[int], start: int, count: int) -> None:
        self.labels, self.start, self.count = labels, start, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.start + index, self.labels[self.start + index]


@dataclass(frozen=True)
class _Probe:
    """What a prefix yields: which values have a row per sample, and the others, which are the same for all."""

    values: tuple[Any, ...]
    is_row: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Bytes per sample."""
        return sum(v[:1].numel() * v.element_size() for v in self.rows_of(self.values))

    def rows_of(self, values: Sequence[Any]) -> list[Tensor]:
        return [v for v, is_row in zip(values, self.is_row, strict=True) if is_row]

    def values_of(self, rows: Sequence[Tensor]) -> list[Any]:
        """All values, in order."""
        left = iter(rows)
        return [next(left) if is_row else v for v, is_row in zip(self.values, self.is_row, strict=True)]

    @classmethod
    def of(cls, prefix: nn.Module, images: Tensor) -> _Probe | None:
        """None where a row depends on other samples, or a value is neither a row nor constant."""
        others = torch.cat([images[:1], images[1:].flip(0) / 2])
        together, mixed, alone = (prefix(given) for given in (images, others, images[:1]))
        is_row = tuple(_is_row(v, w, len(images)) for v, w in zip(together, alone, strict=True))
        fits = all(
            torch.equal(v[0], m[0]) if row else _same(v, m) and _same(v, w)
            for v, m, w, row in zip(together, mixed, alone, is_row, strict=True)
        )
        return cls(tuple(together), is_row) if fits else None


def _is_row(value: object, alone: object, count: int) -> bool:
    return (
        isinstance(value, Tensor)
        and isinstance(alone, Tensor)
        and value.ndim > 0
        and (value.shape[0], alone.shape[:1]) == (count, (1,))
        and value.shape[1:] == alone.shape[1:]
    )


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def keep_prefix(
    model: nn.Module, data: Data, how: How, bound: int | str | None, *, epochs: int, out: Path, resume: bool
) -> Whole | KeptPrefix:
    """A model and its data with the results of the frozen layers kept, or as they are where that is not possible.

    Args:
        bound: the most bytes of all results, as 4_000_000_000 or "4GB"; None: nothing is kept.
        epochs: of the run.
        out: its folder, whose file system has the file, if there is one.
        resume: go on as the run in `out` began.

    Raises:
        UtcError: the bound is no size; or the run to be resumed kept them, and here it is not possible.
    """
    check_type(bound, (int, str, NoneType), "prefix_cache", 'a size, as "4GB", or None')
    size = None if bound is None else read_bound(bound)
    began_kept = resume and _was_kept(out)
    wanted = size is not None and epochs > 1 and (began_kept or not resume)
    found = _kept(model, data, how, size or 0, out) if wanted else "it is switched off, or there is one epoch"
    if isinstance(found, KeptPrefix):
        return found
    if began_kept:
        raise UtcError(
            "the run kept the results of its frozen layers, and now they cannot be kept",
            where=str(out),
            why=found,
            fix="give the `prefix_cache` that it had, or start a new run",
            code="train/run",
        )
    log.info("the frozen layers are computed in every epoch: %s", found)
    return Whole(model, data)


def _was_kept(out: Path) -> bool:
    path = out / "last" / STATE
    try:
        return bool(read_state(path, ())["settings"].get("kept_prefix")) if path.is_file() else False
    except UtcError:  # `resume` reports it
        return False


def _kept(model: nn.Module, data: Data, how: How, bound: int, out: Path) -> KeptPrefix | str:
    """The model cut in two, or why not."""
    count = len(data.train) + len(data.validation)  # type: ignore[arg-type]
    if not isinstance(model, TunedModule):
        return "the model is no TunedModule"
    if len(data.train) < 2:  # type: ignore[arg-type]
        return "there is one sample"
    try:
        prefix, rest = split_prefix(model)
    except UtcError as error:
        return f"{error.what}: {error.why}"
    samples: list[Any] = [data.train[i] for i in range(min(_PROBE, len(data.train)))]  # type: ignore[arg-type]
    if getattr(data, "collate", None) is not None or not all(_is_image_and_label(s) for s in samples):
        return "a sample is not an image and a label"
    model.to(how.device)
    images = how.given(_images_and_labels(samples)[0])
    with evaluating(prefix, rest), how.precision():
        probe = _Probe.of(prefix, images)
        if probe is None:
            return "what they yield for a sample depends on the other samples of a batch"
        work = _flops(prefix, images[:1])
        share = work / max(work + _flops(rest, *probe.values_of([v[:1] for v in probe.rows_of(probe.values)])), 1)
    if share < _WORTH:
        return f"they do {share:.0%} of the work"
    size = probe.size * count
    if size > bound:
        return f"their results are {size / 1e9:.1f} GB, and the bound is {bound / 1e9:.1f} GB"
    try:
        rows = Rows(
            [v[:1] for v in probe.rows_of(probe.values)], count, _existing(out) if file_is_needed(size) else None
        )
    except OSError as error:
        return f"there is no room for {size / 1e9:.1f} GB: {error}"
    log.info("the results of the frozen layers are kept: %.1f MB", size / 1e6)
    return KeptPrefix(prefix, rest, data, how, probe, rows)


def _is_image_and_label(sample: Any) -> bool:
    return isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], Tensor) and type(sample[1]) is int


def _existing(path: Path) -> Path:
    """The nearest folder that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def _flops(module: nn.Module, *given: object) -> int:
    with FlopCounterMode(display=False) as counter:
        module(*given)
    return counter.get_total_flops()

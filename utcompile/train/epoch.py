"""One epoch: train on every sample once, then validate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import NoneType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.train.dataset import Data
from utcompile.train.metrics import evaluate, logits_of
from utcompile.train.randomness import seed_epoch
from utcompile.train.schedule import Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("no", "bf16", "fp16")
_WHOLE = dict.fromkeys(("epochs", "batch_size", "seed", "samples"), "a whole number")
_TEXTS = dict.fromkeys(("schedule", "precision"), "a text")
_WORDS = {**_WHOLE, **_TEXTS}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_WHOLE, (int,)),
    **dict.fromkeys(_TEXTS, (str,)),
    "grad_clip": (int, float, NoneType),
}


@dataclass(frozen=True)
class Settings:
    """What decides a run's result; a run is resumed with the same. The fields are the arguments of `fit`."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: str
    warmup: float
    seed: int
    precision: str
    label_smoothing: float
    grad_clip: float | None
    samples: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_type(value, _KINDS.get(name, (int, float)), name, _WORDS.get(name, "a number"))
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UtcError(f"{name} is {getattr(self, name)}", fix="give 1 or more", code="train/settings")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise UtcError(f"lr is {self.lr}", fix="give a positive learning rate, e.g. 1e-3", code="train/settings")
        if self.seed < 0:
            raise UtcError(f"seed is {self.seed}", fix="give 0 or more", code="train/settings")
        if self.precision not in PRECISIONS:
            raise UtcError(
                f"unknown precision {self.precision!r}",
                fix=did_you_mean(self.precision, PRECISIONS),
                code="train/settings",
            )
        if not 0 <= self.label_smoothing < 1:
            raise UtcError(
                f"label_smoothing is {self.label_smoothing}",
                fix="give a share from 0 to below 1",
                code="train/settings",
            )
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise UtcError(f"grad_clip is {self.grad_clip}", fix="give a positive norm, or None", code="train/settings")

    @property
    def batches(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.samples / self.batch_size)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Epochs:
    """Runs epochs of one model; keeps what lasts longer than one epoch.

    Args:
        model, optimizer: as `accelerator.prepare` returned them.
        schedule: sets the learning rate after each step.
        memory_format: of the images the model is given.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        data: Data,
        settings: Settings,
        *,
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.schedule = accelerator, model, optimizer, schedule
        self.settings, self.num_classes, self.memory_format = settings, data.num_classes, memory_format
        self.order = torch.Generator()
        # pin_memory warns where there is no accelerator.
        pin = accelerator.device.type == "cuda"
        self.train = DataLoader(
            data.train, settings.batch_size, shuffle=True, generator=self.order, num_workers=workers, pin_memory=pin
        )
        self.validation = DataLoader(data.validation, settings.batch_size, num_workers=workers, pin_memory=pin)

    def run(self, epoch: int, advance: Callable[[str], None]) -> dict[str, float]:
        """Train and validate in epoch `epoch` (from 1); returns its line of the history.

        Raises:
            UtcError: the loss is not finite, or the logits do not fit the classes.
        """
        started = time.perf_counter()
        self.order.manual_seed(seed_epoch(self.settings.seed, epoch))
        self.model.train()
        total, seen = 0.0, 0
        for index, (inputs, labels) in enumerate(self._batches(self.train)):
            step = (epoch - 1) * self.settings.batches + index + 1
            lr = self.optimizer.param_groups[0]["lr"]
            loss = self._step(inputs, labels, step, lr)
            self.schedule.after(step)
            total, seen = total + loss * len(labels), seen + len(labels)
            advance(f"epoch {epoch}/{self.settings.epochs}, loss {loss:.3f}")
        accuracy, loss = evaluate(self.model, self._batches(self.validation))
        return {
            "epoch": epoch,
            "train_loss": total / seen,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "lr": lr,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _step(self, inputs: Tensor, labels: Tensor, step: int, lr: float) -> float:
        logits = logits_of(self.model(inputs)).float()
        if logits.shape[1] < self.num_classes:
            raise UtcError(
                f"the model has {logits.shape[1]} outputs, the data {self.num_classes} classes",
                fix=f"give the model a head of {self.num_classes} classes (--num-classes)",
                code="train/model",
            )
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UtcError(
                f"the loss is {value} at step {step}",
                why=f"the learning rate is {lr:.3g} there, and at most {self.settings.lr:.3g}",
                fix="take a lower lr, or set grad_clip=1.0; in fp16, take bf16 or no autocast",
                code="train/loss",
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.settings.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return value

    def _batches(self, loader: DataLoader[object]) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in loader:
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=self.memory_format)
            yield (
                inputs.to(self.accelerator.device, non_blocking=True),
                labels.to(self.accelerator.device, non_blocking=True),
            )

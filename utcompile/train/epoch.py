"""One epoch: train on every sample once, then validate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from utcompile.errors import UtcError
from utcompile.train.accumulation import Accumulation
from utcompile.train.averages import Averages
from utcompile.train.dataset import Data
from utcompile.train.metrics import called, measure, moved
from utcompile.train.mixing import Mixing
from utcompile.train.optimizers import base_rate
from utcompile.train.processes import Processes
from utcompile.train.randomness import seed_epoch
from utcompile.train.schedule import Schedule
from utcompile.train.settings import Settings
from utcompile.train.tasks import Task
from utcompile.train.tasks.base import Counts

if TYPE_CHECKING:
    from accelerate import Accelerator


ONE = Processes()


class Epochs:
    """Runs epochs of one model; keeps what lasts longer than one epoch.

    Args:
        model, optimizer: as `accelerator.prepare` returned them.
        schedule: sets the learning rate after each step.
        averages: of the parameters, which are validated in their place.
        processes: that share each batch.
        memory_format: of the images the model is given.
        mixing: blends the images of a batch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        data: Data,
        task: Task,
        settings: Settings,
        *,
        averages: Averages | None = None,
        processes: Processes = ONE,
        workers: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
        mixing: Mixing | None = None,
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.schedule = accelerator, model, optimizer, schedule
        self.settings, self.task, self.averages, self.memory_format = settings, task, averages, memory_format
        self.order, self.processes, self.mixing = torch.Generator(), processes, mixing
        # pin_memory warns where there is no accelerator.
        pin = accelerator.device.type == "cuda"
        load = partial(DataLoader, num_workers=workers, pin_memory=pin, collate_fn=data.collate)
        order = RandomSampler(data.train, generator=self.order)  # type: ignore[arg-type]
        batches = processes.batches(order, settings.batch_size)
        self.train = load(data.train, batch_sampler=batches, generator=self.order)
        self.validation = load(data.validation, settings.batch_size)
        self.batches = Accumulation(settings.batch_size)

    def run(self, epoch: int, advance: Callable[[str], None]) -> dict[str, float]:
        """Train and validate in epoch `epoch` (from 1); returns its line of the history.

        Raises:
            UtcError: the loss is not finite, or the outputs do not fit the data.
        """
        started = time.perf_counter()
        self.order.manual_seed(seed_epoch(self.settings.seed, epoch))
        self.model.train()
        total, seen = 0.0, 0.0
        for index, (inputs, targets) in enumerate(self._batches(self.train)):
            step = (epoch - 1) * self.settings.steps + index // self.settings.accumulate + 1
            lr = base_rate(self.optimizer)
            if self.mixing is not None:
                inputs, targets = self.mixing(inputs, targets)
            loss, counts = self._learn(inputs, targets, index, step, lr)
            total, seen = total + loss * counts, seen + counts
            advance(f"epoch {epoch}/{self.settings.epochs}, loss {loss:.3f}")
        with self.averages.in_place() if self.averages else nullcontext():
            measured = measure(self.model, self._batches(self.validation), self.task)
        if not math.isfinite(measured["loss"]):
            raise not_finite(f"the validation loss is {measured['loss']} after epoch {epoch}", lr, self.settings.lr)
        return {
            "epoch": epoch,
            "train_loss": total / seen if seen else 0.0,
            **{f"validation_{name}": value for name, value in measured.items()},
            "lr": lr,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _learn(self, inputs: object, targets: Tensor, index: int, step: int, lr: float) -> tuple[float, float]:
        """Add a batch's gradient, and step where the batches of one step are complete.

        Returns:
            The loss, and how much the batch counts in a mean over several.
        """
        predictions = self.task.predictions(called(self.model, inputs), targets)
        loss = self.task.loss(predictions, targets)
        samples = self._samples_of_batch(index)
        value, shared, counts = self.processes.joined(loss, samples, partial(self._counted, targets, samples))
        if not math.isfinite(value):
            if not all_finite((inputs, targets)):
                raise UtcError(
                    f"the loss is {value} at step {step}",
                    why="the inputs or targets of this batch contain nan or infinity",
                    fix="remove them from the data",
                    code="train/loss",
                )
            raise not_finite(f"the loss is {value} at step {step}", lr, self.settings.lr)
        place, every = index % self.settings.accumulate, self.settings.accumulate
        if not place:
            self.optimizer.zero_grad(set_to_none=True)
            self.batches = Accumulation(self._samples_of_step(index))
        self.accelerator.backward(shared if every == 1 else shared * self.batches.share(counts, samples))
        if place + 1 == every or index + 1 == self.settings.batches:
            self._step(step)
        return value, counts

    def _step(self, step: int) -> None:
        self.batches.correct(self.model.parameters())
        if self.settings.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self.schedule.after(step)
        if self.averages is not None:
            self.averages.update()

    def _counted(self, targets: Tensor, samples: int) -> float:
        return self.task.counted(targets) if isinstance(self.task, Counts) else float(self.processes.size(samples))

    def _samples_of_batch(self, index: int) -> int:
        return min(self.settings.batch_size, self.settings.samples - index * self.settings.batch_size)

    def _samples_of_step(self, index: int) -> int:
        size = self.settings.batch_size * self.settings.accumulate
        return min(size, self.settings.samples - index // self.settings.accumulate * size)

    def _batches(self, loader: DataLoader[object]) -> Iterator[tuple[object, Tensor]]:
        for inputs, targets in loader:
            yield self._placed(inputs), moved(targets, self.accelerator.device)

    def _placed(self, inputs: object) -> object:
        if isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        return moved(inputs, self.accelerator.device)


def not_finite(what: str, lr: float, highest: float) -> UtcError:
    """The error for a loss that is not finite."""
    return UtcError(
        what,
        why=f"the learning rate is {lr:.3g} there, and at most {highest:.3g}",
        fix="take a lower lr, or set grad_clip=1.0; in fp16, take bf16 or no autocast",
        code="train/loss",
    )


def all_finite(value: object) -> bool:
    """Whether no tensor in a value contains nan or infinity."""
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(all_finite, value))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())

"""Learning rates by step: timm's schedules and torch's one-cycle, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import OneCycleLR

from utcompile.errors import UtcError, did_you_mean

SCHEDULES = ("cosine", "onecycle", "linear", "poly", "step", "constant")


class Schedule(Protocol):
    """Sets the learning rate of an optimizer for each of its steps."""

    def after(self, step: int) -> None:
        """Set the rate for what follows the first `step` steps."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def create_schedule(name: str, optimizer: torch.optim.Optimizer, *, lr: float, steps: int, warmup: float) -> Schedule:
    """A schedule over `steps` steps, of which the share `warmup` rises to `lr`.

    `cosine`, `onecycle`, `linear` and `poly` (power 0.9) then fall to nearly zero, `step` takes a tenth after each
    third of the steps, and `constant` stays. A group of the optimizer with `lr_scale` gets that share of the rate.

    Raises:
        UtcError: no such schedule, or `warmup` outside [0, 1).
    """
    if name not in SCHEDULES:
        raise UtcError(f"unknown schedule {name!r}", fix=did_you_mean(name, SCHEDULES), code="train/settings")
    if not 0 <= warmup < 1:
        raise UtcError(
            f"warmup is {warmup}", fix="give the share of all steps, from 0 to below 1", code="train/settings"
        )
    if name == "onecycle":
        return _OneCycle(optimizer, lr, steps, warmup)
    return _Timm(name, optimizer, lr, steps, warmup)


_TIMM: Mapping[str, Callable[..., Scheduler]] = {
    "cosine": lambda optimizer, steps, **rise: CosineLRScheduler(optimizer, t_initial=steps, **rise),
    "linear": lambda optimizer, steps, **rise: PolyLRScheduler(optimizer, t_initial=steps, power=1.0, **rise),
    "poly": lambda optimizer, steps, **rise: PolyLRScheduler(optimizer, t_initial=steps, power=0.9, **rise),
    "step": lambda optimizer, steps, **rise: StepLRScheduler(
        optimizer, decay_t=max(1, steps / 3), decay_rate=0.1, **rise
    ),
    "constant": lambda optimizer, steps, **rise: StepLRScheduler(optimizer, decay_t=2 * steps, decay_rate=1.0, **rise),
}


class _Timm:
    def __init__(self, name: str, optimizer: torch.optim.Optimizer, lr: float, steps: int, warmup: float) -> None:
        rising = round(warmup * steps)
        self.scheduler = _TIMM[name](
            optimizer,
            max(2, steps - rising),  # of one step timm logs that it does nothing; no step follows it anyway
            warmup_t=rising,
            warmup_lr_init=lr / (rising + 1),  # not zero: the first step should count
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def after(self, step: int) -> None:
        self.scheduler.step_update(step)

    def state_dict(self) -> dict[str, object]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.scheduler.load_state_dict(state)


class _OneCycle:
    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, steps: int, warmup: float) -> None:
        total = steps + 1  # one more than there are, for `after` is called after the last one too
        # A rise of fewer than two steps divides by zero in torch.
        rise = max(warmup, min(1.0, 2 / total))
        highest = [lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        self.scheduler = OneCycleLR(optimizer, highest, total_steps=total, pct_start=rise, cycle_momentum=False)

    def after(self, step: int) -> None:
        self.scheduler.step()

    def state_dict(self) -> dict[str, object]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.scheduler.load_state_dict(state)

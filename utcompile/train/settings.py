"""The settings of a run: what decides its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType

from utcompile.errors import UtcError, check_type, did_you_mean

PRECISIONS = ("no", "bf16", "fp16")
CLASS_WEIGHTS = ("none", "balanced")
# What an optimizer makes of these fits into float32; of a seed, what torch takes.
MOST = {"lr": 3e37, **dict.fromkeys(("weight_decay", "mixup", "cutmix"), 1e8), "seed": 2**63 - 1}
_WHOLE = dict.fromkeys(("epochs", "batch_size", "seed", "samples", "accumulate"), "a whole number")
_TEXTS = dict.fromkeys(("schedule", "precision", "optimizer", "task", "metric", "class_weights"), "a text")
_RATES = dict.fromkeys(("rates", "decays"), "a mapping from the names of rules to numbers")
_WORDS = {**_WHOLE, **_TEXTS, **_RATES}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_WHOLE, (int,)),
    **dict.fromkeys(_TEXTS, (str,)),
    **dict.fromkeys(_RATES, (dict,)),
    **dict.fromkeys(("grad_clip", "ema"), (int, float, NoneType)),
    "patience": (int, NoneType),
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
    optimizer: str = "adamw"
    accumulate: int = 1
    patience: int | None = None
    ema: float | None = None
    class_weights: str = "none"
    rates: dict[str, float] = field(default_factory=dict)
    decays: dict[str, float] = field(default_factory=dict)
    task: str = "classify"
    metric: str = "accuracy"
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_type(value, _KINDS.get(name, (int, float)), name, _WORDS.get(name, "a number"))
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise _wrong(name, getattr(self, name), "give 1 or more")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise _wrong("lr", self.lr, "give a positive learning rate, e.g. 1e-3")
        for name in ("weight_decay", "mixup", "cutmix"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise _wrong(name, getattr(self, name), "give 0 or more")
        if self.seed < 0:
            raise _wrong("seed", self.seed, "give 0 or more")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise _wrong(name, getattr(self, name), f"give at most {most:g}")
        _check_word("precision", self.precision, PRECISIONS)
        if not 0 <= self.label_smoothing < 1:
            raise _wrong("label_smoothing", self.label_smoothing, "give a share from 0 to below 1")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise _wrong("grad_clip", self.grad_clip, "give a positive norm, or None")
        if self.patience is not None and self.patience < 1:
            raise _wrong("patience", self.patience, "give 1 epoch or more, or None")
        if self.ema is not None and not 0 < self.ema < 1:
            raise _wrong("ema", self.ema, "give a share between 0 and 1, e.g. 0.99, or None")
        _check_word("class_weights", self.class_weights, CLASS_WEIGHTS)
        self._check_groups()

    def _check_groups(self) -> None:
        for name, group in (("rates", self.rates), ("decays", self.decays)):
            for rule, value in group.items():
                check_type(value, (int, float), f"{name}[{rule!r}]", "a number")
                most = MOST["lr" if name == "rates" else "weight_decay"]
                if not 0 <= value <= most:
                    raise _wrong(f"{name}[{rule!r}]", value, f"give a number from 0 to {most:g}")

    @property
    def batches(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.samples / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the optimizer per epoch."""
        return math.ceil(self.batches / self.accumulate)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def completed(cls, saved: Mapping[str, object]) -> dict[str, object]:
        """Settings that a run saved, with the defaults of those that came later."""
        made = {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default
            for f in fields(cls)
            if f.default is not MISSING or f.default_factory is not MISSING
        }
        return {**made, **saved}


def _check_word(name: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UtcError(f"unknown {name} {word!r}", fix=did_you_mean(word, known), code="train/settings")


def _wrong(name: str, value: object, fix: str) -> UtcError:
    return UtcError(f"{name} is {value}", fix=fix, code="train/settings")

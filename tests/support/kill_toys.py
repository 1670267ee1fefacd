"""Processes that die before their n-th operation on files, and a small tuned run to kill."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import utcompile as utc
from support.train_toys import toy_model
from utcompile.train import Data, TrainResult, fit

# every way in which the package changes files
OPERATIONS = "open write fsync replace rename unlink mkdir rmdir ftruncate".split()
RULES = """
version: 1
name: killed
rules:
  - {name: all, match: {op: conv2d}, insert: {weight: h, tuner: {kind: lora, r: 2}}}
train: ["pattern:head"]
"""


class Killed(BaseException):
    """What a killed process does not get to see."""


def raise_killed() -> None:
    raise Killed


@contextmanager
def dying(before: int, die: Callable[[], None] = raise_killed) -> Iterator[list[str]]:
    """Inside, the `before`-th operation on files does not happen, nor any later one; the list has those that did."""
    done: list[str] = []
    originals = {name: getattr(os, name) for name in OPERATIONS}

    def counted(name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= before:
                die()
            done.append(name)
            return originals[name](*args, **kwargs)

        return operation

    try:
        for name in OPERATIONS:
            setattr(os, name, counted(name))
        yield done
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def make_tuned() -> utc.TunedModule:
    """A tuned model, always the same."""
    torch.manual_seed(0)
    return copy.deepcopy(_TUNED[0] if _TUNED else _TUNED.append(_compiled()) or _TUNED[0])


_TUNED: list[utc.TunedModule] = []


def _compiled() -> utc.TunedModule:
    return utc.compile(toy_model().requires_grad_(False).eval(), RULES, torch.randn(2, 3, 12, 12), verify="shapes")


def train(tuned: utc.TunedModule, data: Data, out: Path, *, seed: int = 0, resume: bool = False) -> TrainResult:
    save, load = partial(utc.save_tuners, tuned), partial(utc.load_tuners, tuned)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 40, "lr": 1e-2, "progress": False, "cpu": True}
    return fit(tuned, data, out=out, save=save, load=load, resume=resume, seed=seed, **options)


def trained(tuned: utc.TunedModule) -> list[torch.Tensor]:
    """A copy of everything that trains."""
    return [p.detach().clone() for p in tuned.parameters() if p.requires_grad]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

"""`load_task` and `set_task`, for every kind of tuned model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.whole import Whole


def load_task(tuned: nn.Module, name: str, folder: str | Path) -> None:
    """Add a task from a checkpoint of the same base and rules; `set_task` puts it in place.

    The same as `TunedModule.add_task`, also for a model of which parts are tuned (`within=`).

    Args:
        tuned: the model, whole or with tuned parts, or what wraps it.
        name: of the task; what the model has now is the task `default`.
        folder: the checkpoint.

    Raises:
        UtcError: as `load_tuners`; or there is a task of that name.
    """
    whole = Whole.of(tuned, "load_task")
    whole.tasks.add(whole.module, name, folder)


def set_task(tuned: nn.Module, name: str) -> None:
    """Put a task in place: the model then computes with its tuners and head.

    The same as `TunedModule.set_task`, also for a model of which parts are tuned (`within=`).

    Raises:
        UtcError: there is no such task.
    """
    whole = Whole.of(tuned, "set_task")
    for module in tuned.modules():
        if isinstance(module, TunedModule) and module._flat is not None:
            module.set_task(name)  # which is refused
    whole.tasks.put(whole.module, name)
    if not whole.is_one_graph:  # a copy of the user's class copies what it finds, and the places are others there
        whole.module.__dict__.pop("_task_slots", None)

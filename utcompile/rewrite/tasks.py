"""Several tasks on one tuned module: each has its tuners and `train:` parts, and one of them is in place at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.graph import owner_path
from utcompile.rewrite.layer_sizes import fit_sizes

FIRST = "default"
Tensors = dict[str, torch.Tensor]
Store = dict[str, torch.Tensor | None]
Slot = tuple[Store, str]


class Tasks:
    """The tensors of tasks by name. Those of the current one are in the module, those of the others wait here.

    Args:
        tensors_of: the tensors that a checkpoint of a tuned module has, by their names there.
        read_tensors: reads them from a folder, whose head may have another number of classes.

    Attributes:
        current: the task in place.
        waiting: the others: their tensors by the names that a checkpoint has for them.
    """

    def __init__(self, tensors_of: Callable[..., Tensors], read_tensors: Callable[..., Tensors]) -> None:
        self.current = FIRST
        self.waiting: dict[str, Tensors] = {}
        self._tensors_of, self._read_tensors = tensors_of, read_tensors

    def alike(self) -> Tasks:
        """New ones, that read and write as these do."""
        return Tasks(self._tensors_of, self._read_tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """All tasks, the current one first."""
        return (self.current, *self.waiting)

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move or cast the tensors that wait, as the module's own are."""
        with torch.no_grad():
            for tensors in self.waiting.values():
                for value in tensors.values():
                    value.data = function(value.data)

    def add(self, tuned: nn.Module, name: str, folder: str | Path) -> None:
        """Read a checkpoint as a task, which is not put in place yet; its head may have another number of classes."""
        check_type(name, str, "name", "a task's name")
        if name in self.names:
            raise UtcError(
                f"there is a task {name!r} already",
                fix=f"give another name than {', '.join(self.names)}",
                code="checkpoint/task",
            )
        wanted = self._tensors_of(tuned)
        found = self._read_tensors(tuned, folder, wanted, new_head=True)
        check_heads(found, wanted, str(folder))
        self.waiting[name] = {key: as_like(found[key], mine) for key, mine in wanted.items()}

    def put(self, tuned: nn.Module, name: str) -> None:
        """Put a task in place. The graph stays as it is: parameters are exchanged, and nothing is copied."""
        check_type(name, str, "name", "a task's name")
        if name == self.current:
            return
        if name not in self.waiting:
            raise UtcError(
                f"there is no task {name!r:.80}", fix=did_you_mean(str(name), self.names), code="checkpoint/task"
            )
        slots = self._slots(tuned)
        coming = self.waiting.pop(name)
        for key, tensor in coming.items():  # the model may have been moved or cast meanwhile
            store, entry = slots[key][0]
            now = store[entry]
            assert now is not None
            tensor.data = tensor.data.to(now.device, now.dtype)
        leaving: Tensors = {}
        for key, places in slots.items():
            owner, attribute = places[0]
            value = owner[attribute]
            assert value is not None
            leaving[key] = value
            for owner, attribute in places:
                owner[attribute] = coming[key]
        if any(tensor.shape != leaving[key].shape for key, tensor in coming.items()):
            fit_sizes(tuned)
        self.waiting[self.current], self.current = leaving, name

    def _slots(self, tuned: nn.Module) -> dict[str, list[Slot]]:
        """Where each tensor of a checkpoint is in the module; found once, and again in a copy."""
        known: dict[str, list[Slot]] | None = tuned.__dict__.get("_task_slots")
        if known is None:
            every = _places(tuned.modules())
            known = {key: every[id(value)] for key, value in self._tensors_of(tuned).items()}
            tuned.__dict__["_task_slots"] = known
        return known


def _places(modules: Iterable[nn.Module]) -> Mapping[int, list[Slot]]:
    found: dict[int, list[Slot]] = {}
    for module in modules:
        for store in (cast("Store", module._parameters), module._buffers):
            for name, value in store.items():
                if value is not None:
                    found.setdefault(id(value), []).append((store, name))
    return found


def as_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor of a checkpoint as one of a module: on its device, of its dtype, a parameter where that is one."""
    value = value.to(device=like.device, dtype=like.dtype)
    return nn.Parameter(value, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else value


def check_heads(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    """A number of rows may differ where it is that of classes: in a matrix, and in the bias of its module."""
    differing = [key for key, mine in wanted.items() if key.startswith("train:") and found[key].shape != mine.shape]
    heads = {owner_path(key) for key in differing if wanted[key].dim() > 1}
    for key in differing:
        if owner_path(key) not in heads:
            raise UtcError(
                f"{key} has the shape {list(found[key].shape)} in the checkpoint, {list(wanted[key].shape)} here",
                where=where,
                why="only a head may have another number of classes",
                fix="compile another module for this task",
                code="checkpoint/shape",
            )

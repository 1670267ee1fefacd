"""The tensors of tasks: read from runs, put in place of a module's own in a call, and turned into inputs of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from utcompile.deploy.frontier import LIVE, Live
from utcompile.deploy.widths import sites_of, with_the_files_factors
from utcompile.errors import UtcError
from utcompile.rewrite import TunedModule
from utcompile.rewrite.checkpoint import read_tensors
from utcompile.rewrite.manifest import load_manifest
from utcompile.rewrite.tasks import as_like, check_heads
from utcompile.rewrite.whole import tensors_of

Tensors = dict[str, Tensor]
Values = dict[str, np.ndarray]


class Swapped(nn.Module):
    """A module with other tensors in place of some tensors, in every call; nothing is copied."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the module computes with the other tensors."""
        return torch.func.functional_call(self.module, self.tensors, args, kwargs)


def parameters_of(tuned: TunedModule) -> dict[str, str]:
    """The names that a module has for the tensors of a checkpoint, by their names there."""
    every = [*tuned.named_parameters(remove_duplicate=False), *tuned.named_buffers(remove_duplicate=False)]
    names: dict[int, str] = {}
    for name, tensor in every:
        names.setdefault(id(tensor), name)
    return {key: names[id(tensor)] for key, tensor in tensors_of(tuned).items()}


def read_task(tuned: TunedModule, folder: str | Path) -> Tensors:
    """A run's tensors by the names that the module has for them.

    Its head may have another number of classes, and its tuners another rank or width.

    Raises:
        UtcError: no run, or one of another base or other rules.
    """
    wanted = tensors_of(tuned)
    found = read_tensors(tuned, folder, wanted, new_head=True, new_widths=True)
    check_heads(found, wanted, str(folder))
    theirs = {site.id: site.config for site in load_manifest(folder).sites}
    found = with_the_files_factors(found, sites_of(tuned), theirs, str(folder))
    names = parameters_of(tuned)
    return {names[key]: as_like(found[key], mine).detach() for key, mine in wanted.items()}


class Builder:
    """Runs the part of the graph above the frontier: from a task's tensors to the inputs of the file."""

    def __init__(self, model: bytes | str, lives: Sequence[Live] | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes are private to the extension module
            raise UtcError(
                "the builder of the tasks cannot be opened",
                where=str(model) if isinstance(model, str) else None,
                why=str(error).strip().partition("\n")[0],
                fix="export the file again",
                code="export/tasks",
            ) from error
        self._names = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name.removeprefix(LIVE) for entry in self._session.get_outputs()]
        self._scalars = {live.name for live in lives or () if live.is_scalar}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that it takes."""
        return tuple(self._names)

    def __call__(self, tensors: Mapping[str, Tensor]) -> Values:
        """The inputs of the file for a task."""
        try:
            results = self._session.run(None, arrays_of({name: tensors[name] for name in self._names}))
        except Exception as error:
            raise UtcError(
                "the builder of the tasks cannot take the tensors of a task",
                why=str(error).strip().partition("\n")[0][:300],
                fix="give the task the rank and the width that the others have",
                code="export/disagrees",
            ) from error
        # an adapter has no values without a dimension
        return {
            name: np.ascontiguousarray(np.atleast_1d(value)) for name, value in zip(self._outputs, results, strict=True)
        }


def arrays_of(tensors: Mapping[str, Tensor]) -> Values:
    """Tensors as arrays."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}


def serialized(model: ir.Model) -> bytes:
    """A small model as bytes."""
    try:
        return ir.serde.serialize_model(model).SerializeToString()
    except Exception as error:  # protobuf's own, by version
        raise UtcError(
            "what the tuners make of their tensors is too large for a file",
            why=str(error).partition("\n")[0],
            fix="use rules with `how: branch`, which read no frozen weight, or export one folded file per task",
            code="export/tasks",
        ) from error

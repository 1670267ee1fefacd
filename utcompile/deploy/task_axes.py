"""The axes in which the trained tensors of tasks may differ: the classes of each head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from utcompile.deploy.call import Call
from utcompile.deploy.references import reference
from utcompile.deploy.task_files import AxisNames
from utcompile.deploy.task_values import Swapped
from utcompile.errors import UtcError
from utcompile.graph import owner_path
from utcompile.rewrite import TunedModule

CLASSES = "classes"
Varying = dict[str, AxisNames]
"""Names of trained tensors, and per dimension the name of its axis, or None."""


def heads_of(tuned: TunedModule, call: Call) -> Varying:
    """The trained tensors whose rows are classes: with one more row, the outputs have another shape.

    Each head has its own axis: `classes`, `classes2`. Heads whose outputs are added share one.
    """
    matrices = [name for name in tuned.trained if tuned.get_parameter(name).dim() > 1]
    owners = {
        owner: [name for name in tuned.trained if owner_path(name) == owner]
        for owner in dict.fromkeys(map(owner_path, matrices))
    }
    before = {k: v.shape for k, v in reference(tuned, call, call.tensors, call.batch).items()}
    groups = {owner: _moved(tuned, call, names, before) for owner, names in owners.items()}
    refused = [names for owner, names in owners.items() if groups[owner] is None]
    together = [name for names in refused for name in names]
    heads = [owners[owner] for owner, moved in groups.items() if moved]
    if len(refused) > 1 and _moved(tuned, call, together, before):
        heads.append(together)
    names = _free(CLASSES, call.sizes)
    found: Varying = {}
    for head in heads:
        axis = next(names)
        found |= {name: [axis, *[None] * (tuned.get_parameter(name).dim() - 1)] for name in head}
    return found


def _moved(tuned: TunedModule, call: Call, names: Sequence[str], before: Mapping[str, torch.Size]) -> bool | None:
    """Whether outputs have another shape when tensors have one more row; None where the model does not run."""
    larger = Swapped(tuned, {name: grown(tuned.get_parameter(name).detach(), 0) for name in names})
    try:
        after = reference(larger, call, call.tensors, call.batch)
    except UtcError:
        return None
    return any(after[name].shape != shape for name, shape in before.items())


def _free(word: str, taken: Mapping[str, int]) -> Iterator[str]:
    """`classes`, `classes2`, …, without the names of axes that inputs have."""
    number = 1
    while True:
        name = word if number == 1 else f"{word}{number}"
        if name not in taken:
            yield name
        number += 1


def grown(tensor: Tensor, dim: int) -> Tensor:
    """A tensor with its last slice along a dimension repeated once more."""
    return torch.cat([tensor, tensor.narrow(dim, tensor.shape[dim] - 1, 1)], dim)


def axes_in(varying: Mapping[str, AxisNames]) -> list[str]:
    """The names of the axes, in order."""
    return list(dict.fromkeys(axis for names in varying.values() for axis in names if axis is not None))


def with_one_more(tensors: Mapping[str, Tensor], varying: Varying, axis: str) -> dict[str, Tensor]:
    """The tensors that have an axis, each one larger along it."""
    return {
        name: grown(tensors[name], names.index(axis))
        for name, names in varying.items()
        if axis in names and name in tensors
    }


def sizes_in(varying: Mapping[str, AxisNames], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The size of each axis."""
    return {
        axis: int(tensors[name].shape[dim])
        for name, names in varying.items()
        if name in tensors
        for dim, axis in enumerate(names)
        if axis is not None
    }


def outputs_along(tuned: TunedModule, call: Call, varying: Varying, outputs: Mapping[str, Tensor]) -> Varying:
    """Per dimension of the outputs, the name of the axis with which it grows, or None."""
    found: Varying = {name: [None] * value.dim() for name, value in outputs.items()}
    own = {name: tuned.get_parameter(name).detach() for name in varying}
    for axis in axes_in(varying):
        after = reference(Swapped(tuned, with_one_more(own, varying, axis)), call, call.tensors, call.batch)
        for name, value in outputs.items():
            grows = [a != b for a, b in zip(value.shape, after[name].shape, strict=True)]
            found[name] = [axis if g else known for g, known in zip(grows, found[name], strict=True)]
    return {name: names for name, names in found.items() if any(names)}


def fits(labels: Sequence[str], sizes: Mapping[str, int]) -> bool:
    """Whether labels name the classes of a head; of a task without a trained head they are taken as they are."""
    return not sizes or len(labels) in sizes.values()

"""Guards on values are checked together, once per call: reading a value makes Python wait for a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from utcompile.graph import info
from utcompile.recording.derived import same_choice, same_values


@dataclass(frozen=True)
class ValueCheck:
    """All guards on values of a graph, as one call.

    Attributes:
        choices: the numbers that Python read, each with the line; their tensors are the first arguments.
        names: the inputs whose values are fixed; each has two arguments, as it is given and as it was recorded.

    Example:
        >>> check = ValueCheck(((True, "model.py:3"), (2, "model.py:4")), ())
        >>> check(torch.tensor(True), torch.tensor(2))
    """

    choices: tuple[tuple[bool | int, str], ...]
    names: tuple[str, ...]
    __name__ = "check_values"

    def __call__(self, *tensors: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        given, rest = tensors[: len(self.choices)], tensors[len(self.choices) :]
        fixed = list(zip(rest[::2], rest[1::2], strict=True))
        if self._hold(given, fixed):
            return
        for tensor, (value, source) in zip(given, self.choices, strict=True):
            same_choice(tensor, value, source)
        for (tensor, recorded), name in zip(fixed, self.names, strict=True):
            same_values(tensor, recorded, name)

    def _hold(self, given: tuple[torch.Tensor, ...], fixed: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        if any(a.shape != b.shape for a, b in fixed):
            return False
        held = [tensor.eq(value) for tensor, (value, _) in zip(given, self.choices, strict=True)]
        held += [a.eq(b.to(a.device)).all() for a, b in fixed]
        if all(t.device.type == "cpu" for t in held):
            return all(held)
        return bool(torch.stack([t.reshape(()) for t in held]).all())


def join_value_checks(graph: fx.Graph) -> None:
    """Replace the single guards on values by one call, behind the last tensor that they read."""
    choices = [n for n in graph.nodes if n.target is same_choice and isinstance(n.args[1], (bool, int))]
    values = [n for n in graph.nodes if n.target is same_values]
    if len(choices) + len(values) < 2:
        return
    check = ValueCheck(
        tuple((n.args[1], str(n.args[2])) for n in choices),
        tuple(str(n.args[2]) for n in values),
    )
    place = {n: i for i, n in enumerate(graph.nodes)}
    with graph.inserting_after(max([*choices, *values], key=place.__getitem__)):
        made = graph.call_function(check, (*(n.args[0] for n in choices), *(a for n in values for a in n.args[:2])))
    info(made).check = True
    if choices:
        info(made).origin = info(choices[-1]).origin
    for node in [*choices, *values]:
        graph.erase_node(node)

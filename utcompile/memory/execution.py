"""Which function a tuned module's call runs: the one that keeps less, in training alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from utcompile.graph import UtcGraphModule, runs_plainly
from utcompile.graph.codegen import quote_keywords
from utcompile.memory.planned import Saving, plan_graph
from utcompile.memory.segments import recompute


@dataclass(frozen=True)
class Planned:
    """A tuned module's planned graph, ready to run.

    Attributes:
        graph: the tuned graph that it was made of.
        again: the units that run again in backward: their first and last nodes' names.
        forward: the planned one's `forward`, of the module and its inputs.
        savings: what it does not keep.
        layers: the modules that it computes itself instead of calling them: where each is, and its class.
    """

    graph: fx.Graph
    again: tuple[tuple[str, str], ...]
    forward: Callable[..., object]
    savings: tuple[Saving, ...]
    layers: tuple[tuple[nn.Module, str, nn.Module, type[nn.Module]], ...]

    @classmethod
    def of(cls, tuned: UtcGraphModule, again: tuple[tuple[str, str], ...] = ()) -> Planned:
        """Plan a tuned module."""
        graph, savings, paths = plan_graph(tuned.graph, tuned, tuned.follows_mode)
        recompute(graph, tuned, again)
        quote_keywords(graph)  # the code of this graph too must spell names such as `heads.class`
        layers = []
        for path in paths:
            parent, _, name = path.rpartition(".")
            leaf = tuned.get_submodule(path)
            layers.append((tuned.get_submodule(parent), name, leaf, type(leaf)))
        return cls(tuned.graph, again, type(fx.GraphModule(tuned, graph)).forward, savings, tuple(layers))

    def is_current(self) -> bool:
        """Whether each of its layers is there, and computes what its class computes and nothing else."""
        return all(
            parent._modules.get(name) is leaf and type(leaf) is kind and not _is_hooked(leaf.__dict__)
            for parent, name, leaf, kind in self.layers
        )


def _is_hooked(own: Mapping[str, object]) -> bool:
    """Whether something is called with a layer, or instead of it. Each call checks each layer, so there is no loop."""
    forward, pre, back = own.get("_forward_hooks"), own.get("_forward_pre_hooks"), own.get("_backward_hooks")
    return bool(forward or pre or back or own.get("_backward_pre_hooks") or "forward" in own)


def planned_forward(tuned: UtcGraphModule, again: tuple[tuple[str, str], ...] = ()) -> Callable[..., object] | None:
    """What a call of a tuned module runs now to keep less; None where it runs as it is.

    It runs as it is where gradients are off; where someone looks at the operations (`torch.compile`, exporters,
    `torch.func`); and where a hook on a layer would not be called.
    """
    if not torch.is_grad_enabled() or runs_plainly() or torch.jit.is_tracing() or _hooks_everywhere():
        return None
    planned: Planned | None = tuned.__dict__.get("_planned")
    if planned is None or planned.graph is not tuned.graph or planned.again != again:
        planned = tuned.__dict__["_planned"] = Planned.of(tuned, again)
    return planned.forward if planned.is_current() else None


def _hooks_everywhere() -> bool:
    """Whether hooks for all modules are registered."""
    registered: bool = nn.modules.module._has_any_global_hook()
    return registered

"""`TunedModule`: the frozen graph with its tuners, ready for any training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule
from utcompile.rewrite.tasks import Tasks, add_task, set_task
from utcompile.rules import RuleSet
from utcompile.tuners import Tuner, TunerConfig


@dataclass(frozen=True)
class TunedSite:
    """A tuner in place.

    Attributes:
        id: rule name, module path and ordinal.
        name: the tuner's module in the tuned model, `tuners.mha_blocks_0_0`.
        how: of a weight tuner, `branch` or `reparametrised`.
        tunes: of a weight tuner, role to the name of the parameter it changes; None for one that it adds.
    """

    id: str
    rule: str
    path: str
    form: str
    tuner: str
    name: str
    config: TunerConfig
    how: str | None = None
    tunes: Mapping[str, str | None] = field(default_factory=dict)


class TunedModule(UtcGraphModule):
    """A frozen backbone with tuners: a `torch.fx.GraphModule` that trains in any loop.

    Only the tuners and what `train:` names require gradients. The backbone was captured in eval and stays there:
    `.train()` reaches the tuners alone, so frozen BatchNorm statistics and dropout stay put.

    Attributes:
        sites: the tuners in place, in file order.
        trained: names of the backbone's parameters that train too.
        ruleset: the rules it was compiled with.
        tasks: which task is in place, and those that wait.
    """

    sites: tuple[TunedSite, ...]
    trained: tuple[str, ...]
    ruleset: RuleSet
    base_graph: fx.Graph
    tasks: Tasks
    kept_attributes = (*UtcGraphModule.inherited, "sites", "trained", "ruleset", "base_graph", "tasks")

    def train(self, mode: bool = True) -> TunedModule:
        """Set the mode of the tuners; the frozen backbone stays in eval."""
        super().train(mode)
        for site in self.sites:
            self.get_submodule(site.name).train(mode)
        return self

    def tuner(self, site_id: str) -> Tuner:
        """The tuner of a site."""
        name = next((s.name for s in self.sites if s.id == site_id), None)
        if name is None:
            raise UtcError(f"no site {site_id!r}", fix=f"sites: {', '.join(s.id for s in self.sites[:8])} …")
        module = self.get_submodule(name)
        assert isinstance(module, Tuner)
        return module

    def add_task(self, name: str, folder: str | Path) -> None:
        """Add a task from a checkpoint of the same base and rules; `set_task` puts it in place.

        Its head may have another number of classes. What the module has now is the task `default`. An optimizer is made
        after `set_task`: it steps the parameters of the task that was in place.

        Raises:
            UtcError: as `load_tuners`; or there is a task of that name.
        """
        add_task(self, name, folder)

    def set_task(self, name: str) -> None:
        """Put a task in place: the module then computes with its tuners and head, and the graph stays as it is.

        Raises:
            UtcError: there is no such task.
        """
        set_task(self, name)

    @property
    def task(self) -> str:
        """The task in place."""
        return self.tasks.current

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Also moves and casts the tasks that wait."""
        result = super()._apply(fn, recurse)
        self.tasks.apply(fn)
        self.__dict__.pop("_task_slots", None)  # torch may have made new parameters
        return result

    def trainable_parameters(self) -> tuple[int, int]:
        """How many parameters train, and how many there are in all."""
        every = dict(self.named_parameters())
        return sum(p.numel() for p in every.values() if p.requires_grad), sum(p.numel() for p in every.values())

    def print_trainable_parameters(self) -> None:
        """Print them as PEFT does: `trainable params: X || all params: Y || trainable%: Z`."""
        trained, every = self.trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")  # noqa: T201 - PEFT's name and habit

    def originals(self) -> dict[str, torch.Tensor]:
        """The frozen values of what `train:` clones, by name."""
        store = self.get_submodule("base_values") if self.trained else nn.Module()
        return {name: store.get_buffer(str(i)) for i, name in enumerate(self.trained)}


@contextmanager
def disable_tuners(tuned: TunedModule) -> Iterator[TunedModule]:
    """Inside the context the module computes what the base computed, its original head included.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> tuned = utc.compile(model, "lora/all_linear", (x,))
        >>> _ = torch.nn.init.ones_(tuned.tuner("linear/0/0").lora_B)
        >>> with utc.disable_tuners(tuned):
        ...     torch.equal(tuned(x), model(x))
        True
    """
    if not isinstance(tuned, TunedModule):
        raise UtcError(f"disable_tuners takes a TunedModule, not {type(tuned).__name__}")
    graph, base = tuned.graph, tuned.base_graph
    originals = tuned.originals()
    trained: dict[str, nn.Parameter | None] = {}
    try:
        for name, value in originals.items():
            owner, attribute = _owner(tuned, name)
            trained[name] = owner._parameters[attribute]
            owner._parameters[attribute] = nn.Parameter(value, requires_grad=False)
        tuned.graph = base
        yield tuned
    finally:
        tuned.graph = graph
        for name, parameter in trained.items():
            owner, attribute = _owner(tuned, name)
            owner._parameters[attribute] = parameter


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def site_nodes(graph: fx.Graph, site_id: str) -> dict[str, list[fx.Node]]:
    """The nodes that rewriting made for a site, by role: `tuner`, `sum`, `branch`."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.meta.get("site") == site_id:
            found.setdefault(node.meta["role"], []).append(node)
    return found


def state_of_base(tuned: TunedModule) -> dict[str, Any]:
    """Every parameter and buffer of the frozen base by name, trained ones in their original values."""
    every: dict[str, Any] = {
        **dict(tuned.named_parameters(remove_duplicate=False)),
        **dict(tuned.named_buffers(remove_duplicate=False)),
    }
    mine = ("tuners.", "base_values.")
    return {k: v for k, v in every.items() if not k.startswith(mine)} | tuned.originals()

"""`TunedModule`: the frozen graph with its tuners, ready for any training loop."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Self, TypeVar

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from utcompile.errors import UtcError
from utcompile.graph import Role, UtcGraphModule, every_name, info
from utcompile.graph.codegen import quote_keywords
from utcompile.graph.functions import copied
from utcompile.graph.shared import share_frozen
from utcompile.rewrite.checkpointed import checkpoint_frames, refuse_checkpoint
from utcompile.rewrite.flat import fill
from utcompile.rewrite.memory_protocol import Memory
from utcompile.rewrite.originals import NAME, Originals
from utcompile.rewrite.regions import nest
from utcompile.rewrite.switch import Switch, is_off, make_switch
from utcompile.rewrite.tuned_state import TunedState
from utcompile.rewrite.unwrap import KEPT
from utcompile.tuners import Tuner

_M = TypeVar("_M", bound=nn.Module)
_CHECKPOINTED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class TunedModule(TunedState):
    """A frozen backbone with tuners: a `torch.fx.GraphModule` that trains in any loop.

    Only the tuners and what `train:` names require gradients. The backbone was captured in eval and stays there:
    `.train()` reaches the tuners alone, so frozen BatchNorm statistics and dropout stay put.

    `forward` is one function for good. In each call it chooses between the tuned graph and the base's
    (`disable_tuners`), so whatever wraps the module, or keeps its `forward`, sees the choice too.
    """

    _tuned_forward: ClassVar[Callable[..., object]]
    _base_forward: Callable[..., object]
    _compiled_forward: Callable[..., object]
    _switch: Switch
    _flat: TunedModule | None = None
    _moved: Mapping[str, str] = MappingProxyType({})
    kept_attributes = (
        *UtcGraphModule.inherited,
        "sites",
        "trained",
        "ruleset",
        "base_graph",
        "tasks",
        "proven",
        "memory",
        "_flat",
        "_moved",
    )

    @property
    def dtype(self) -> torch.dtype:
        """The base's: on a base in half precision, what trains may be in float32."""
        for name, parameter in self.named_parameters():
            is_ours = name.startswith("tuners.") or name in self.trained
            if parameter.is_floating_point() and not is_ours:
                return parameter.dtype
        return super().dtype

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        result = super().__new__(cls, *args, **kwargs)
        result.__dict__["_switch"] = make_switch()
        return result

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """A copy whose frozen parameters share this module's memory until one of both is written."""
        share_frozen(self, memo)
        return super().__deepcopy__(memo)

    def recompile(self) -> PythonCode:
        """Generate the tuned `forward` again from the graph."""
        code: PythonCode = super().recompile()
        self.__dict__.pop("_planned", None)
        own = type(self)
        own._tuned_forward = own.forward
        own.forward = _choosing(own.forward, for_compiler(weakref.ref(self)))
        return code

    def prepare_base(self) -> None:
        """Generate the base's `forward`, once."""
        if self.__dict__.get("_base_of") is not self.base_graph:
            self.__dict__["_base_forward"] = type(self.base_module()).forward
            self.__dict__["_base_of"] = self.base_graph

    def base_module(self) -> fx.GraphModule:
        """The base as a separate module, without tuners; it shares the parameters."""
        graph = self._originals().redirected(self.base_graph)
        quote_keywords(graph)
        return fx.GraphModule(self, graph)

    def _replicate_for_data_parallel(self) -> fx.GraphModule:
        """A replica runs in a thread that sees no context: it is made of the graph that is chosen here."""
        replica = self.base_module() if is_off(self._switch) else super()._replicate_for_data_parallel()
        replica.__dict__["_is_replica"] = True
        return replica

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
            raise UtcError(
                f"no site {site_id!r}",
                fix=f"sites: {', '.join(s.id for s in self.sites[:8])} …",
                code="arguments/value",
            )
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
        self.tasks.add(self, name, folder)

    def set_task(self, name: str) -> None:
        """Put a task in place: the module then computes with its tuners and head, and the graph stays as it is.

        Raises:
            UtcError: there is no such task.
        """
        if self._flat is not None:
            raise UtcError(
                "tasks of a nested module cannot be exchanged",
                why="its parameters may be sharded, each in its region",
                fix="set the task first, and then nest: tuned.set_task(name); tuned.nested(…)",
                code="checkpoint/task",
            )
        self.tasks.put(self, name)

    @property
    def task(self) -> str:
        """The task in place."""
        return self.tasks.current

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Also moves and casts the tasks that wait."""
        super()._apply(fn, recurse)
        self.tasks.apply(fn)
        self.__dict__.pop("_task_slots", None)  # torch may have made new parameters
        return self

    def plan_memory(self, budget: float | int | str, example_inputs: object = None) -> Memory:
        """Let a training step fit a budget of memory, for the least work; `tuned.memory` is the plan, and prints it.

        Blocks run again in backward until the step's peak fits. Gradients stay the same.

        Args:
            budget: a share of the peak of a step without any plan, as 0.5; or the whole of a step, parameters and
                inputs included, as "8GB" or a number of bytes. What an optimizer keeps is not in it.
            example_inputs: inputs with the batch of training, as for `utc.capture`; by default those of the capture.

        Raises:
            UtcError: the budget is malformed, or below what is possible; or what the model computes depends on the
                numbers in its inputs.

        Example:
            >>> import torch, utcompile as utc
            >>> layers = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(16)]
            >>> x = torch.randn(256, 64)
            >>> tuned = utc.compile(torch.nn.Sequential(*layers), "lora/all_linear", (x,))
            >>> plan = tuned.plan_memory(0.6)
            >>> plan.expected.peak <= 0.6 * plan.before.peak
            True
        """
        if self.memory is None:
            raise UtcError(
                "the memory of this module is not planned",
                fix="compile it anew, or leave `tuned.memory`",
                code="arguments/value",
            )
        self.memory = self.memory.within(self, budget, example_inputs)
        return self.memory

    def activation_checkpointing_enable(self, *_: object, **__: object) -> None:
        """What Hugging Face's Trainer calls: let blocks run again in backward, as far as that saves memory.

        The same as `plan_memory` with the smallest of a few budgets that fits; options are those of the plan alone.
        """
        if self.memory is None:
            return
        for budget in _CHECKPOINTED:
            try:
                self.plan_memory(budget)
            except UtcError as error:
                if error.code != "memory/budget":
                    raise
            else:
                return

    gradient_checkpointing_enable = activation_checkpointing_enable

    def nested(self, *regions: str) -> TunedModule:
        """The same module, one graph per region: for sharding, running again, or compiling block by block.

        Each region is a `TunedModule` at its path, which reads only its own parameters, its tuners among them. It
        computes the same, bit for bit. The result has the parameters of this module, and every verb takes it
        (`utc.save_tuners`, `utc.load_tuners`, `utc.disable_tuners`, `utc.fold`): use it instead of this module.

        Args:
            regions: globs of module paths, as `blocks.*`.

        Raises:
            UtcError: a glob names nothing that is called; regions share a parameter, or lie in one another; or a region
                is no single call.

        Example:
            >>> import torch, utcompile as utc
            >>> blocks = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()) for _ in range(2)]
            >>> tuned = utc.compile(torch.nn.Sequential(*blocks), "lora/all_linear", torch.randn(2, 4), train=[])
            >>> nested = tuned.nested("*")
            >>> [n.target for n in nested.graph.nodes if n.op == "call_module"]
            ['0', '1']
        """
        if self._flat is not None:
            raise UtcError(
                "this module is nested already",
                fix="nest the module that it was made of",
                code="arguments/value",
            )
        return nest(self, regions, TunedModule)

    def as_one_graph(self) -> TunedModule:
        """The flat module, with the present parameters of this one."""
        if self._flat is None:
            return self
        fill(self._flat, self._flat.base_graph, self, self._moved)
        return self._flat.train(self.training)

    def trainable_parameters(self) -> tuple[int, int]:
        """How many parameters train, and how many there are in all."""
        return trainable_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print them as PEFT does: `trainable params: X || all params: Y || trainable%: Z`."""
        trained, every = self.trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}")  # noqa: T201 - PEFT's name and habit

    def originals(self) -> dict[str, torch.Tensor]:
        """The frozen values of what `train:` clones, by name."""
        if self._flat is not None:
            return self.as_one_graph().originals()
        store = self._originals()
        return {name: store.get_parameter(str(i)).detach() for i, name in enumerate(store.names)}

    def _originals(self) -> Originals:
        found = self._modules.get(NAME)
        return found if isinstance(found, Originals) else Originals((), {})


def for_compiler(of: weakref.ref[UtcGraphModule]) -> Callable[[object], bool]:
    """Called by `torch.compile` while it compiles, once per plan: whether there is a `_compiled_forward` to compile.

    It is made anew where the plan, or which parameters train, has changed: another function would void what was
    compiled for other sizes.
    """
    known: list[tuple[object, bool]] = []

    def prepared(again: object) -> bool:
        tuned = of()
        memory: Memory | None = getattr(tuned, "memory", None)
        if tuned is None or memory is None or torch._C._are_functorch_transforms_active():
            return False
        key = (again, tuple(p.requires_grad for p in tuned.parameters()))
        if not known or known[0][0] != key:
            found = memory.compiled_forward_of(tuned)
            tuned.__dict__["_compiled_forward"] = found
            known[:] = [(key, found is not None)]
        return known[0][1]

    asked: Callable[[object], bool] = torch.compiler.assume_constant_result(prepared)
    return asked


def is_compiled() -> bool:
    """Whether `torch.compile` records a call that trains."""
    # not `is_exporting()`, which the compiler of torch 2.11 takes for true
    exports = getattr(torch.compiler, "_is_exporting_flag", False)
    return torch.compiler.is_dynamo_compiling() and not exports and torch.is_grad_enabled()


def _choosing(tuned_forward: Callable[..., object], prepared: Callable[[object], bool]) -> Callable[..., object]:
    """The one `forward` of a tuned module, with the signature that its graph has."""

    def forward(self: TunedModule, *args: object, **kwargs: object) -> object:
        if is_off(self._switch):
            refuse_checkpoint(self._switch)
            return self._base_forward(self, *args, **kwargs)
        if is_compiled() and self.memory is not None and prepared(self.memory.again):
            return self._compiled_forward(self, *args, **kwargs)
        if not torch.compiler.is_compiling() and self.memory is not None:
            planned = self.memory.forward_of(self)
            if planned is not None:
                return planned(self, *args, **kwargs)
        return self._tuned_forward(*args, **kwargs)

    chosen: Callable[..., object] = copied(forward)
    chosen.__signature__ = inspect.signature(tuned_forward)  # type: ignore[attr-defined]
    return chosen


@contextmanager
def disable_tuners(tuned: _M) -> Iterator[_M]:
    """Inside the context a call computes what the base computed, its original head included.

    Only calls of the model are changed, and only in this thread or asyncio task and those that are started from it with
    its context. Saving, loading, folding, `state_dict()` and copies are what they are outside; a copy of the model is
    another model, and its tuners are on. Contexts may be nested and may end in any order.

    `torch.utils.checkpoint` calls again in backward. Where gradients are needed, the context is opened in the function
    that is checkpointed; around the checkpoint, or around its backward, it is an error.

    Args:
        tuned: a tuned module, or a module that contains one: compiled by `torch.compile`, wrapped for distributed
            training, a part of a larger model.

    Raises:
        UtcError: there is no tuned module in it, or `train:` trains parameters outside of a model's tuned parts; in a
            call, for the reason given above.

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
    found = [m for m in tuned.modules() if isinstance(m, TunedModule)] if isinstance(tuned, nn.Module) else []
    if not found:
        raise UtcError(
            f"disable_tuners takes a TunedModule, not {type(tuned).__name__}",
            fix="pass what `utc.compile` or `plan.apply()` returned, or a module that contains it",
            code="arguments/type",
        )
    _refuse_trained_outside(tuned, found)
    for module in found:
        module.prepare_base()
    with _chosen(found, off=True):
        yield tuned


def _refuse_trained_outside(model: nn.Module, parts: list[TunedModule]) -> None:
    """What trains outside of tuned parts has no graph that could read its original value."""
    if not any(KEPT in vars(m) for m in model.modules()):
        return
    inside = {id(p) for part in parts for p in part.parameters()}
    trained = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if trained:
        raise UtcError(
            f"disable_tuners cannot take back what trains outside of the tuned parts: {trained[0]}",
            why=f"{len(trained)} parameters are trained in the user's own modules, which read their present values",
            fix="turn off the tuners of one part, disable_tuners(model.part); or call the original model",
            code="tune/disabled",
        )


@contextmanager
def enabled_tuners(module: nn.Module) -> Iterator[None]:
    """Inside the context the tuners in a module are on, whatever `disable_tuners` is open around it."""
    with _chosen([m for m in module.modules() if isinstance(m, TunedModule)], off=False):
        yield


@contextmanager
def _chosen(modules: list[TunedModule], *, off: bool) -> Iterator[None]:
    with ExitStack() as stack:
        around = 0 if torch.compiler.is_compiling() else len(list(checkpoint_frames()))
        for module in modules:
            choice = module._switch.open(off)
            choice.checkpoints, choice.has_gradients = around, torch.is_grad_enabled()
            stack.callback(module._switch.close, choice)
        yield


def trainable_parameters(module: nn.Module) -> tuple[int, int]:
    """How many numbers train in a tuned model, and how many there are in all."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad), count_parameters(module)


def count_parameters(module: nn.Module) -> int:
    """How many numbers a model's parameters have, without the base's values of what `train:` cloned."""
    return sum(p.numel() for n, p in module.named_parameters() if f".{NAME}." not in f".{n}")


def site_nodes(graph: fx.Graph, site_id: str) -> dict[Role, list[fx.Node]]:
    """The nodes that rewriting made for a site, by role: `tuner`, `sum`, `branch`."""
    found: dict[Role, list[fx.Node]] = {}
    for node in graph.nodes:
        role = info(node).role
        if role is not None and info(node).site == site_id:
            found.setdefault(role, []).append(node)
    return found


def state_of_base(tuned: TunedModule) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the frozen base by name, trained ones in their original values.

    Tuners that an earlier fold kept are part of the base.
    """
    mine = (f"{NAME}.", *(f"{s.name}." for s in tuned.sites))
    return {k: v for k, v in every_name(tuned) if not k.startswith(mine)} | tuned.originals()

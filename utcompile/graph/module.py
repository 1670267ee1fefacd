"""The `GraphModule` that capture, rewrite and fold return: it keeps its nodes' meta through copies and pickling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Self, TypeVar

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from utcompile.errors import UtcError
from utcompile.graph.calls import Signature
from utcompile.graph.codegen import quote_keywords
from utcompile.graph.frozen import FrozenGraph
from utcompile.graph.functions import copied
from utcompile.graph.leaves import is_leaf
from utcompile.graph.scripted import attach

P = TypeVar("P")


class UtcGraphModule(fx.GraphModule):
    """A `torch.fx.GraphModule` whose copies and pickles keep the graph itself.

    `GraphModule` pickles its generated code and traces it again, which loses the nodes' names and meta.

    Attributes:
        batch_inputs: names of the inputs whose dimension 0 is the batch.
        follows_mode: whether dropout and batch norm of the backbone obey `.train()`.
        aliased: the paths of the original's modules that have other names too; its graph has the first of them.
        guards: decisions of the model's Python code at capture, as relations that every call must meet.
        model_attributes: the original's plain attributes, such as `config`, found here under the same names.
        signature: the parameters of the original's forward.
        example_inputs: inputs that the module is known to take, for comparisons (`capture.Example`).
        ties: the names of each of the original's parameters that has several.
        part_path: its path, where it is a part of a model: then its outputs are none of the model, and it has no head.
        fixed_dtype: why the graph is that of one dtype; empty where it follows its weights.
    """

    batch_inputs: tuple[str, ...] = ()
    follows_mode: bool = False
    aliased: tuple[str, ...] = ()
    guards: tuple[object, ...] = ()
    model_attributes: Mapping[str, object] = MappingProxyType({})
    signature: Signature = Signature()
    example_inputs: Any = None
    ties: tuple[tuple[str, ...], ...] = ()
    part_path: str = ""
    fixed_dtype: str = ""
    inherited: tuple[str, ...] = (
        "batch_inputs",
        "follows_mode",
        "aliased",
        "guards",
        "model_attributes",
        "signature",
        "example_inputs",
        "ties",
        "part_path",
        "fixed_dtype",
    )
    kept_attributes: tuple[str, ...] = inherited

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        result = super().__new__(cls, *args, **kwargs)
        # fx makes a class for each module. torch.compile counts what it compiles for each code object, and gives up
        # after eight: with one `__call__` for all modules that would be eight modules in a process.
        setattr(type(result), "__call__", copied(UtcGraphModule.__call__))  # noqa: B010
        return result

    def __init__(self, root: nn.Module | dict[str, object], graph: fx.Graph, class_name: str = "GraphModule") -> None:
        super().__init__(root, graph, class_name)
        if isinstance(root, nn.Module):
            keep_state(root, self, again=isinstance(root, UtcGraphModule))

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            try:
                return super().__call__(*args, **kwargs)
            except TypeError as error:
                fitting = self.signature.fitting(self.forward, args, kwargs, error)
            return super().__call__(**fitting)
        except UtcError as error:
            if not self.part_path:
                raise
            raise error.within(f"the part {self.part_path}") from error

    def as_one_graph(self) -> UtcGraphModule:
        """The module as one graph, with its present parameters: what verbs work on."""
        return self

    def recompile(self) -> PythonCode:
        """Generate `forward` again from the graph."""
        quote_keywords(self._graph)
        return super().recompile()

    def inherit(self, other: UtcGraphModule) -> None:
        """Take over the attributes that every module of the pipeline passes on."""
        for name in self.inherited:
            self.__dict__[name] = getattr(other, name)

    def __getattr__(self, name: str) -> Any:
        kept = self.__dict__.get("model_attributes", {})
        return kept[name] if name in kept else super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half` and others do to each tensor; a graph of one dtype is cast to no other."""
        here = self.dtype
        if self.fixed_dtype and fn(torch.empty(0, dtype=here, device=self.device)).dtype != here:
            raise UtcError(
                f"the captured model has weights in {str(here).removeprefix('torch.')} alone",
                why=self.fixed_dtype,
                fix="cast the model, and capture it again: utc.capture(model.bfloat16(), …)",
                code="call/guard",
            )
        return super()._apply(fn, recurse)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; where the backbone is frozen, its layers stay in eval."""
        nn.Module.train(self, mode and self.follows_mode)
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        root = nn.Module()
        root.__dict__.update(
            {k: copy.deepcopy(self.__dict__[k], memo) for k in ("_parameters", "_buffers", "_modules", "training")}
        )
        root.__dict__["_non_persistent_buffers_set"] = set(self._non_persistent_buffers_set)
        return self._rebuild(root, copy_graph(self.graph), self.__dict__, memo)

    def _rebuild(self, root: nn.Module, graph: fx.Graph, state: dict[str, object], memo: dict[int, object]) -> Self:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        fx.GraphModule.__init__(result, root, graph, type(self).__name__)
        keep_state(root, result, again=True)
        for name in self.kept_attributes:
            if name in state:
                kept = state[name]
                result.__dict__[name] = copy_graph(kept) if isinstance(kept, fx.Graph) else copy.deepcopy(kept, memo)
        return result

    def __reduce__(self) -> tuple[object, ...]:
        cls = next(c for c in type(self).__mro__ if c.__qualname__.split(".")[-1] != "GraphModuleImpl")
        state = {k: self.__dict__[k] for k in ("_parameters", "_buffers", "_modules", "training")}
        state["_non_persistent_buffers_set"] = self._non_persistent_buffers_set
        kept = {k: self.__dict__[k] for k in self.kept_attributes if k in self.__dict__}
        frozen = {k: FrozenGraph(v) if isinstance(v, fx.Graph) else v for k, v in kept.items()}
        return _unpickle, (cls, type(self).__name__, state, FrozenGraph(self.graph), frozen)


def _unpickle(
    cls: type[UtcGraphModule], name: str, state: dict[str, object], graph: FrozenGraph, kept: dict[str, object]
) -> UtcGraphModule:
    root = nn.Module()
    root.__dict__.update(state)
    result = cls.__new__(cls)
    fx.GraphModule.__init__(result, root, graph.thaw(), name)
    keep_state(root, result, again=True)
    result.__dict__.update({k: v.thaw() if isinstance(v, FrozenGraph) else v for k, v in kept.items()})
    return result


def copy_graph(graph: fx.Graph, mapping: dict[fx.Node, fx.Node] | None = None) -> fx.Graph:
    """A copy of a graph with its nodes' names, meta and order; nodes that meta refers to follow into the copy.

    Args:
        graph: the original.
        mapping: filled with original node -> copy.
    """
    result = fx.Graph()
    mapping = {} if mapping is None else mapping
    output = result.graph_copy(graph, mapping)
    for old, new in mapping.items():
        new.meta = {k: _mapped(v, mapping) for k, v in old.meta.items()}
    if output is not None:
        old_output = graph.output_node()
        result.output(output).meta = dict(old_output.meta)
    return result


def _mapped(value: object, mapping: dict[fx.Node, fx.Node]) -> object:
    if isinstance(value, tuple) and any(isinstance(v, fx.Node) for v in value):
        return tuple(mapping.get(v) if isinstance(v, fx.Node) else v for v in value)
    return value


def keep_state(root: nn.Module, module: nn.Module, *, again: bool = False) -> None:
    """Register also the state that the graph never reads: `state_dict()` has all of the root's names, in its layers.

    Args:
        again: the root is a captured module, or a part of one, and not the original model.
    """
    for path, owner in root.named_modules():
        if isinstance(owner, torch.jit.ScriptModule):
            attach(module, path, owner)
            continue
        if getattr(type(owner), "is_copied_whole", False):
            module.set_submodule(path, owner)
            continue
        ours = type(owner).__module__.startswith("utcompile.graph.") or is_leaf(owner)
        # a hook that was set on a layer of a captured module does not make it another layer
        ours |= again and type(owner).__module__.startswith("torch.nn.modules.")
        if path and _is_bare(module, path) and ours and not owner._modules:
            module.set_submodule(path, owner)  # a layer of which the graph reads the weight alone
        for name, parameter in owner._parameters.items():
            _register(module, f"{path}.{name}" if path else name, parameter, None)
        for name, buffer in owner._buffers.items():
            _register(module, f"{path}.{name}" if path else name, buffer, name not in owner._non_persistent_buffers_set)
        if len(owner._parameters) > 1:
            _sort_like(owner._parameters, module.get_submodule(path)._parameters)


def _sort_like(before: dict[str, P], after: dict[str, P]) -> None:
    """Put a module's parameters in the order of the original's; fx has put them in the order of their reads."""
    if list(before) != list(after):
        for name in (*before, *(n for n in after if n not in before)):
            if name in after:
                after[name] = after.pop(name)


def _is_bare(module: nn.Module, path: str) -> bool:
    """Whether fx made a plain `Module` at a path, for the parameters that the graph reads there."""
    try:
        return type(module.get_submodule(path)) is nn.Module
    except AttributeError:
        return False


def _register(module: nn.Module, name: str, value: torch.Tensor | None, persistent: bool | None) -> None:
    path, _, attribute = name.rpartition(".")
    owner = module
    for part in path.split(".") if path else ():
        child = owner._modules.get(part)
        if child is None:
            child = nn.Module()
            child.training = owner.training
            owner.add_module(part, child)
        owner = child
    if attribute in owner._parameters or attribute in owner._buffers:
        if persistent is False:
            owner._non_persistent_buffers_set.add(attribute)
        return
    if persistent is None:
        owner.register_parameter(attribute, value if isinstance(value, nn.Parameter) else None)
    else:
        owner.register_buffer(attribute, value, persistent=persistent)

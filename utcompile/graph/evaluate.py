"""Run one node of a graph on given values, with its parameters and buffers as they are or as a cast makes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import fx, nn

from utcompile.graph.state import state_at

Cast = Callable[[str, torch.Tensor], torch.Tensor]


def as_it_is(name: str, state: torch.Tensor) -> torch.Tensor:
    """The cast that changes nothing."""
    return state


def run_node(root: nn.Module, node: fx.Node, lookup: Callable[[fx.Node], Any], cast: Cast = as_it_is) -> Any:
    """The value of a node. Nothing is written into parameters and buffers, and no gradient is recorded.

    Args:
        root: the module that the graph's targets refer to; it stays as it is.
        node: the node.
        lookup: the values of the nodes it reads.
        cast: makes of each parameter and buffer, given with its name, what the node is run with.
    """
    target = str(node.target)
    if node.op == "get_attr":
        return cast(target, state_at(root, target))
    given: Any = fx.node.map_arg((node.args, node.kwargs), lookup)
    args, kwargs = given
    with torch.no_grad():
        if node.op == "call_module":
            leaf = root.get_submodule(target)
            state = {n: cast(f"{target}.{n}", t) for n, t in _state(leaf)}
            if getattr(leaf, "max_norm", None) is not None:  # it writes into its weight
                state = {n: t.clone() for n, t in state.items()}
            return torch.func.functional_call(twin(leaf), state, args, kwargs, tie_weights=False)
        if node.op == "call_method":
            if target == "view" and not any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):
                target = "reshape"  # the same numbers, also where a substitute has other strides than the value
            return getattr(args[0], target)(*args[1:], **kwargs)
        if "max_norm" in kwargs and len(args) > 1:
            args = (args[0], args[1].clone(), *args[2:])
        assert callable(node.target)
        return node.target(*args, **kwargs)


def twin(module: nn.Module, made: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A module with the same tensors and attributes, whose own tables may be changed while others call the original.

    `functional_call` exchanges parameters in place, which a call in another thread would see.
    """
    made = {} if made is None else made
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in made:
        made[module] = other = object.__new__(type(module))
        vars(other).update(
            {k: v.copy() if type(v) in (dict, list, OrderedDict) else v for k, v in vars(module).items()}
        )
        vars(other)["_modules"] = {k: m if m is None else twin(m, made) for k, m in module._modules.items()}
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__self__ is module:
            vars(other)["forward"] = MethodType(own.__func__, other)
    return made[module]


def _state(leaf: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of every module once.

    For a module with two names, `functional_call` would otherwise put our substitute back instead of the original.
    """
    for path, module in leaf.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor

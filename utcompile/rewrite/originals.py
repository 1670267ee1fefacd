"""The frozen values of what `train:` clones, and the base's layers that read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from utcompile.graph import copy_graph

NAME = "base_values"
_SHARED = ("_buffers", "_non_persistent_buffers_set", "_forward_hooks", "_forward_pre_hooks")


class Originals(nn.Module):
    """The base's own values of the parameters that train, by number, and twins of the layers that have them.

    A twin is a layer of the base with the values that it had: it shares the frozen parameters, buffers and hooks of the
    layer that trains. Nothing here is in `state_dict()`: a checkpoint has what trains, and the model has its base.

    Attributes:
        names: the parameters' names in the base.
        twins: of a layer that has one of them, its path in the base to its twin's name here.
    """

    is_copied_whole = True  # utcompile.graph keeps such a module as it is

    def __init__(self, names: tuple[str, ...], values: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = names
        self.twins: dict[str, str] = {}
        for number, name in enumerate(names):
            self.register_parameter(str(number), values[name])
        self.register_load_state_dict_post_hook(_forget_missing)

    def add_twins(self, graph: fx.Graph, root: nn.Module) -> None:
        """Make a twin of each layer that a graph calls and that has a parameter which trains."""
        originals = {name: self.get_parameter(str(i)) for i, name in enumerate(self.names)}
        for node in graph.nodes:
            path = str(node.target)
            inside = {n: p for n, p in originals.items() if n.startswith(f"{path}.")}
            if node.op == "call_module" and inside and path not in self.twins:
                self.twins[path] = f"twin_{len(self.twins)}"
                self.add_module(self.twins[path], _twin(root, path, inside))

    def redirected(self, graph: fx.Graph) -> fx.Graph:
        """A copy of the base's graph that reads the base's values."""
        result = copy_graph(graph)
        values = {name: str(i) for i, name in enumerate(self.names)}
        for node in result.nodes:
            place = {"get_attr": values, "call_module": self.twins}.get(node.op, {}).get(str(node.target))
            if place is not None:
                node.target = f"{NAME}.{place}"
        return result

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Nothing: what is here is the base's."""
        return {} if destination is None else destination


def _forget_missing(module: nn.Module, found: tuple[list[str], list[str]]) -> None:
    """Whatever `load_state_dict` did not find for the originals was never in a state."""
    missing, _ = found
    missing[:] = [k for k in missing if f".{NAME}." not in f".{k}"]


def _twin(root: nn.Module, path: str, originals: Mapping[str, nn.Parameter]) -> nn.Module:
    layer = root.get_submodule(path)
    memo: dict[int, object] = {id(t): t for t in [*layer.parameters(), *layer.buffers()]}
    memo |= {id(root.get_parameter(name)): value for name, value in originals.items()}
    twin = copy.deepcopy(layer, memo)
    for ours, theirs in zip(twin.modules(), layer.modules(), strict=True):
        ours.__dict__.update({name: theirs.__dict__[name] for name in _SHARED})
    return twin

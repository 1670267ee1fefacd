"""The folded module is plain: nothing of the tuners, and nothing that only folded operations read, stays behind."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from utcompile.graph import every_name, info
from utcompile.rewrite import TunedSite


def sweep_graph(graph: fx.Graph) -> None:
    """Erase parameters, and what is computed from them, that nothing reads any more."""
    for node in reversed(list(graph.nodes)):
        if info(node).state and not node.users:
            graph.erase_node(node)


def state_read(graph: fx.Graph, root: nn.Module) -> set[str]:
    """The names of all parameters and buffers that a graph reads; of a module that it calls, all."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            found.add(str(node.target))
        elif node.op == "call_module":
            leaf = root.get_submodule(str(node.target))
            found |= {f"{node.target}.{name}" for name, _ in every_name(leaf)}
    return found


def drop_tuners(root: nn.Module, sites: Collection[TunedSite]) -> None:
    """Take out tuners that were folded, and the copies of what `train:` replaced."""
    tuners = root._modules.get("tuners")
    for site in sites:
        if tuners is not None:
            tuners._modules.pop(site.name.rpartition(".")[2], None)
    if tuners is not None and not tuners._modules:
        root._modules.pop("tuners")
    root._modules.pop("base_values", None)


def changes_of_names(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Why the state of a folded module does not fit the base's architecture, a phrase a tensor; empty where it does."""
    old = {k: v for k, v in before.state_dict().items() if not k.startswith(("tuners.", "base_values."))}
    new = after.state_dict()
    found = [f"{k} is new" for k in new if k not in old]
    found += [f"{k} is gone" for k in old if k not in new]
    for name, was in old.items():
        now = new.get(name, was)
        if now.shape != was.shape:
            found.append(f"{name} is {list(now.shape)} instead of {list(was.shape)}")
        elif now.dtype != was.dtype:
            found.append(f"{name} is {now.dtype} instead of {was.dtype}".replace("torch.", ""))
    return tuple(found)

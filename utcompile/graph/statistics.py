"""Statistics that a model gathers in training mode: the buffers of norms, and those that its graph writes.

A frozen backbone gathers none. One that follows the mode (`base="follow"`) has its own statistics, apart from the
user's model, and a checkpoint has them next to the tuners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from utcompile.graph.affine_norm import affine_batch_norm

_READ_BY = {F.batch_norm: (1, 2), affine_batch_norm: (1, 2), F.instance_norm: (1, 2)}
_NAMES = ("running_mean", "running_var")


def statistics(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """The names of the buffers that a call in training mode may change, in graph order.

    Args:
        module: the module that the graph's targets refer to.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return tuple(dict.fromkeys(name for node in graph.nodes for name in _of_node(node, module) if name in buffers))


def _of_node(node: fx.Node, module: nn.Module) -> Iterator[str]:
    if node.op == "call_module":
        for path, layer in module.get_submodule(str(node.target)).named_modules():
            if isinstance(layer, _NormBase):
                prefix = f"{node.target}.{path}" if path else str(node.target)
                yield from (f"{prefix}.{name}" for name in layer._buffers)
    elif node.op == "call_function" and node.target in _READ_BY:
        yield from _reads([node.args[i] for i in _READ_BY[node.target] if i < len(node.args)])
        yield from _reads([node.kwargs.get(name) for name in _NAMES])
    elif node.op == "call_method" and str(node.target).endswith("_"):
        yield from _reads(node.args[:1])


def _reads(values: Iterable[object]) -> list[str]:
    """The names of the state that values read."""
    return [str(v.target) for v in values if isinstance(v, fx.Node) and v.op == "get_attr"]


def own_statistics(module: nn.Module, graph: fx.Graph) -> None:
    """Give a module its own statistics, in place of those that it shares with its original."""
    for name in statistics(module, graph):
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        value = owner._buffers[attribute]
        if value is not None:
            owner._buffers[attribute] = value.clone()

"""The modules that are one node of a graph: layers of torch.nn that do nothing but what their class does.

A layer can do more than its class: hooks change what it reads and yields, a parametrisation computes its weight, an
instance has another `forward`. Such a layer is entered, and its computation is recorded operation by operation:
as one node it would lose all of that as soon as a tuner takes its weight.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

# torch.nn classes that are entered; every other class of torch.nn is one leaf node
_ENTERED = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
_HERE = torch.__path__[0] + os.sep
_HOOKS = {"_forward_hooks": "forward hooks", "_forward_pre_hooks": "forward pre-hooks"}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node of a graph.

    >>> layer = nn.Linear(2, 2)
    >>> is_leaf(layer), is_leaf(nn.Sequential(layer))
    (True, False)
    >>> handle = layer.register_forward_hook(lambda module, given, result: result * 2)
    >>> is_leaf(layer)
    False
    """
    return is_layer(module) and more_than_its_class(module) is None


def is_layer(module: nn.Module) -> bool:
    """Whether a module's class is a layer of torch.nn."""
    home = type(module).__module__
    return home.startswith("torch.nn.") and not home.startswith("torch.nn.utils.") and not isinstance(module, _ENTERED)


def more_than_its_class(module: nn.Module) -> str | None:
    """The effect that a layer has beyond the code of its class; None where there is none."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    hooks = [words for name, words in _HOOKS.items() if getattr(module, name, None)]
    if nn.utils.parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"a parametrisation computes its {names}"
    held = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    if held:
        return f"its {', '.join(held)} is computed by a hook, or is no parameter of the layer itself"
    if hooks:
        return f"it has {' and '.join(hooks)}"
    if "forward" in vars(module) or not _is_torch_code(type(module).forward):
        return "its forward was replaced"
    return None


def hooks_for_all() -> bool:
    """Whether hooks for all modules are registered, so that every layer does more than its class."""
    return any(getattr(global_hooks, name, None) for name in _GLOBAL_HOOKS)


def _is_torch_code(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or code.co_filename.startswith(_HERE)

"""Scripted and traced submodules: opaque nodes, whose copies share the original's memory as other modules' do."""

from __future__ import annotations

import torch
from torch import nn


def share_scripted(copied: nn.Module, original: nn.Module) -> None:
    """Let the scripted modules of a copy read the original's tensors: `copy.deepcopy` copies them in C++.

    Args:
        copied: changed in place.
        original: the module that it is a copy of.
    """
    for path, module in original.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):
            twin = copied.get_submodule(path)
            for name, parameter in module.named_parameters(recurse=False):
                setattr(twin, name, nn.Parameter(parameter.detach(), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(twin, name, buffer.detach())


def attach(module: nn.Module, path: str, scripted: nn.Module) -> None:
    """Keep a scripted module that a graph never calls under its own path."""
    parent, _, name = path.rpartition(".")
    owner = module
    for part in parent.split(".") if parent else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if name not in owner._modules:
        owner.add_module(name, scripted)

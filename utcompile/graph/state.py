"""Parameters and buffers by their dotted names: `blocks.0.attn.qkv.weight`.

A tied parameter has several names, and is found under each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn


def owner_path(name: str) -> str:
    """The path of the module that has a parameter; the empty string is the root.

    >>> owner_path("blocks.0.norm.weight"), owner_path("scale")
    ('blocks.0.norm', '')
    """
    return name.rpartition(".")[0]


def path_in(part: str, path: str) -> str:
    """The path in a whole model of what has a path in one of its parts.

    >>> path_in("backbone", "blocks.0"), path_in("backbone", ""), path_in("", "blocks.0")
    ('backbone.blocks.0', 'backbone', 'blocks.0')
    """
    return f"{part}.{path}" if part and path else part or path


def owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter, buffer or attribute, and its name there.

    Raises:
        AttributeError: there is no such module.
    """
    path, _, attribute = name.rpartition(".")
    return root.get_submodule(path), attribute


def state_at(root: nn.Module, name: str) -> torch.Tensor:
    """The tensor of a name: a parameter, a buffer, or a tensor that a module keeps as an attribute.

    >>> state_at(nn.Sequential(nn.Linear(3, 2)), "0.weight").shape
    torch.Size([2, 3])

    Raises:
        AttributeError: there is no such name.
    """
    found = find_state(root, name)
    if found is None:
        raise AttributeError(f"{name} is no tensor of the module")
    return found


def find_state(root: nn.Module, name: str) -> torch.Tensor | None:
    """The tensor of a name; None where the module has none there."""
    owner, attribute = owner_of(root, name)
    found = getattr(owner, attribute, None)
    return found if isinstance(found, torch.Tensor) else None


def is_parameter(root: nn.Module, name: str) -> bool:
    """Whether a name is that of a parameter, and not of a buffer, an attribute or nothing."""
    try:
        owner, attribute = owner_of(root, name)
    except AttributeError:
        return False
    return owner._parameters.get(attribute) is not None


def set_parameter(root: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    """Put a parameter where one of that name was; other names of a tied parameter keep the one they had."""
    owner, attribute = owner_of(root, name)
    owner._parameters[attribute] = parameter


def replace_state(root: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor where there is a buffer of that name, else a frozen parameter; a parameter may be new."""
    owner, attribute = owner_of(root, name)
    if attribute in owner._buffers:
        owner._buffers[attribute] = value
    else:
        owner.register_parameter(attribute, nn.Parameter(value, requires_grad=False))


def drop_state(root: nn.Module, names: Iterable[str]) -> None:
    """Delete parameters and buffers, and the modules that are then empty."""
    for name in names:
        path, _, attribute = name.rpartition(".")
        owner = root.get_submodule(path)
        owner._parameters.pop(attribute, None)
        owner._buffers.pop(attribute, None)
        while path and not [*owner._parameters, *owner._buffers, *owner._modules]:
            path, _, child = path.rpartition(".")
            owner = root.get_submodule(path)
            owner._modules.pop(child, None)


def every_name(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter and then each buffer, under all of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)

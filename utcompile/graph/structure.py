"""A structural copy of a model: its own modules and flags, the original's memory."""

from __future__ import annotations

import copy
import copyreg
from collections import Counter, OrderedDict

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph.closures import remap_functions
from utcompile.graph.memory import KeptMemory
from utcompile.graph.scripted import share_scripted
from utcompile.graph.state import every_name

_CONTAINERS = frozenset([OrderedDict, dict, list, set])
_ATOMS = frozenset([bool, int, float, str, type(None)])


def structural_copy(model: nn.Module) -> nn.Module:
    """Copy a model's modules, attributes and hooks, but share the storage of every tensor.

    Parameters become new `nn.Parameter`s over the same storage that require no gradient, so that flags set on the copy
    never reach the user's model. The copy is in eval mode, and toggling its mode has cleared the caches that some
    models keep on their modules (LeViT's `attention_bias_cache`).
    """
    memo = _memo_of(model)
    try:
        result = _copied(model, memo)
    except Exception as error:
        raise UtcError(
            f"{type(model).__name__} cannot be copied",
            why=f"copy.deepcopy failed: {error}",
            fix="remove the attribute it names from the model, or give its class a __deepcopy__",
            code="capture/unsupported",
        ) from error
    _share_numbers(result, model)
    remap_functions(result, memo)
    share_scripted(result, model)
    _set_to_eval(result, was_in_eval=not any(m.training for m in model.modules()))
    return result


def _memo_of(model: nn.Module) -> dict[int, object]:
    """A memo that saves work of `copy.deepcopy`: an alias of each tensor, and a new one of each empty container."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in module.__dict__.values():
            kind = type(value)
            if kind in _CONTAINERS and not value:  # a module has a dozen, on which deepcopy spent most of its time
                memo[id(value)] = kind()
            elif kind not in _ATOMS:
                memo.update((id(t), _alias(t)) for t in _tensors(value, 2) if not has_own_attributes(t))
    return memo


def _share_numbers(copied: nn.Module, model: nn.Module) -> None:
    """Tensors with attributes of their own were copied whole, as their class says: their numbers are shared again."""
    original = named_state(model)
    for name, tensor in named_state(copied).items():
        if has_own_attributes(tensor):
            tensor.requires_grad_(False).data = original[name].data


def _copied(model: nn.Module, memo: dict[int, object]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, without its detours where no module's class defines how it is copied."""
    modules = list(model.modules())
    if not all(map(_is_copied_plainly, set(map(type, modules)))):
        copied: nn.Module = copy.deepcopy(model, memo)
        return copied
    for module in modules:
        memo[id(module)] = type(module).__new__(type(module))
    for module in modules:
        attributes = vars(memo[id(module)])
        for name, value in vars(module).items():
            attributes[name] = value if type(value) in _ATOMS else _copy_of(value, memo)
    result = memo[id(model)]
    assert isinstance(result, nn.Module)
    return result


def _copy_of(value: object, memo: dict[int, object]) -> object:
    """`copy.deepcopy(value, memo)`, faster for common values of modules: tables by name and tuples of numbers."""
    known = memo.get(id(value))
    if known is not None or (type(value) is tuple and _ATOMS.issuperset(map(type, value))):
        return value if known is None else known
    if type(value) is not dict or not _ATOMS.issuperset(map(type, value)):
        return copy.deepcopy(value, memo)
    made = memo[id(value)] = dict[object, object]()
    for key, item in value.items():
        made[key] = item if type(item) in _ATOMS else _copy_of(item, memo)
    return made


def _is_copied_plainly(cls: type[nn.Module]) -> bool:
    inherited = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    return (
        all(getattr(cls, name) is getattr(object, name) for name in inherited)
        and cls.__setstate__ is nn.Module.__setstate__
        and not any(hasattr(cls, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
        and not any("__slots__" in vars(c) for c in cls.__mro__)
        and cls not in copyreg.dispatch_table
    )


def _set_to_eval(copied: nn.Module, *, was_in_eval: bool) -> None:
    """Toggle the mode, without a change of the memory that the copy shares with the original.

    Some classes write into weights when they are toggled (LoRA that is merged in eval): where the original is in eval
    already, its values are the right ones; else the copy gets its own memory for the tensors that were written.
    """
    if all(type(m).train is nn.Module.train for m in copied.modules()):
        copied.eval()
        return
    memory = KeptMemory(named_state(copied).values())
    with memory, torch.no_grad():
        copied.train().eval()
    written = [t for t in named_state(copied).values() if memory.is_written(t)] if not was_in_eval else []
    values = [t.detach().clone() for t in written]
    memory.put_back()
    for tensor, value in zip(written, values, strict=True):
        tensor.data = value


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach()


def has_own_attributes(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class that keeps more than numbers in it, as bitsandbytes' weights do.

    Only the layer that made it knows what they mean. A class with `__torch_dispatch__` says itself what its operations
    compute, and is not meant here.
    """
    if type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) or not vars(tensor):
        return False
    return type(tensor).__torch_dispatch__ in (torch.Tensor.__torch_dispatch__, torch._C._disabled_torch_dispatch_impl)


def _tensors(value: object, depth: int) -> list[torch.Tensor]:
    """The tensors in a module's attributes, in dicts, lists and tuples too."""
    if isinstance(value, torch.Tensor):
        return [value]
    if depth and isinstance(value, (dict, list, tuple)):
        inner = value.values() if isinstance(value, dict) else value
        return [t for v in inner for t in _tensors(v, depth - 1)]
    return []


def aliased_modules(model: nn.Module) -> tuple[str, ...]:
    """The paths of modules that are in two places of the tree: only the first has a path in a graph.

    >>> model = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> model.append(model[0])
    Sequential(...)
    >>> aliased_modules(model)
    ('0',)
    """
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    return tuple(path for path, module in model.named_modules() if places[id(module)] > 1)


def every_path(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """The paths at which a module is in the tree: several, where it is shared.

    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    >>> model.append(model[0])
    Sequential(...)
    >>> every_path(model, model[0])
    ('0', '2')
    """
    return tuple(path for path, found in model.named_modules(remove_duplicate=False) if found is module)


def named_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name (tied ones under each name)."""
    return {
        **dict(every_name(model)),
    }


def attribute_tensors(model: nn.Module) -> dict[int, tuple[str, torch.Tensor]]:
    """Tensors kept as plain attributes, neither parameters nor buffers: id -> (name, tensor)."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                found[id(value)] = (f"{path}.{name}" if path else name, value)
    return found

"""Functions that a copied model keeps are built again, over the copy instead of the original.

`copy.deepcopy` takes a function as it is. A hook such as `lambda module, given, result: self.seen.append(result)` and
a patched `layer.forward = lambda x: old(x) * 2` would then work on the model that was copied.
"""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import nn

_DEPTH = 4  # containers, functions and bound methods in one another
_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def remap_functions(copied: nn.Module, memo: dict[int, object]) -> None:
    """Build the functions on a copy's modules again, over the copy.

    Args:
        copied: changed in place.
        memo: filled by `copy.deepcopy`: the identity of an original to its copy.
    """
    remap = _Remap(memo)
    for module in copied.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, (types.FunctionType, functools.partial)):
                module.__dict__[name] = remap(value)
        for table in _TABLES:
            hooks = module.__dict__.get(table) or {}
            for key, hook in list(hooks.items()):
                hooks[key] = remap(hook)


class _Remap:
    def __init__(self, memo: dict[int, object]) -> None:
        self.memo = memo

    def __call__(self, value: Any) -> Any:
        """A value in which what was copied is replaced by its copy."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if not self._reaches(value, _DEPTH):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self(value.__func__), self(value.__self__))
        if isinstance(value, functools.partial):
            made = functools.partial(
                self(value.func), *map(self, value.args), **{k: self(v) for k, v in value.keywords.items()}
            )
            made.__dict__.update({k: self(v) for k, v in value.__dict__.items()})
            return made
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple(map(self, value))
        if type(value) is list:
            self.memo[id(value)] = made_list = list[object]()
            made_list += map(self, value)
            return made_list
        if type(value) is dict:
            self.memo[id(value)] = made_dict = dict[object, object]()
            made_dict.update((k, self(v)) for k, v in value.items())
            return made_dict
        return copy.deepcopy(value, self.memo)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self.memo[id(function)] = made
        for old, new in zip(function.__closure__ or (), cells, strict=True):
            if new is not old and _is_filled(old) and not _is_filled(new):
                new.cell_contents = self(old.cell_contents)
        made.__defaults__ = tuple(map(self, function.__defaults__ or ())) or None
        made.__kwdefaults__ = {k: self(v) for k, v in (function.__kwdefaults__ or {}).items()} or None
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        made.__dict__.update({k: self(v) for k, v in function.__dict__.items()})
        return made

    def _cell(self, cell: types.CellType) -> types.CellType:
        """Functions that share a variable still do."""
        found = self.memo.setdefault(id(cell), types.CellType())
        assert isinstance(found, types.CellType)
        return found

    def _reaches(self, value: object, depth: int) -> bool:
        """Whether a value leads to something that was copied."""
        if id(value) in self.memo:
            return True
        if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType)) or not depth:
            return False
        return any(self._reaches(v, depth - 1) for v in _parts(value))


def _parts(value: object) -> list[object]:
    if isinstance(value, types.FunctionType):
        held = [c.cell_contents for c in value.__closure__ or () if _is_filled(c)]
        return [*held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *value.__dict__.values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def _is_filled(cell: types.CellType) -> bool:
    return cell != types.CellType()  # which is empty; reading it would raise

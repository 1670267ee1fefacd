"""Hooks and other additions to a model's modules that no capture keeps: refused by name, or reported."""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from utcompile.errors import UtcError
from utcompile.graph import owner_path
from utcompile.graph.leaves import is_layer, more_than_its_class
from utcompile.recording.clock import code_names
from utcompile.recording.dropped import CHECKPOINTED, HOOKED

_SHOWN = 3  # names of one note
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")
_CHECKPOINTING = ("gradient_checkpointing", "grad_checkpointing")


def check_layers(model: nn.Module) -> None:
    """Refuse modules that have no weights yet, or have them only while they run.

    Raises:
        UtcError: a module is lazy, or a hook loads its weights in each call.
    """
    for path, module in model.named_modules():
        where = path or "the root module"
        if any(is_lazy(t) for t in [*module._parameters.values(), *module._buffers.values()]):
            raise UtcError(
                f"{type(module).__name__} has no weights yet",
                where=where,
                why="a lazy module makes them in its first call",
                fix="run the model once on the example first: model(*example)",
            )
        if _is_offloaded(module):
            raise UtcError(
                f"a hook loads the weights of {type(module).__name__} in each call",
                where=where,
                why="accelerate offloads them, so that there is nothing to record or tune",
                fix="load the model without offloading: device_map=None, or accelerate's remove_hook_from_submodules",
            )


def _is_offloaded(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(h, "offload", False) is True for h in getattr(hook, "hooks", (hook,)))


def drop_backward_hooks(copied: nn.Module) -> None:
    """Remove the backward hooks of a copy's modules: no graph keeps them, so no layer of it does either."""
    for module in copied.modules():
        for table in _BACKWARD:
            getattr(module, table, {}).clear()


def notes_on(model: nn.Module) -> tuple[str, ...]:
    """The parts that a capture records in another way than a reader may expect, each with its consequence."""
    return (*_entered(model), *_backward(model), *_hooking(model), *_checkpointed(model), *_tied(model))


def _entered(model: nn.Module) -> Iterator[str]:
    found: dict[str, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        beyond = more_than_its_class(module) if is_layer(module) or _is_parametrised(module) else None
        if beyond is not None:
            found[beyond].append(path)
    for beyond, paths in found.items():
        yield f"{_list(paths)}: {beyond}, so its computation is recorded, and the layer is not one node"


def _is_parametrised(module: nn.Module) -> bool:
    return nn.utils.parametrize.is_parametrized(module)


def _backward(model: nn.Module) -> Iterator[str]:
    paths = [p or "the root module" for p, m in model.named_modules() if any(getattr(m, t, None) for t in _BACKWARD)]
    if paths:
        yield f"{_list(paths)}: backward hooks are dropped, gradients of the capture are those without them"
    names = [n for n, p in model.named_parameters() if _hooks_of(p)]
    if names:
        yield f"{_list(names)}: hooks on a parameter's gradient are dropped, the capture has its own parameters"


def _hooking(model: nn.Module) -> Iterator[str]:
    """Modules whose code sets hooks on tensors; most do it only where a tensor requires a gradient."""
    known: dict[type, bool] = {}
    paths = []
    for path, module in model.named_modules():
        cls = type(module)
        if cls not in known:
            known[cls] = any("register_hook" in code_names(f) for f in _own_functions(cls))
        if known[cls]:
            paths.append(path or "the root module")
    if paths:
        yield f"{_list(paths)}: {HOOKED}"


def _own_functions(cls: type) -> Iterator[types.CodeType]:
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for value in vars(base).values():
                code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
                if isinstance(code, types.CodeType):
                    yield code


def _hooks_of(tensor: torch.Tensor) -> object:
    return tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)


def _checkpointed(model: nn.Module) -> Iterator[str]:
    paths = [
        p or "the root module"
        for p, m in model.named_modules()
        if any(getattr(m, n, None) is True for n in _CHECKPOINTING)
    ]
    if paths:
        yield f"{_list(paths)}: {CHECKPOINTED}"


def _tied(model: nn.Module) -> Iterator[str]:
    found: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[id(parameter)].append(name)
    shared = {path for path, _ in model.named_modules(remove_duplicate=False)} - {p for p, _ in model.named_modules()}
    for names in found.values():
        ways = [n for n in names if owner_path(n) not in shared]
        if len(ways) > 1:
            yield f"{' and '.join(ways)} are one tensor: a tuner that changes one use alone needs `all_uses: true`"


def _list(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

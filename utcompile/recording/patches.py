"""Calls that torch makes by itself reach the recorder of their thread; every other thread sees the original.

Attributes of torch are process-wide, so each replacement calls `current()` first. They are installed while a recording
has the lock of `active`, by the outermost recording only, and every attribute is the original object afterwards.

Fast paths of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` need no replacement: they are off wherever a
`TorchFunctionMode` is active, and such modes belong to one thread.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import fx, nn
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode

from utcompile.recording import dropped, transforms
from utcompile.recording.active import Args, Function, Kwargs, Replacement, current, exclusive
from utcompile.recording.derived import Apply, Scripted, ScriptFunction
from utcompile.recording.dropped import CHECKPOINTED
from utcompile.recording.questions import GRAD_MODE
from utcompile.recording.source import in_own_code

_AUTOCAST = torch.amp.autocast_mode.autocast
_FAKE_LOGGER = "torch._subclasses.fake_tensor"
_installed = 0  # the number of captures and recordings that need the replacements; the lock of `active` guards it
_undo = ExitStack()


@contextmanager
def patched() -> Iterator[None]:
    """Keep the replacements installed. Outside of recordings, and in other threads, they do what the originals do.

    A capture keeps them from its first recording to its last: replacing a method of `nn.Module` empties Python's caches
    of attributes for all its subclasses, which are thousands.
    """
    global _installed
    with exclusive():
        if not _installed:
            _undo.enter_context(_rules_of_dynamo())
            for owner, name, make in _REPLACEMENTS:
                _undo.enter_context(_replaced((owner, name, make)))
            _undo.enter_context(_quiet())
        _installed += 1
    try:
        yield
    finally:
        with exclusive():
            _installed -= 1
            if not _installed:
                _undo.close()


@contextmanager
def _replaced(replacement: Replacement) -> Iterator[None]:
    owner, name, make = replacement
    original = vars(owner)[name]
    try:
        setattr(owner, name, make(original))
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _rules_of_dynamo() -> Iterator[None]:
    """`torch.compile` has a table of torch's functions; made in here, it has replaced ones, so it is made again."""
    name = "torch._dynamo.trace_rules"
    there = name in sys.modules
    try:
        yield
    finally:
        if not there and name in sys.modules:
            sys.modules[name].get_torch_obj_rule_map.cache_clear()


@contextmanager
def no_gpu_context() -> Iterator[None]:
    """A fake tensor on a GPU starts nothing there: torch 2.11 allocates a real one with the first of them."""
    with exclusive(), _replaced((fake_tensor, "init_gpu_context", lambda _: lambda device: None)):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log an error where they also raise one; a recording handles the exception."""

    def elsewhere(_: logging.LogRecord) -> bool:
        return current() is None

    logger = logging.getLogger(_FAKE_LOGGER)
    logger.addFilter(elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(elsewhere)


class WithoutFastPath(TorchFunctionMode):
    """A mode that only switches off the fast paths of torch's attention modules in this thread.

    A fast path skips the submodules, and differs by rounding.
    """

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        return func(*args, **(kwargs or {}))


# --- the replacements -------------------------------------------------------------------------------------------------


def _call(original: Function) -> Function:
    def recorded_call(module: nn.Module, *args: object, **kwargs: object) -> object:
        recorder = current()
        return (
            original(module, *args, **kwargs)
            if recorder is None
            else recorder.module_call(original, module, args, kwargs)
        )

    return recorded_call


class _Descriptor(Protocol):
    def __get__(self, instance: object, owner: type | None = None) -> Function: ...


def _apply(original: _Descriptor) -> object:
    def recorded_apply(cls: type[torch.autograd.Function], /, *args: object, **kwargs: object) -> object:
        recorder = current()
        if recorder is not None and cls is torch.utils.checkpoint.CheckpointFunction:
            recorder.note(CHECKPOINTED)
            run, _, *given = args
            assert callable(run)
            return run(*given, **kwargs)  # the function is recorded, and not that it runs again for the gradient
        if recorder is None or recorder.is_silent:
            return original.__get__(None, cls)(*args, **kwargs)
        return recorder.function(Apply(cls), args, kwargs)

    return classmethod(recorded_apply)


def _script(original: _Descriptor) -> Function:
    def recorded_script(function: ScriptFunction, *args: object, **kwargs: object) -> object:
        recorder = current()
        if recorder is None or recorder.is_silent:
            return original.__get__(function)(*args, **kwargs)
        return recorder.function(Scripted(function), args, kwargs)

    return recorded_script


_regions: dict[int, list[fx.Node]] = {}  # by the identity of an autocast region, which lives while it is entered


def _enter(original: Function) -> Function:
    def recorded_enter(region: torch.autocast) -> object:
        result = original(region)
        recorder = current()
        if recorder is not None and not recorder.is_silent:
            settings = (region.device, region.fast_dtype, region._enabled, region._cache_enabled)
            _regions.setdefault(id(region), []).append(recorder.regions.enter_autocast(*settings))
        return result

    return recorded_enter


def _leave(original: Function) -> Function:
    def recorded_leave(region: torch.autocast, *error: object) -> object:
        recorder = current()
        if recorder is not None and not recorder.is_silent and _regions.get(id(region)):
            entered = _regions[id(region)]
            recorder.regions.exit_autocast(entered.pop())
            if not entered:
                del _regions[id(region)]
        return original(region, *error)

    return recorded_leave


def _check(original: Function) -> Function:
    def unchecked(error: object, condition: object, message: object = None) -> None:
        """Assertions about the values of a tensor do not change the result of a model."""
        if current() is None:
            original(error, condition, message)

    return unchecked


def _is_compiling(original: Callable[[], bool]) -> Callable[[], bool]:
    def as_if_traced() -> bool:
        """A model that is traced leaves out choices by values; fake tensors answer this question by themselves."""
        recorder = current()
        return original() if recorder is None or not recorder.is_real else True

    return as_if_traced


def _is_grad_enabled(original: Callable[[], bool]) -> Callable[[], bool]:
    def is_grad_enabled() -> bool:
        """Whether gradients are recorded, which the model's own code may read; torch asks its C code."""
        recorder, enabled = current(), bool(original())
        if recorder is not None and not recorder.is_silent and in_own_code():
            recorder.questions.flag(0, GRAD_MODE, enabled)
        return enabled

    return is_grad_enabled


_REPLACEMENTS: tuple[Replacement, ...] = (
    (nn.Module, "__call__", _call),
    (torch.autograd.Function, "apply", _apply),
    (_AUTOCAST, "__enter__", _enter),
    (_AUTOCAST, "__exit__", _leave),
    (torch, "_check_tensor_all_with", _check),
    (torch.compiler, "is_compiling", _is_compiling),
    (torch, "is_grad_enabled", _is_grad_enabled),
    (torch.jit.ScriptFunction, "__call__", _script),
    *dropped.REPLACEMENTS,
    *transforms.REPLACEMENTS,
)

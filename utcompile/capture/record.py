"""One recording: the model's real `forward`, on fake tensors, at one sample."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utcompile.capture.active import recording
from utcompile.capture.derived import Apply, Scripted
from utcompile.capture.dropped import CHECKPOINTED, dropped_noted
from utcompile.capture.inputs import Inputs
from utcompile.capture.layers import drop_backward_hooks
from utcompile.capture.nested import tensors
from utcompile.capture.rebinding import rebound
from utcompile.capture.recorder import Recorder
from utcompile.capture.samples import Sample
from utcompile.capture.transforms import operators_named
from utcompile.capture.unrecordable import Unrecordable
from utcompile.errors import UtcError
from utcompile.graph.structure import attribute_tensors, named_state

T = torch.Tensor


def record(
    model: nn.Module,
    inputs: Inputs,
    sample: Sample,
    leaves: frozenset[str] = frozenset(),
    *,
    real: bool = False,
    fixed: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset([""]),
) -> Recorder:
    """Run a model once and write down what it does.

    Args:
        model: a structural copy; it is used up.
        inputs: only the sizes of their tensors matter; other values become constants.
        sample: the sizes, dtype, device and mode of this recording.
        leaves: modules that are one node.
        real: compute with real values, where something needs them.
        fixed: inputs whose values Python may read.
        wide: modules whose own choices by values are recorded.

    Raises:
        Unrecordable: a call in some module cannot be written down.
        UtcError: the model's forward failed.
    """
    model.train(sample.training)
    drop_backward_hooks(model)
    fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(_paths(model), leaves, real=real, fixed=fixed, wide=wide)
    convert = _Converter(fake, sample, tensors(inputs.arguments)[0].device)
    state: dict[str, T] = {}
    for name, tensor in named_state(model).items():
        state[name] = convert(tensor)
        recorder.name_state(state[name], name)
        recorder.name_state(tensor, name)
    for name, tensor in attribute_tensors(model).values():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        recorder.name_state(tensor, name)
        if not real:
            owner.__dict__[attribute] = convert(tensor)
            recorder.name_state(owner.__dict__[attribute], name)
        recorder.attributes[name] = tensor
    arguments = _arguments(inputs, sample, _shuffled(sample) if real else convert)
    for tensor in () if real else tensors(arguments):
        tensor._item_memo = None  # type: ignore[attr-defined]  # the value of an integer input is no part of the graph
    for name, value in arguments.items():
        recorder.bind_input(name, value)
    bound = inspect.signature(model.forward).bind_partial()
    named = set(inspect.signature(model.forward).parameters)
    bound.arguments.update({k: v for k, v in arguments.items() if k in named})
    extra = {k: v for k, v in arguments.items() if k not in named}
    with recording(recorder), torch.random.fork_rng(devices=[]), _patched(recorder), _quiet(), _as_if_traced(real):
        try:
            with fake or nullcontext(), rebound(model), recorder:
                out = torch.func.functional_call(model, state, bound.args, {**bound.kwargs, **extra})
            with fake or nullcontext():
                recorder.output(out)
        except (UtcError, Unrecordable):
            raise
        except Exception as error:
            if recorder.hidden is not None:  # raised inside the interpreter of TorchScript, which made it another
                raise recorder.hidden from error
            raise _failure(error, arguments, next(iter(reversed(recorder.graph.nodes)), None)) from error
    return recorder


def _arguments(inputs: Inputs, sample: Sample, convert: Callable[[T], T]) -> dict[str, Any]:
    """The inputs at a sample.

    Raises:
        UtcError: one is a kind of tensor that has no other sizes, or no fake.
    """
    try:
        return inputs.at(sample.sizes, convert)
    except Exception as error:  # each kind of tensor has its own
        kinds = {_kind(t) for t in tensors(inputs.arguments)}
        raise UtcError(
            "the example inputs are of a kind that cannot be recorded",
            where=", ".join(sorted(kinds)),
            why=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            fix="wrap the model in a module that takes plain tensors and makes these of them",
        ) from error


def _kind(tensor: T) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    return f"{type(tensor).__name__} ({layout}{', quantized' if tensor.is_quantized else ''})"


def _shuffled(sample: Sample) -> Callable[[T], T]:
    """The example's values in another order, so of the same range."""
    generator = torch.Generator().manual_seed(sample.shuffle)

    def shuffle(tensor: T) -> T:
        if not sample.shuffle or not tensor.is_floating_point():
            return tensor
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].view(tensor.shape)

    return shuffle


class _Converter:
    """Makes the tensors of a recording: fakes of the sample's dtype and device, the same one for tied weights."""

    def __init__(self, fake: FakeTensorMode | None, sample: Sample, home: torch.device) -> None:
        self._fake, self._sample = fake, sample
        self._home = home  # where weights on the meta device are taken to be
        self._known: dict[int, T] = {}
        self._alive: list[T] = []

    def __call__(self, tensor: T) -> T:
        if self._fake is None:
            return tensor
        if id(tensor) not in self._known:
            self._known[id(tensor)] = self._convert(tensor, self._fake)
            self._alive.append(tensor)
        return self._known[id(tensor)]

    def _convert(self, tensor: T, fake: FakeTensorMode) -> T:
        dtype = self._sample.dtype if tensor.is_floating_point() else None
        device = self._sample.device or (self._home if tensor.is_meta else None)
        if dtype is None and device is None:
            return fake.from_tensor(tensor, static_shapes=True)
        with fake:
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=device or tensor.device
            )
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _paths(model: nn.Module) -> dict[int, str]:
    """The first name of every module."""
    return {id(m): name for name, m in reversed([*model.named_modules(remove_duplicate=False)])}


@contextmanager
def _as_if_traced(real: bool) -> Iterator[None]:
    """Models that ask whether they are traced leave choices by values out; fake tensors tell them, real ones do not."""
    before = torch.compiler.is_compiling
    if real:
        torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log what they cannot do as errors; here it is an exception that somebody handles."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _patched(recorder: Recorder) -> Iterator[None]:
    """Module calls, autocast regions and autograd.Functions reach the recorder; fast paths are off."""
    call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
    autocast = torch.amp.autocast_mode.autocast
    enter, leave = autocast.__enter__, autocast.__exit__
    fast_path = torch.backends.mha.get_fastpath_enabled()
    check = torch._check_tensor_all_with
    script = torch.jit.ScriptFunction.__call__
    regions: dict[int, list[Any]] = {}

    def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.module_call(call, module, args, kwargs)

    def recorded_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        own = apply.__get__(None, cls)
        if cls is torch.utils.checkpoint.CheckpointFunction:  # what it runs is recorded, not that it is run again
            recorder.note(CHECKPOINTED)
            return args[0](*args[2:], **kwargs)
        return own(*args, **kwargs) if recorder.is_silent else recorder.function(Apply(cls), args, kwargs)

    def recorded_script(function: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.is_silent:
            return script(function, *args, **kwargs)
        return recorder.function(Scripted(function), args, kwargs)

    def recorded_enter(region: Any) -> Any:
        result = enter(region)
        if not recorder.is_silent:
            settings = (region.device, region.fast_dtype, region._enabled, region._cache_enabled)
            regions.setdefault(id(region), []).append(recorder.enter_autocast(*settings))
        return result

    def recorded_leave(region: Any, *error: Any) -> Any:
        if regions.get(id(region)) and not recorder.is_silent:
            recorder.exit_autocast(regions[id(region)].pop())
        return leave(region, *error)

    def unchecked(error: Any, condition: Any, message: Any = None) -> None:
        """What a model asserts of the values of a tensor is no part of what it computes."""

    nn.Module.__call__ = recorded_call  # type: ignore[method-assign]
    torch.autograd.Function.apply = classmethod(recorded_apply)
    autocast.__enter__, autocast.__exit__ = recorded_enter, recorded_leave  # type: ignore[method-assign]
    torch._check_tensor_all_with = unchecked  # type: ignore[assignment]
    torch.jit.ScriptFunction.__call__ = recorded_script  # type: ignore[method-assign, assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with operators_named(recorder), dropped_noted(recorder):
            yield
    finally:
        torch._check_tensor_all_with = check
        torch.jit.ScriptFunction.__call__ = script  # type: ignore[method-assign]
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = apply
        autocast.__enter__, autocast.__exit__ = enter, leave  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _failure(error: Exception, arguments: dict[str, Any], last: fx.Node | None) -> UtcError:
    """The model's own forward failed while it was recorded."""
    origin = last.meta.get("origin") if last is not None else None
    place = f"after {origin.scope[-1].path or 'the root module'} ({origin.source})" if origin and origin.scope else None
    shapes = ", ".join(f"{k}: {list(v.shape)}" for k, v in arguments.items() if isinstance(v, T))
    return UtcError(
        f"the model's forward failed on inputs {shapes or 'without tensors'}",
        where=place,
        why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
        fix="check that the example inputs fit the model: it must run on them by itself",
    )

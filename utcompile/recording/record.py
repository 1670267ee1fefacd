"""One recording: the model's real `forward`, on fake tensors, at one sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from utcompile.errors import UtcError
from utcompile.graph import info
from utcompile.graph.nested import tensors
from utcompile.graph.structure import attribute_tensors, named_state
from utcompile.graph.values_kept import values_kept
from utcompile.recording.active import recording
from utcompile.recording.fakes import Converter
from utcompile.recording.inputs import Inputs
from utcompile.recording.lasting import watched
from utcompile.recording.layers import drop_backward_hooks
from utcompile.recording.patches import no_gpu_context, patched
from utcompile.recording.rebinding import rebound
from utcompile.recording.recorder import Recorder
from utcompile.recording.samples import Sample, other_device
from utcompile.recording.unrecordable import Unrecordable
from utcompile.recording.untouched import random_numbers_kept
from utcompile.recording.watch import Watch

T = torch.Tensor


@no_gpu_context()
def record(
    model: nn.Module,
    inputs: Inputs,
    sample: Sample,
    leaves: frozenset[str] = frozenset(),
    *,
    real: bool = False,
    fixed: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset([""]),
    watch: Watch,
) -> Recorder:
    """Run a model once and write down its operations.

    Args:
        model: a structural copy; it is used up.
        inputs: only the sizes of their tensors matter; other values become constants.
        sample: the sizes, dtype, device and mode of this recording.
        leaves: modules that are one node.
        real: compute with real values, where something needs them.
        fixed: inputs whose values Python may read.
        wide: modules whose own choices by values are recorded.
        watch: collects the Python state that forward leaves behind.

    Raises:
        Unrecordable: a call in some module cannot be written down.
        UtcError: the model's forward failed.
    """
    model.train(sample.training)
    drop_backward_hooks(model)
    fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
    home = home_of(model, inputs)
    device = None if sample.device is None else other_device(home)
    convert = Converter(fake, sample.dtype, device, home)
    kept = random_numbers_kept(model)
    names, attributes = _name_state(model, convert, real)
    given = _shuffled(sample) if real else convert

    def once() -> Recorder:
        recorder = Recorder(_paths(model), leaves, real=real, fixed=fixed, wide=wide)
        recorder.attributes = attributes
        for tensor, name in names:
            recorder.name_state(tensor, name)
        arguments = _arguments(inputs, sample, given, values=real)
        for tensor in () if real else tensors(arguments):
            tensor._item_memo = None  # type: ignore[attr-defined]  # an input's value is no part of the graph
        for name, value in arguments.items():
            recorder.bind_input(name, value)
        with recording(recorder), patched():
            _run(model, recorder, inputs, arguments, fake)
        return recorder

    judges, seed = not (sample.dtype or sample.device), torch.initial_seed()
    with kept:
        if real:
            with values_kept(model) as memory:
                return watched(once, model, watch, judges=judges, written=lambda: memory.written(named_state(model)))
        recorder = watched(once, model, watch, judges=judges)
        if torch.initial_seed() != seed:  # fakes draw no numbers, so it is forward that seeds
            watch.drawn["torch's random numbers, which forward seeds"] = None
        return recorder


def _name_state(model: nn.Module, convert: Converter, real: bool) -> tuple[list[tuple[T, str]], dict[str, T]]:
    """Put the recording's tensors into the model; returns each with its name, and the attribute tensors by name."""
    names: list[tuple[T, str]] = []
    attributes: dict[str, T] = {}
    state, kept = named_state(model), attribute_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    convert.expect([*state.values(), *(tensor for _, tensor in kept.values())])
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        owner, made = modules[path], convert(tensor)
        table = owner._parameters if attribute in owner._parameters else owner._buffers
        table[attribute] = made
        names += [(made, name), (tensor, name)]
    for name, tensor in kept.values():
        path, _, attribute = name.rpartition(".")
        names.append((tensor, name))
        if not real:
            modules[path].__dict__[attribute] = convert(tensor)
            names.append((convert(tensor), name))
        attributes[name] = tensor
    return names, attributes


def _run(
    model: nn.Module, recorder: Recorder, inputs: Inputs, arguments: dict[str, object], fake: FakeTensorMode | None
) -> None:
    args, kwargs = inputs.as_given(arguments)
    try:
        with fake or nullcontext(), rebound(model), recorder:
            out = model(*args, **kwargs)
        with fake or nullcontext():
            recorder.output(out)
    except (UtcError, Unrecordable):
        raise
    except Exception as error:
        if recorder.hidden is not None:  # raised inside the interpreter of TorchScript, which made it another
            raise recorder.hidden from error
        raise _failure(error, arguments, next(iter(reversed(recorder.graph.nodes)), None)) from error


def home_of(model: nn.Module, inputs: Inputs) -> torch.device:
    """The device of a model's weights or, where those are on the meta device, of its inputs."""
    everything = chain(model.parameters(), model.buffers(), tensors(inputs.arguments))
    first = next(everything).device
    return next((t.device for t in everything if t.device.type != "meta"), first) if first.type == "meta" else first


def _arguments(inputs: Inputs, sample: Sample, convert: Callable[[T], T], *, values: bool) -> dict[str, object]:
    """The inputs at a sample.

    Raises:
        UtcError: one is a kind of tensor that has no other sizes, or no fake.
    """
    try:
        return inputs.at(sample.sizes, convert, values=values)
    except Exception as error:  # each kind of tensor has its own
        kinds = {_kind(t) for t in tensors(inputs.arguments)}
        raise UtcError(
            "the example inputs are of a kind that cannot be recorded",
            where=", ".join(sorted(kinds)),
            why=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="wrap the model in a module that takes plain tensors and makes these of them",
            code="capture/unsupported",
        ) from error


def _kind(tensor: T) -> str:
    layout = str(tensor.layout).removeprefix("torch.")
    return f"{type(tensor).__name__} ({layout}{', quantized' if tensor.is_quantized else ''})"


def _shuffled(sample: Sample) -> Callable[[T], T]:
    """The example's values in another order, so of the same range."""
    generator = torch.Generator().manual_seed(sample.shuffle)

    def shuffle(tensor: T) -> T:
        if not sample.shuffle or not tensor.is_floating_point():
            return tensor.clone()  # a forward may write into its inputs
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].view(tensor.shape)

    return shuffle


def _paths(model: nn.Module) -> dict[int, str]:
    """The first name of every module."""
    return {id(m): name for name, m in reversed([*model.named_modules(remove_duplicate=False)])}


def _failure(error: Exception, arguments: dict[str, object], last: fx.Node | None) -> UtcError:
    """The error of a model whose own forward failed while it was recorded."""
    origin = info(last).origin if last is not None else None
    place = f"after {origin.scope[-1].path or 'the root module'} ({origin.source})" if origin and origin.scope else None
    shapes = ", ".join(f"{k}: {list(v.shape)}" for k, v in arguments.items() if isinstance(v, T))
    return UtcError(
        f"the model's forward failed on inputs {shapes or 'without tensors'}",
        where=place,
        why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
        fix="check that the example inputs fit the model: it must run on them by itself",
        code="capture/forward-failed",
    )

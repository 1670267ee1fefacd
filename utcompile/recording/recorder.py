"""Recording: a mode under which every torch call of a running model is written down as an fx node."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _pop_mode_temporarily,
    is_tensor_method_or_property,
)

from utcompile.graph import Frame, hooks_for_all, info, is_leaf
from utcompile.graph.nested import flat
from utcompile.recording import known_shapes
from utcompile.recording.active import Args, Function, Kwargs
from utcompile.recording.metadata import NBYTES, READS, Metadata
from utcompile.recording.questions import Questions, slices
from utcompile.recording.regions import Regions
from utcompile.recording.torch_calls import OPERATORS, REFLECTED, fresh, has_size_of_data, version_of, without_override
from utcompile.recording.tracked import plain
from utcompile.recording.unrecordable import DATA_ERRORS, READS_DATA
from utcompile.recording.value_reads import ValueReads
from utcompile.recording.writer import Writer

T = torch.Tensor
# functions of torch whose own code is recorded, not the call: they use weights that a tuner may change
_OPENED = (torch.nn.functional.multi_head_attention_forward,)
_Watched = tuple[object, list[T], list[T]]  # a result, the tensors that were read, and those that were written


class _Silence:
    """While it is entered, once or several times, nothing is recorded."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class Recorder(Writer, TorchFunctionMode):
    """Turns every torch-level call into an fx node; values are found again by identity.

    Args:
        paths: the modules of the model by id, to their names.
        leaves: names of modules that are one node each, in addition to the layers of torch.nn.
        real: the values are real, so that reading their data outside a leaf is what cannot be recorded.
        fixed: inputs whose values are part of the graph; Python may read them.
        wide: modules too large to be one node: a choice by values in their own code is recorded, and checked in calls.

    Attributes:
        questions: decisions of Python by sizes and flags.
        metadata: sizes and strides that Python read.
        values: choices that Python made by values.
        regions: where gradients and autocast are switched.
    """

    def __init__(
        self,
        paths: Mapping[int, str],
        leaves: frozenset[str] = frozenset(),
        *,
        real: bool = False,
        fixed: frozenset[str] = frozenset(),
        wide: frozenset[str] = frozenset([""]),
    ) -> None:
        TorchFunctionMode.__init__(self)
        Writer.__init__(self, real=real)
        self._paths, self._leaves = paths, leaves
        self.questions = Questions()
        self.metadata = Metadata(self, self.questions)
        self.values = ValueReads(self, fixed, wide)
        self.regions = Regions(self)
        self._silence = _Silence()
        self._methods: dict[Function, bool] = {}

    @property
    def is_silent(self) -> bool:
        """Whether what runs now is inside a recorded call."""
        return self._silence.depth > 0

    @property
    def is_real(self) -> bool:
        """Whether the recording computes."""
        return self._real

    # --- calls of torch ---------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        given, named = tuple(args), kwargs or {}
        args, kwargs = plain(given), plain(named)
        if self._silence.depth:
            return func(*args, **kwargs)
        if func in _OPENED:
            with self:
                return without_override(func)(*given, **named)
        if func is torch._C._set_grad_enabled:
            self.regions.set_grad_enabled(bool(args[0]))
            return None
        if self._real and func in READS_DATA and self.values.vary(args):
            return self.values.choice(func, args)
        try:
            out, read, written = self._watched(func, args, kwargs)
        except DATA_ERRORS as error:
            raise self.values.error(func, args, error) from error
        with self._silence:
            if func in READS:
                return self.metadata.read(func, given, named, out)
            if func in READS_DATA and not self._real and isinstance(out, (bool, int)) and self.values.vary(args):
                return self.values.same_choice(args[0], out)  # a constant that torch kept, made of a size
            if func == NBYTES and isinstance(args[0], T):
                return self.metadata.nbytes(args[0])
            return self._recorded(func, (given, named), (args, kwargs), (out, read, written))

    def _recorded(self, func: Function, given: tuple[Args, Kwargs], ran: tuple[Args, Kwargs], call: _Watched) -> object:
        """Write a call down.

        Args:
            given: the arguments as the model gave them, tracked numbers included.
            ran: the same without tracked numbers.
            call: its result, and the tensors that it read and wrote.
        """
        out, read, written = call
        self.questions.decide(getattr(func, "__name__", ""), *given, out, self.metadata.size)
        tensor = ran[0][0] if func is T.__getitem__ else None
        cut = slices(tensor, given[0][1], self.metadata.size) if isinstance(tensor, T) else []
        if not written and not flat(out):
            return out
        out = fresh(out, read, written)
        node = self._node_of_call(func, *self.given(*given))
        if self._real and has_size_of_data(func, *ran):
            info(node).size_of_data = True
        result = self.yielded(node, out, written)
        self.questions.shape(cut, info(node).serial)
        return result

    def _watched(self, func: Function, args: Args, kwargs: Kwargs) -> _Watched:
        """Call silently."""
        read = flat((args, kwargs))
        with self._silence:
            known = known_shapes.product(func, args, kwargs)
            if known is not None:
                return known, read, []
            versions = [version_of(t) for t in read]
            out = func(*args, **kwargs)
            return out, read, [t for t, v in zip(read, versions, strict=True) if version_of(t) != v]

    def _node_of_call(self, func: Function, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> fx.Node:
        if func in (T.__getitem__, T.__setitem__):
            return self.graph.call_function(getattr(operator, func.__name__.strip("_")), args, kwargs)
        if not self._is_of_tensors(func) and getattr(T, func.__name__, None) is not func:
            return self.graph.call_function(func, args, kwargs)
        if func.__name__ == "__get__":  # a property such as x.T
            name: str = getattr(func, "__self__", func).__name__
            return self.graph.call_function(getattr, (args[0], name))
        plain = OPERATORS.get(func.__name__)
        if plain is not None and not kwargs:
            return self.graph.call_function(plain, args[::-1] if func.__name__ in REFLECTED else args)
        return self.graph.call_method(func.__name__, args, kwargs)

    def _is_of_tensors(self, func: Function) -> bool:
        if func not in self._methods:  # torch's own answer sets warning filters every time
            self._methods[func] = is_tensor_method_or_property(func)
        return self._methods[func]

    def function(self, target: Function, args: Args, kwargs: Kwargs) -> object:
        """A call that torch does not announce (an autograd.Function), recorded as one node."""
        out, read, written = self._watched(target, plain(args), plain(kwargs))
        with self._silence:
            out = fresh(out, read, written)
            return self.yielded(self.graph.call_function(target, *self.given(args, kwargs)), out, written)

    # --- calls of modules -------------------------------------------------------------------------------------------

    def module_call(self, original: Function, module: nn.Module, args: Args, kwargs: Kwargs) -> object:
        """Replaces `nn.Module.__call__`: leaf modules become one node, the others are entered."""
        path = self._paths.get(id(module))
        if self._silence.depth or path is None:
            return original(module, *args, **kwargs)
        if path and (path in self._leaves or self._is_one_node(module, path)):
            return self._leaf(original, module, path, args, kwargs)
        frame = Frame(path, type(module).__name__)
        with self.inside(frame):
            out = original(module, *args, **kwargs)
            self.check_known(out)
        self._note_call(frame, (args, kwargs), out)
        return out

    def _is_one_node(self, module: nn.Module, path: str) -> bool:
        """Whether a module does what its class does, with its own state: `functional_call` lends it another one."""
        state = (*module._parameters.items(), *module._buffers.items())
        is_own = all(t is None or self.is_state(f"{path}.{name}", t) for name, t in state)
        return is_own and is_leaf(module) and not hooks_for_all()

    def _leaf(self, original: Function, module: nn.Module, path: str, args: Args, kwargs: Kwargs) -> object:
        try:
            is_opaque = path in self._leaves
            out, read, written = self._layer(original, module, plain(args), plain(kwargs), is_opaque=is_opaque)
        except DATA_ERRORS as error:
            raise self.unrecordable(f"it needs values ({type(error).__name__})", data=True, path=path) from error
        with self._silence:
            out = fresh(out, read, written)
            node = self.graph.call_module(path, *self.given(args, kwargs))
            info(node).layer = type(module).__name__
            info(node).opaque = path in self._leaves
            return self.yielded(node, out, written)

    def _layer(self, original: Function, module: nn.Module, args: Args, kwargs: Kwargs, *, is_opaque: bool) -> _Watched:
        """Call a module that is one node; a layer of torch runs without this mode, which would see every step."""
        with self._silence, torch._C.DisableTorchFunction():  # else every property of a tensor comes here
            known = known_shapes.linear(module, args, kwargs)
        if known is not None:
            return known, flat(args), []
        is_on_top = _get_current_function_mode() is self
        with _pop_mode_temporarily() if is_on_top and not is_opaque else nullcontext():
            return self._watched(partial(original, module), args, kwargs)

    def _note_call(self, frame: Frame, given: object, out: object) -> None:
        """Write on the node of a module's first output which call it ends, and what that call read first."""
        read, made = (next((self.node_of(t) for t in flat(v)), None) for v in (given, out))
        if read is not None and made is not None:
            info(made).ends = (*info(made).ends, frame)
            info(made).ends_from = (*info(made).ends_from, read)

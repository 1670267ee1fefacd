"""Recording: a mode under which every torch call of a running model is written down as an fx node."""

from __future__ import annotations

import enum
import math
import operator
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _pop_mode_temporarily,
    is_tensor_method_or_property,
)

from utcompile.graph import Frame, Origin, Seen, ancestors, hooks_for_all, info, is_leaf
from utcompile.recording import known_shapes
from utcompile.recording.derived import InOrder, Rebuild, same_choice, set_grad_enabled
from utcompile.recording.expressions import Expression
from utcompile.recording.live import LiveNodes
from utcompile.recording.nested import flat, is_named_tuple, parts, tensors
from utcompile.recording.questions import Questions, slices
from utcompile.recording.rebinding import original_of
from utcompile.recording.recorded import holds_numbers, with_expression
from utcompile.recording.source import source_line
from utcompile.recording.torch_calls import OPERATORS, REFLECTED, fresh, has_size_of_data, version_of, without_override
from utcompile.recording.tracked import Sizes, is_tracked, plain, tracked
from utcompile.recording.transforms import operator_name, running_transform
from utcompile.recording.unrecordable import DATA_ERRORS, READS_DATA, READS_SIZES, Unrecordable

T = torch.Tensor
# functions of torch whose own code is recorded, not the call: they use weights that a tuner may want
_OPENED = (torch.nn.functional.multi_head_attention_forward,)
# reads of metadata: they run, and leave no node
_PROPERTIES = (
    "shape dtype device ndim requires_grad layout is_cuda is_leaf grad_fn is_meta is_sparse _version"
).split()
_NOT_RECORDED = {
    *(getattr(T, name).__get__ for name in _PROPERTIES), T.dim, T.size, T.numel, T.nelement, T.stride, T.__len__,
    T.is_floating_point, T.is_contiguous, T.is_complex, T.untyped_storage, T.data_ptr, T.element_size, T.storage_offset,
    T.get_device, torch.numel,
}  # fmt: skip
# what leaves sizes that an input holds readable, element by element
_ELEMENTWISE = frozenset(
    "getitem getattr unbind select reshape view flatten squeeze unsqueeze split chunk to long int cpu clone contiguous "
    "detach mul prod floordiv add sub __get__".split()
)
# what the code of a graph can spell out as an argument, beside nodes and containers
_WRITABLE = (
    type(None), type(...), bool, int, float, complex, str, bytes, range, enum.Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_PLAIN = frozenset([*_WRITABLE]) - {range, enum.Enum}
# reads of metadata that differ between calls: they are answered with numbers that remember
_SHAPE: Any = vars(torch._C.TensorBase)["shape"].__get__
_NBYTES: Any = vars(torch._C.TensorBase)["nbytes"].__get__
_COUNTS = (T.numel, T.nelement, torch.numel)
_FLAGS: dict[Any, str] = {
    vars(torch._C.TensorBase)["requires_grad"].__get__: "requires_grad",
    T.is_contiguous: "is_contiguous",
}


class _Silence:
    """While it is entered, as often as one likes, nothing is recorded."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class Recorder(TorchFunctionMode):
    """Turns every torch-level call into an fx node; values are found again by identity.

    Args:
        paths: the modules of the model by id, to their names.
        leaves: names of modules that are one node each, beside the layers of torch.nn.
        real: the values are real, so that reading their data outside a leaf is what cannot be recorded.
        fixed: inputs whose values are part of the graph; Python may read them.
        wide: modules too large to be one node: a choice by values in their own code is recorded, and checked in calls.
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
        super().__init__()
        self.graph = fx.Graph()
        self.attributes: dict[str, T] = {}
        self.constants: dict[str, T] = {}
        self.inputs: list[fx.Node] = []
        self._paths, self._leaves, self._real, self._fixed, self._wide = paths, leaves, real, fixed, wide
        self.choices: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self.questions = Questions()
        self.readings: dict[Expression, int] = {}
        self._serial = 0
        self._nodes = LiveNodes()
        self._state: list[T] = []  # its ids stay unique while it lives
        self._state_names: dict[int, str] = {}
        self._scope: list[Frame] = []
        self._grad_modes: list[tuple[bool, fx.Node, Any]] = []
        self._silence = _Silence()
        self._methods: dict[Any, bool] = {}
        self._sized = False  # whether the arguments of this call hold a number that was computed from sizes
        self.hidden: Unrecordable | None = None  # the last reason why something cannot be recorded

    @property
    def is_silent(self) -> bool:
        """Whether what runs now is inside a recorded call."""
        return self._silence.depth > 0

    @property
    def is_real(self) -> bool:
        """Whether the recording computes."""
        return self._real

    # --- values -------------------------------------------------------------------------------------------------

    def name_state(self, tensor: T, name: str) -> None:
        """Make a parameter or buffer known by its name."""
        self._state_names.setdefault(id(tensor), name)
        self._state.append(tensor)

    def bind_input(self, name: str, value: Any) -> None:
        """Make an argument of `forward` a placeholder; `inputs` lists the nodes of its tensors in order."""
        self.bind(value, self._numbered(self.graph.placeholder(name)))
        self.inputs += self._known(tensors(value))

    def bind(self, value: Any, node: fx.Node) -> None:
        """From here on, the tensors in `value` are what `node` yields."""
        if isinstance(value, T):
            storage = self._nodes.bind(value, node)
            info(node).seen = Seen(tuple(value.shape), value.dtype, value.device, storage)
            return
        for name, part in parts(value):
            if tensors(part):
                access = operator.getitem if isinstance(value, (tuple, list, dict)) else getattr
                self.bind(part, self._note(self.graph.call_function(access, (node, name))))
        if not isinstance(value, (tuple, list, dict)) and hasattr(value, "__dict__"):
            self._nodes.bind(value, node)

    def above(self, values: Iterable[T]) -> set[fx.Node]:
        """The nodes that values are computed from, their own included; empty where one is not known."""
        nodes = [self._nodes.get(value) for value in values]
        known = [n for n in nodes if n is not None]
        return set(ancestors(known)) if len(known) == len(nodes) else set()

    def node_of(self, value: T) -> fx.Node | None:
        """The node that made a tensor, where one is known."""
        return self._nodes.get(value)

    def kept(self, node: fx.Node) -> T | None:
        """The tensor that a node reads, where it is neither parameter nor buffer."""
        return self.constants.get(str(node.target))

    def _known(self, values: Iterable[T]) -> list[fx.Node]:
        """The nodes of those tensors that have one."""
        return [node for node in map(self._nodes.get, values) if node is not None]

    def argument(self, value: Any) -> Any:
        """A call's argument with its tensors replaced by their nodes."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, T):
            return self._node(value)
        if is_tracked(value):
            self._sized = True
            return with_expression(value)
        if isinstance(value, torch.Size):
            return tuple(self.argument(v) for v in tuple(value))
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, type):  # `dtype=int`
            return _DTYPES.get(original_of(value), value)
        if isinstance(value, slice):
            return slice(*(self.argument(v) for v in (value.start, value.stop, value.step)))
        if is_named_tuple(value):
            return self._named_tuple(value, self.argument)
        if isinstance(value, (tuple, list)):
            members = [self.argument(v) for v in value]
            return members if isinstance(value, list) else tuple(members)
        if isinstance(value, dict):
            return {k: self.argument(v) for k, v in value.items()}
        node = self._nodes.get(value)
        if node is not None and hasattr(value, "__dict__"):
            return node
        if tensors(value):  # an object made in forward; what a leaf writes into it nobody will find
            return self._result(value)
        if not isinstance(value, _WRITABLE):
            raise self._unrecordable(f"a {type(value).__name__} is given to one call")
        return value

    def _given(self, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        """The arguments of one call."""
        self._sized = False
        return self.argument(args), self.argument(kwargs)

    def _named_tuple(self, value: Any, member: Callable[[Any], Any]) -> fx.Node:
        """A named tuple, such as a `PackedSequence`, is made by a node of its class."""
        members = tuple(member(v) for v in value)
        given = members if hasattr(value, "_fields") else (members,)
        return self._note(self._built(type(value), given, {}))

    def _node(self, tensor: T) -> fx.Node:
        found = self._nodes.get(tensor)
        if found is not None:
            return found
        name = self._state_names.get(id(tensor))
        if name is None:
            if running_transform():
                self.refuse_operator()
            if isinstance(tensor, FakeTensor) or self._real:
                raise self._unrecordable(f"a tensor {list(tensor.shape)} came from a call that recording cannot see")
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        elif name in self.attributes:
            self.constants[name] = self.attributes[name]
        node = self._note(self.graph.get_attr(name))
        self.bind(tensor, node)
        return node

    def _numbered(self, node: fx.Node) -> fx.Node:
        self._serial += 1
        info(node).serial = self._serial
        return node

    def _note(self, node: fx.Node) -> fx.Node:
        self._numbered(node)
        info(node).origin = Origin(tuple(self._scope), source_line())
        return node

    def _unrecordable(self, reason: str, path: str | None = None, **more: Any) -> Unrecordable:
        own = self._scope[-1].path if self._scope else ""
        self.hidden = Unrecordable(own if path is None else path, reason, source_line(), **more)
        return self.hidden

    def refuse_operator(self, *_: Any, compiles: bool = False, **__: Any) -> NoReturn:
        """Stands in for what an operator does with the functions it is given: `torch.cond`, `torch.vmap`.

        Raises:
            Unrecordable: always.
        """
        reason = f"torch's {operator_name()} takes functions, and what they run cannot be recorded"
        raise self._unrecordable(reason, data=compiles, operator=True)

    def note(self, what: str) -> None:
        """Something ran that is no part of the graph."""
        path = self._scope[-1].path if self._scope else ""
        self.notes[f"{path or 'the root module'}: {what} ({source_line()})"] = None

    # --- calls --------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, named = tuple(args), kwargs or {}
        args, kwargs = plain(given), plain(named)
        if self._silence.depth:
            return func(*args, **kwargs)
        if func in _OPENED:
            with self:
                return without_override(func)(*given, **named)
        if func is torch._C._set_grad_enabled:
            return self._set_grad_enabled(*args)
        if self._real and func in READS_DATA and self._varies(args):
            return self._choice(func, args)
        try:
            out, read, written = self._watched(func, args, kwargs)
        except DATA_ERRORS as error:
            raise self._data_error(func, args, error) from error
        if func in _NOT_RECORDED:
            return self._metadata(func, given, named, out)
        if func in READS_DATA and not self._real and isinstance(out, (bool, int)) and self._varies(args):
            return self._same_choice(args[0], out)  # a constant that torch kept, made of a size
        if func == _NBYTES:
            return self._metadata(T.numel, given, named, args[0].numel()) * args[0].element_size()
        with self._silence:
            self.questions.decide(getattr(func, "__name__", ""), given, named, out, self._size)
            cut = slices(given, self._size) if func is T.__getitem__ else []
            if not written and not flat(out):
                return out
            out = fresh(out, read, written)
            node = self._call(func, *self._given(given, named))
            if self._real and has_size_of_data(func, args, kwargs):
                info(node).size_of_data = True
            result = self._yield(node, out, written)
            self.questions.shape(cut, info(node).serial)
            return result

    def _data_error(self, func: Any, args: Any, error: Exception) -> Unrecordable:
        """A fake tensor was asked for numbers that it does not have."""
        if isinstance(error, DynamicOutputShapeException) and func not in READS_DATA:
            return self._unrecordable("a size depends on the values of a tensor", shape=True)
        if not self._sources(args):
            return self._unrecordable("Python reads the values of a weight", shape=True)
        reason = f"Python depends on the values of a tensor ({type(error).__name__})"
        return self._unrecordable(reason, data=True, holders=self._holders(func, args))

    # --- metadata that differs between calls ------------------------------------------------------------------------

    def _reading(self, kind: str, tensor: T, dim: int, value: int) -> Any:
        """A size or a stride as a number that remembers; those of weights are constants."""
        node = self._nodes.get(tensor)
        if node is None or node.op == "get_attr":
            return value
        expression = Expression.reading(kind, info(node).serial, dim % max(1, tensor.dim()))
        self.readings[expression] = value
        return tracked(value, expression)

    def _size(self, tensor: T, dim: int) -> Any:
        return self._reading("size", tensor, dim, tensor.shape[dim])

    def _metadata(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """What Python reads about a tensor, with tracked numbers for sizes and strides."""
        tensor = args[0] if args and isinstance(args[0], T) else None
        if tensor is None or tensor not in self._nodes:
            return out
        with self._silence:
            shape, dim = tuple(tensor.shape), plain(args[1] if len(args) > 1 else kwargs.get("dim"))
            if func == _SHAPE or (func is T.size and dim is None):
                return Sizes(self._reading("size", tensor, d, n) for d, n in enumerate(shape))
            if func is T.size:
                return self._reading("size", tensor, dim, out)
            if func in _COUNTS:
                return math.prod(self._reading("size", tensor, d, n) for d, n in enumerate(shape))
            if func is T.stride and shape:
                steps = tensor.stride()
                found = tuple(self._reading("stride", tensor, d, n) for d, n in enumerate(steps))
                return found if dim is None else found[dim]
            if func is T.__len__:
                int(self._reading("size", tensor, 0, out))
            elif func in _FLAGS and isinstance(out, bool) and len(args) == 1 and not kwargs:
                self.questions.flag(info(self._nodes[tensor]).serial, _FLAGS[func], out)
        return out

    def _same_choice(self, tensor: T, value: Any) -> Any:
        """Python read a value that may differ in another call: it is recorded, and checked in calls."""
        line = source_line()
        with self._silence:
            self._note(self.graph.call_function(same_choice, (self.argument(tensor), value, line)))
        self.choices[line] = None
        return value

    def _varies(self, args: Any) -> bool:
        """Whether a value may differ in another call: by an input whose values are not fixed, or by a size."""
        cone = self._cone(args)
        return not self._sources(args) <= {*self._fixed} or any(info(n).sized for n in cone)

    def _choice(self, func: Any, args: Any) -> Any:
        """Python reads a value: in a wide module that is recorded with the value, elsewhere the module is opaque."""
        holders = self._holders(func, args)
        value = func(*args) if (self._scope[-1].path if self._scope else "") in self._wide else None
        if holders or isinstance(value, float) or value is None or func is T.numpy:
            raise self._unrecordable("Python reads the values of a tensor", data=True, holders=holders)
        return self._same_choice(args[0], value)

    def _cone(self, args: Any) -> set[fx.Node]:
        """The nodes that tensors are computed from."""
        return set(ancestors(self._known(flat(args))))

    def _sources(self, args: Any) -> set[str]:
        """The inputs that tensors are computed from; a leaf counts as one."""
        return {str(n.target) for n in self._cone(args) if n.op in ("placeholder", "call_module")}

    def _holders(self, func: Any, args: Any) -> tuple[str, ...]:
        """The inputs that Python reads numbers from: sizes, element by element (`grid_thw.tolist()`), or one number."""
        if func not in READS_SIZES and func is not T.__float__:
            return ()
        nodes = self._known(flat(args))
        found: dict[str, None] = {}
        while nodes:
            node = nodes.pop()
            seen = info(node).seen
            if node.op == "placeholder" and isinstance(seen, Seen) and holds_numbers(seen):
                found[str(node.target)] = None
            elif node.op == "placeholder" or getattr(node.target, "__name__", node.target) not in _ELEMENTWISE:
                return ()
            nodes += node.all_input_nodes
        return tuple(found)

    def _watched(self, func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, list[T], list[T]]:
        """Call silently: the result, the tensors that were read, and those of them that were written."""
        read = flat((args, kwargs))
        with self._silence:
            known = known_shapes.product(func, args, kwargs)
            if known is not None:
                return known, read, []
            versions = [version_of(t) for t in read]
            out = func(*args, **kwargs)
            return out, read, [t for t, v in zip(read, versions, strict=True) if version_of(t) != v]

    def _yield(self, node: fx.Node, out: Any, written: list[T]) -> Any:
        self._note(node)
        if self._sized:
            info(node).sized = True
        if written:
            info(node).mutates = tuple(self._known(written))
        self.bind(out, node)
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        if func in (T.__getitem__, T.__setitem__):
            return self.graph.call_function(getattr(operator, func.__name__.strip("_")), args, kwargs)
        if not self._is_of_tensors(func) and getattr(T, func.__name__, None) is not func:
            return self.graph.call_function(func, args, kwargs)
        if func.__name__ == "__get__":  # a property such as x.T
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        plain = OPERATORS.get(func.__name__)
        if plain is not None and not kwargs:
            return self.graph.call_function(plain, args[::-1] if func.__name__ in REFLECTED else args)
        return self.graph.call_method(func.__name__, args, kwargs)

    def _is_of_tensors(self, func: Any) -> bool:
        if func not in self._methods:  # torch's own answer sets warning filters every time
            self._methods[func] = is_tensor_method_or_property(func)
        return self._methods[func]

    def function(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call that torch does not announce (an autograd.Function), recorded as one node."""
        out, read, written = self._watched(target, plain(tuple(args)), plain(dict(kwargs)))
        with self._silence:
            out = fresh(out, read, written)
            return self._yield(self.graph.call_function(target, *self._given(tuple(args), kwargs)), out, written)

    def module_call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Stands in for `nn.Module.__call__`: leaf modules become one node, the others are entered."""
        path = self._paths.get(id(module))
        if self._silence.depth or path is None:
            return original(module, *args, **kwargs)
        if path and (path in self._leaves or (is_leaf(module) and not hooks_for_all())):
            try:
                given = plain(tuple(args)), plain(dict(kwargs))
                out, read, written = self._layer(original, module, *given, is_opaque=path in self._leaves)
            except DATA_ERRORS as error:
                raise self._unrecordable(f"it needs values ({type(error).__name__})", data=True, path=path) from error
            with self._silence:
                out = fresh(out, read, written)
                node = self.graph.call_module(path, *self._given(tuple(args), dict(kwargs)))
                info(node).layer = type(module).__name__
                info(node).opaque = path in self._leaves
                return self._yield(node, out, written)
        frame = Frame(path, type(module).__name__)
        self._scope.append(frame)
        try:
            out = original(module, *args, **kwargs)
            self._check_known(out)
        finally:
            self._scope.pop()
        self._note_call(frame, (args, kwargs), out)
        return out

    def _layer(
        self, original: Any, module: nn.Module, args: Any, kwargs: Any, *, is_opaque: bool
    ) -> tuple[Any, list[T], list[T]]:
        """Call a module that is one node; a layer of torch runs without this mode, which would hear of every step."""
        with self._silence, torch._C.DisableTorchFunction():  # else every property of a tensor comes here
            known = known_shapes.linear(module, args, kwargs)
        if known is not None:
            return known, [*args], []
        is_on_top = _get_current_function_mode() is self
        with _pop_mode_temporarily() if is_on_top and not is_opaque else nullcontext():
            return self._watched(partial(original, module), args, kwargs)

    def _check_known(self, out: Any) -> None:
        """What a module returns must have been recorded; else that module hides it."""
        for t in tensors(out):
            if t not in self._nodes and id(t) not in self._state_names:
                self._node(t)

    def _note_call(self, frame: Frame, given: Any, out: Any) -> None:
        """Write on the node of a module's first output which call it ends, and what that call read first."""
        read, made = (next((self._nodes.get(t) for t in flat(v)), None) for v in (given, out))
        if read is not None and made is not None:
            info(made).ends = (*info(made).ends, frame)
            info(made).ends_from = (*info(made).ends_from, read)

    # --- regions ------------------------------------------------------------------------------------------------

    def _set_grad_enabled(self, enabled: bool) -> None:
        """`no_grad` and `enable_grad`: a node on the way in, and one that restores what it found on the way out."""
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(enabled)
        how, owner = _context_manager(sys._getframe(2))
        if self._grad_modes and (how == "__exit__" or (how != "__enter__" and self._switches_back(enabled, before))):
            entered = self._grad_modes.pop()[1]
            self._region(set_grad_enabled, (entered,), entered)
        elif not (how == "__enter__" and self._grad_modes and self._grad_modes[-1][2] is owner):
            # one that changes nothing is recorded too: a later call may be made in the other mode
            self._grad_modes.append((before, self._region(set_grad_enabled, (enabled,)), owner))

    def _switches_back(self, enabled: bool, before: bool) -> bool:
        return self._grad_modes[-1][0] == enabled != before

    def enter_autocast(self, *settings: Any) -> fx.Node:
        """The beginning of an autocast region."""
        return self._region(torch.amp.autocast_mode._enter_autocast, settings)

    def exit_autocast(self, entered: fx.Node) -> None:
        """Its end."""
        self._region(torch.amp.autocast_mode._exit_autocast, (entered,), entered)

    def _region(self, function: Callable[..., Any], args: tuple[Any, ...], entered: fx.Node | None = None) -> fx.Node:
        """A node without a value; one that ends an empty region takes its beginning with it."""
        if entered is not None and entered.next.op == "root":
            self.graph.erase_node(entered)
            return entered
        node = self._note(self.graph.call_function(function, args))
        info(node).region = True
        return node

    def output(self, out: Any) -> None:
        """End the graph; dataclasses and transformers' `ModelOutput` are built again by a node of their class."""
        self._numbered(self.graph.output(self._result(out)))

    def _result(self, out: Any) -> Any:
        if is_dataclass(out) and not isinstance(out, type):
            given = {f.name: getattr(out, f.name) for f in fields(out) if getattr(out, f.name) is not None}
            keys = tuple(out) if isinstance(out, OrderedDict) else tuple(given)
            ordered = keys != tuple(given) and set(keys) == given.keys()
            return self._built(
                InOrder(type(out), keys) if ordered else type(out), (), {k: self._result(v) for k, v in given.items()}
            )
        if is_named_tuple(out):
            return self._named_tuple(out, self._result)
        if isinstance(out, (list, tuple)):
            members = [self._result(v) for v in out]
            return members if isinstance(out, list) else tuple(members)
        if isinstance(out, dict):
            return {k: self._result(v) for k, v in out.items()}
        if out not in self._nodes and parts(out):  # an object made in forward, such as a cache of keys and values
            return self._built(Rebuild(type(out)), (), {k: self._result(v) for k, v in vars(out).items()})
        return self.argument(out)

    def _built(self, build: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        return self._numbered(self.graph.call_function(build, args, kwargs))


_DTYPES: dict[Any, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool}


def _context_manager(frame: types.FrameType) -> tuple[str, Any]:
    """The method of `no_grad` or the like that switches gradients, and its object; some do by making another."""
    outer = frame.f_back
    if outer is not None and outer.f_code.co_filename == frame.f_code.co_filename:
        frame = outer
    return frame.f_code.co_name, frame.f_locals.get("self")

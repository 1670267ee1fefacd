"""Recording: run a model's real `forward` on fake tensors and write down every torch call as an fx node."""

from __future__ import annotations

import inspect
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from utcompile.errors import UtcError
from utcompile.graph import Frame, Origin
from utcompile.graph.structure import attribute_tensors, named_state

T = torch.Tensor
# torch.nn classes that are entered; every other class of torch.nn is one leaf node
_ENTERED = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
# reads of metadata: they run, and leave no node
_PROPERTIES = (
    "shape dtype device ndim requires_grad layout is_cuda is_leaf grad_fn is_meta is_sparse _version"
).split()
_NOT_RECORDED = {
    *(getattr(T, name).__get__ for name in _PROPERTIES), T.dim, T.size, T.numel, T.nelement, T.stride, T.__len__,
    T.is_floating_point, T.is_contiguous, T.is_complex, T.untyped_storage, T.data_ptr, T.element_size, T.storage_offset,
    T.get_device,
}  # fmt: skip
_HERE = (torch.__path__[0] + os.sep, __file__)


@dataclass(frozen=True)
class Seen:
    """A recorded tensor: its sizes in this recording, and which storage it lives in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int


class Recorder(TorchFunctionMode):
    """Turns every torch-level call into an fx node; values are found again by identity."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, T] = {}
        self._node_of: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # ids stay unique while their tensors live
        self._state_names: dict[int, str] = {}
        self._attributes = attribute_tensors(root)
        self._paths = {id(m): name for name, m in reversed([*root.named_modules(remove_duplicate=False)])}
        self._scope: list[Frame] = []
        self._silent = 0

    # --- values -------------------------------------------------------------------------------------------------

    def name_state(self, tensor: T, name: str) -> None:
        """Make a parameter or buffer known by its name."""
        self._state_names.setdefault(id(tensor), name)
        self._alive.append(tensor)

    def bind(self, value: Any, node: fx.Node) -> None:
        """From here on, the tensors in `value` are what `node` yields."""
        if isinstance(value, T):
            self._node_of[id(value)] = node
            self._alive.append(value)
            node.meta["seen"] = Seen(tuple(value.shape), value.dtype, value.device, value.untyped_storage()._cdata)
        elif isinstance(value, (tuple, list, dict)):
            for key, v in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(v, (T, tuple, list, dict)):
                    self.bind(v, self._note(self.graph.call_function(operator.getitem, (node, key))))

    def argument(self, value: Any) -> Any:
        """A call's argument with its tensors replaced by their nodes."""
        if isinstance(value, T):
            return self._node(value)
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, slice):
            return slice(*(self.argument(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, (tuple, list)):
            parts = [self.argument(v) for v in value]
            return parts if isinstance(value, list) else tuple(parts)
        if isinstance(value, dict):
            return {k: self.argument(v) for k, v in value.items()}
        return value

    def _node(self, tensor: T) -> fx.Node:
        found = self._node_of.get(id(tensor))
        if found is not None:
            return found
        name = self._state_names.get(id(tensor))
        if name is None:
            if isinstance(tensor, FakeTensor):
                raise UtcError(
                    f"a tensor {list(tensor.shape)} came from a call that recording cannot see",
                    where=self._place(),
                    fix="make the value with torch functions, or keep it as a buffer of the module",
                )
            name = self._attributes.get(id(tensor), (f"_constant_{len(self.constants)}",))[0]
            self.constants[name] = tensor
        node = self._note(self.graph.get_attr(name))
        self.bind(tensor, node)
        return node

    def _note(self, node: fx.Node) -> fx.Node:
        node.meta["origin"] = Origin(tuple(self._scope), _source_line())
        return node

    def _place(self) -> str:
        path = self._scope[-1].path if self._scope else ""
        return f"{path or 'the root module'} ({_source_line()})"

    # --- calls --------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, T)]
        with self._silence():
            versions = [t._version for t in read]
            out = func(*args, **kwargs)
            written = [t for t, v in zip(read, versions, strict=True) if t._version != v]
        if func in _NOT_RECORDED:
            return out
        if not written and not any(isinstance(v, T) for v in pytree.tree_leaves(out)):
            return out
        with self._silence():
            out = _fresh(out, read, written)
            node = self._call(func, self.argument(tuple(args)), self.argument(dict(kwargs)))
            return self._yield(node, out, written)

    def _yield(self, node: fx.Node, out: Any, written: list[T]) -> Any:
        self._note(node)
        if written:
            node.meta["mutates"] = tuple(self._node_of[id(t)] for t in written if id(t) in self._node_of)
        self.bind(out, node)
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        if func in (T.__getitem__, T.__setitem__):
            return self.graph.call_function(getattr(operator, func.__name__.strip("_")), args, kwargs)
        if not is_tensor_method_or_property(func):
            return self.graph.call_function(func, args, kwargs)
        if func.__name__ == "__get__":  # a property such as x.T
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        plain = _OPERATORS.get(func.__name__)
        if plain is not None and not kwargs:
            return self.graph.call_function(plain, args[::-1] if func.__name__ in _REFLECTED else args)
        return self.graph.call_method(func.__name__, args, kwargs)

    def module_call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Stands in for `nn.Module.__call__`: leaf modules become one node, the others are entered."""
        path = self._paths.get(id(module))
        if self._silent or path is None:
            return original(module, *args, **kwargs)
        leaf = path and type(module).__module__.startswith("torch.nn.") and not isinstance(module, _ENTERED)
        if not leaf:
            frame = Frame(path, type(module).__name__)
            self._scope.append(frame)
            try:
                out = original(module, *args, **kwargs)
            finally:
                self._scope.pop()
            self._note_call(frame, (args, kwargs), out)
            return out
        read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, T)]
        with self._silence():
            versions = [t._version for t in read]
            out = original(module, *args, **kwargs)
            written = [t for t, v in zip(read, versions, strict=True) if t._version != v]
            out = _fresh(out, read, written)
            node = self.graph.call_module(path, self.argument(tuple(args)), self.argument(dict(kwargs)))
            return self._yield(node, out, written)

    def _note_call(self, frame: Frame, given: Any, out: Any) -> None:
        """Write on the node of a module's first output which call it ends, and what that call read first."""
        read, made = (
            next((self._node_of.get(id(t)) for t in pytree.tree_leaves(v) if isinstance(t, T)), None)
            for v in (given, out)
        )
        if read is not None and made is not None:
            made.meta["ends"] = (*made.meta.get("ends", ()), frame)
            made.meta["ends_from"] = (*made.meta.get("ends_from", ()), read)

    @contextmanager
    def _silence(self) -> Iterator[None]:
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1


_NAMES = "add sub mul truediv floordiv mod matmul pow"
_UNREFLECTED = "neg eq ne lt le gt ge"
_OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"__{n}__": getattr(operator, n) for n in [*_NAMES.split(), *_UNREFLECTED.split()]},
    **{f"__r{n}__": getattr(operator, n) for n in _NAMES.split()},
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
}  # fmt: skip
_REFLECTED = {f"__r{n}__" for n in _NAMES.split()}


def _fresh(out: Any, read: list[T], written: list[T]) -> Any:
    """An out-of-place call that returned its own input gets a new value, or later reads of the input would find it."""
    own = {id(t) for t in read} - {id(t) for t in written}
    return pytree.tree_map(lambda v: v.view_as(v) if isinstance(v, T) and id(v) in own else v, out)


def _source_line() -> str:
    """The innermost line of the model's own code."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) and "utcompile/capture" not in name:
            return f"{name.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def record(model: nn.Module, arguments: dict[str, Any]) -> Recorder:
    """One recording at the sizes of the given arguments (by parameter name of `forward`).

    Args:
        model: a structural copy; its mode decides what is recorded.
        arguments: real tensors (only their sizes are used) and other values, which become constants.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(model)
    state: dict[str, T] = {}
    fakes: dict[int, T] = {}
    for name, tensor in named_state(model).items():
        state[name] = fakes.setdefault(id(tensor), fake.from_tensor(tensor, static_shapes=True))
        recorder.name_state(state[name], name)
        recorder.name_state(tensor, name)
    inputs = pytree.tree_map(lambda t: fake.from_tensor(t, static_shapes=True) if isinstance(t, T) else t, arguments)
    for name, value in inputs.items():
        recorder.bind(value, recorder.graph.placeholder(name))
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.module_call(original, module, args, kwargs)

    signature = inspect.signature(model.forward)
    bound = signature.bind_partial()
    bound.arguments.update(inputs)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    nn.Module.__call__ = call  # type: ignore[method-assign]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with fake, recorder:
            out = torch.func.functional_call(model, state, bound.args, bound.kwargs)
        with fake:
            recorder.graph.output(_output(recorder, out))
    except UtcError:
        raise
    except Exception as error:
        raise _failure(recorder, error, arguments) from error
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return recorder


def _output(recorder: Recorder, out: Any) -> Any:
    """The graph's output; dataclasses and transformers' `ModelOutput` are built again by a node of their class."""
    if is_dataclass(out) and not isinstance(out, type):
        given = {f.name: getattr(out, f.name) for f in fields(out) if getattr(out, f.name) is not None}
        return recorder.graph.call_function(type(out), (), {k: _output(recorder, v) for k, v in given.items()})
    if isinstance(out, (list, tuple)):
        parts = [_output(recorder, v) for v in out]
        return parts if isinstance(out, list) else tuple(parts)
    if isinstance(out, dict):
        return {k: _output(recorder, v) for k, v in out.items()}
    return recorder.argument(out)


def _failure(recorder: Recorder, error: Exception, arguments: dict[str, Any]) -> UtcError:
    data_dependent = type(error).__name__ in (
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "GuardOnDataDependentSymNode",
    )
    last = next(iter(reversed(recorder.graph.nodes)), None)
    origin = last.meta.get("origin") if last is not None else None
    place = f"after {origin.scope[-1].path or 'the root module'} ({origin.source})" if origin and origin.scope else None
    shapes = ", ".join(f"{k}: {list(v.shape)}" for k, v in arguments.items() if isinstance(v, T))
    if data_dependent:
        return UtcError(
            "the model's Python code depends on the values of tensors, so it cannot be recorded",
            where=place,
            why=str(error).split("\n")[0],
            fix="express the choice with torch.where, or capture the parts before and after it",
        )
    return UtcError(
        f"the model's forward failed on inputs {shapes or 'without tensors'}",
        where=place,
        why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
        fix="check that the example inputs fit the model: it must run on them by itself",
    )

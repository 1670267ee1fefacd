"""Writing a graph: values become nodes, and are found again by identity."""

from __future__ import annotations

import enum
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import Argument

from utcompile.graph import Frame, Origin, Seen, ancestors, info
from utcompile.graph.nested import flat, is_named_tuple, parts, tensors
from utcompile.recording.active import Args, Function, Kwargs
from utcompile.recording.derived import InOrder, Rebuild
from utcompile.recording.live import LiveNodes
from utcompile.recording.rebinding import original_of
from utcompile.recording.recorded import with_expression
from utcompile.recording.source import source_line
from utcompile.recording.tracked import is_tracked
from utcompile.recording.transforms import operator_name, running_transform
from utcompile.recording.unrecordable import Unrecordable

T = torch.Tensor
# arguments that the code of a graph can spell out, apart from nodes and containers
_WRITABLE = (
    type(None), type(...), bool, int, float, complex, str, bytes, range, enum.Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_PLAIN = frozenset([*_WRITABLE]) - {range, enum.Enum}
_DTYPES: dict[object, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool}


class Writer:
    """A graph while it is written.

    Args:
        real: the values are real, so every tensor that the graph reads is state or was made by a node.

    Attributes:
        graph: the graph.
        attributes: tensors that modules keep as plain attributes, by name.
        constants: tensors that the graph reads and that are neither parameters nor buffers, by name.
        inputs: the nodes of the input tensors, in order.
        notes: calls that ran and are no part of the graph, each with its line.
        hidden: the last reason why something cannot be recorded.
    """

    def __init__(self, *, real: bool) -> None:
        self.graph = fx.Graph()
        self.attributes: dict[str, T] = {}
        self.constants: dict[str, T] = {}
        self.inputs: list[fx.Node] = []
        self.notes: dict[str, None] = {}
        self.hidden: Unrecordable | None = None
        self._real = real
        self._serial = 0
        self._nodes = LiveNodes()
        self._state: list[T] = []  # keeps them alive, so that their ids stay unique
        self._state_names: dict[int, str] = {}
        self._named: set[tuple[str, int]] = set()
        self._scope: list[Frame] = []
        self._sized = False  # whether an argument of this call contains a number that was computed from sizes

    # --- where the model is -----------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The name of the module that runs; empty for the root."""
        return self._scope[-1].path if self._scope else ""

    @contextmanager
    def inside(self, frame: Frame) -> Iterator[None]:
        """While it is entered, a module runs."""
        self._scope.append(frame)
        try:
            yield
        finally:
            self._scope.pop()

    def note(self, what: str) -> None:
        """Something ran that is no part of the graph."""
        self.notes[f"{self.path or 'the root module'}: {what} ({source_line()})"] = None

    def unrecordable(
        self,
        reason: str,
        path: str | None = None,
        *,
        data: bool = False,
        shape: bool = False,
        holders: Sequence[str] = (),
        operator: bool = False,
    ) -> Unrecordable:
        """The error of a call that cannot be written down (see `Unrecordable`); the caller raises it."""
        own = self.path if path is None else path
        self.hidden = Unrecordable(
            own, reason, source_line(), data=data, shape=shape, holders=holders, operator=operator
        )
        return self.hidden

    def refuse_operator(self, *_: object, compiles: bool = False, **__: object) -> NoReturn:
        """Replaces what an operator does with the functions that it is given: `torch.cond`, `torch.vmap`.

        Raises:
            Unrecordable: always.
        """
        reason = f"torch's {operator_name()} takes functions, and what they run cannot be recorded"
        raise self.unrecordable(reason, data=compiles, operator=True)

    # --- values -----------------------------------------------------------------------------------------------------

    def name_state(self, tensor: T, name: str) -> None:
        """Make a parameter or buffer known by its name."""
        self._state_names.setdefault(id(tensor), name)
        self._named.add((name, id(tensor)))
        self._state.append(tensor)

    def is_state(self, name: str, tensor: T) -> bool:
        """Whether a tensor is the parameter or buffer of that name, as at the start of the recording."""
        return (name, id(tensor)) in self._named

    def bind_input(self, name: str, value: object) -> None:
        """Make an argument of `forward` a placeholder; `inputs` lists the nodes of its tensors in order."""
        self.bind(value, self._numbered(self.graph.placeholder(name)))
        self.inputs += self.known(tensors(value))

    def bind(self, value: object, node: fx.Node) -> None:
        """From here on, `node` yields the tensors in `value`."""
        if isinstance(value, T):
            storage = self._nodes.bind(value, node)
            info(node).seen = Seen(tuple(value.shape), value.dtype, value.device, storage)
            return
        for name, part in parts(value):
            if tensors(part):
                access = operator.getitem if isinstance(value, (tuple, list, dict)) else getattr
                self.bind(part, self.call(access, (node, self.argument(name))))
        if not isinstance(value, (tuple, list, dict)) and hasattr(value, "__dict__"):
            self._nodes.bind(value, node)

    def above(self, values: Iterable[T]) -> set[fx.Node]:
        """The nodes of values and of all that they are computed from; empty where one value has no node."""
        nodes = [self._nodes.get(value) for value in values]
        known = [n for n in nodes if n is not None]
        return set(ancestors(known)) if len(known) == len(nodes) else set()

    def node_of(self, value: T) -> fx.Node | None:
        """The node that made a tensor, where one is known."""
        return self._nodes.get(value)

    def kept(self, node: fx.Node) -> T | None:
        """The tensor that a node reads, where it is neither parameter nor buffer."""
        return self.constants.get(str(node.target))

    def known(self, values: Iterable[T]) -> list[fx.Node]:
        """The nodes of those tensors that have one."""
        return [node for node in map(self._nodes.get, values) if node is not None]

    def cone(self, args: object) -> set[fx.Node]:
        """The nodes that the tensors in arguments are computed from."""
        return set(ancestors(self.known(flat(args))))

    def check_known(self, out: object) -> None:
        """Every tensor that a module returns must have been recorded.

        Raises:
            Unrecordable: one was not, so the module hides how it is computed.
        """
        for t in tensors(out):
            if t not in self._nodes and id(t) not in self._state_names:
                self._node(t)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def call(self, function: Function, args: tuple[Argument, ...]) -> fx.Node:
        """A new node that calls a function, with the module and the line that run now."""
        return self.placed(self.graph.call_function(function, args))

    def placed(self, node: fx.Node) -> fx.Node:
        """A new node, with its number and with the module and the line that run now."""
        self._numbered(node)
        info(node).origin = Origin(tuple(self._scope), source_line())
        return node

    def given(self, args: Args, kwargs: Kwargs) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        """The arguments of one call."""
        self._sized = False
        return tuple(self.argument(a) for a in args), {k: self.argument(v) for k, v in kwargs.items()}

    def yielded(self, node: fx.Node, out: object, written: Iterable[T]) -> object:
        """The result of a call, bound to its node."""
        self.placed(node)
        if self._sized:
            info(node).sized = True
        if written:
            info(node).mutates = tuple(self.known(written))
        self.bind(out, node)
        return out

    def output(self, out: object) -> None:
        """End the graph; dataclasses and transformers' `ModelOutput` are built again by a node of their class."""
        self._numbered(self.graph.output(self._result(out)))

    def argument(self, value: object) -> Any:
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
        if tensors(value):  # an object made in forward; what a leaf writes into it is not seen
            return self._result(value)
        if not isinstance(value, _WRITABLE):
            raise self.unrecordable(f"a {type(value).__name__} is given to one call")
        return value

    def _node(self, tensor: T) -> fx.Node:
        found = self._nodes.get(tensor)
        if found is not None:
            return found
        name = self._state_names.get(id(tensor))
        if name is None:
            if running_transform():
                self.refuse_operator()
            if isinstance(tensor, FakeTensor) or self._real:
                raise self.unrecordable(f"a tensor {list(tensor.shape)} came from a call that recording cannot see")
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        elif name in self.attributes:
            self.constants[name] = self.attributes[name]
        node = self.placed(self.graph.get_attr(name))
        self.bind(tensor, node)
        return node

    def _numbered(self, node: fx.Node) -> fx.Node:
        self._serial += 1
        info(node).serial = self._serial
        return node

    # --- objects that are built again -------------------------------------------------------------------------------

    def _result(self, out: object) -> Any:
        if is_dataclass(out) and not isinstance(out, type):
            return self._dataclass(out)
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

    def _dataclass(self, out: Any) -> fx.Node:
        given = {f.name: getattr(out, f.name) for f in fields(out) if getattr(out, f.name) is not None}
        keys = tuple(out) if isinstance(out, OrderedDict) else tuple(given)
        ordered = keys != tuple(given) and set(keys) == given.keys()
        build = InOrder(type(out), keys) if ordered else type(out)
        return self._built(build, (), {k: self._result(v) for k, v in given.items()})

    def _named_tuple(self, value: tuple[object, ...], member: Callable[[object], Argument]) -> fx.Node:
        """A named tuple, such as a `PackedSequence`, is made by a node of its class."""
        members = tuple(member(v) for v in value)
        return self.placed(self._built(type(value), members if hasattr(value, "_fields") else (members,), {}))

    def _built(self, build: Function, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> fx.Node:
        return self._numbered(self.graph.call_function(build, args, kwargs))

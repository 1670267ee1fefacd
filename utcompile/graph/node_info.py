"""Facts of the pipeline about one node: typed entries of `node.meta`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar, overload

import torch
from torch import fx
from torch.fx.node import Target

from utcompile.graph.value import Computed, Size, Value

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """One module call that encloses a node."""

    path: str
    cls: str


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: the enclosing module calls, outermost first, and the source line."""

    scope: tuple[Frame, ...] = ()
    source: str = "?"

    @property
    def path(self) -> str:
        """The path of the innermost enclosing module; the empty string is the root."""
        return self.scope[-1].path if self.scope else ""


@dataclass(frozen=True)
class Seen:
    """A recorded tensor: its sizes in this recording, and which storage it lives in."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int


@dataclass(frozen=True)
class InPlace:
    """How a converted node is written in place, and out of place.

    Attributes:
        written: (op, target) of the node that writes; None where a flag decides, of the module or of the call.
        plain: (op, target) of the node that does not.
    """

    written: tuple[str, Target] | None = None
    plain: tuple[str, Target] | None = None


class Role(StrEnum):
    """The task of a node that the pipeline inserted, or took over, at its place."""

    TUNER = "tuner"  # calls a tuner
    SUM = "sum"  # adds a tuner's result to what was there
    BRANCH = "branch"  # calls a tuner that adds to the operation's own result
    PART = "part"  # a part of what a tuner yields
    DETACH = "detach"  # stops the gradient to the backbone
    OPERATION = "operation"  # the frozen operation, called with other parameters
    PARAMETER = "parameter"  # a parameter as a tuner changed it, on its way to the operation
    PADDING = "padding"  # the padding of a convolution that became a function call
    MASK = "mask"  # an attention mask that covers learned keys
    PROJECTION = "projection"  # learned tokens on their way through a frozen projection
    MASTER = "master"  # a trained parameter, rounded to the dtype of the base


class Fact(Generic[T]):
    """One fact about a node. Not stored until it is set; until then it reads as its default."""

    def __init__(self, default: T) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, info: None, owner: type) -> Fact[T]: ...
    @overload
    def __get__(self, info: NodeInfo, owner: type) -> T: ...
    def __get__(self, info: NodeInfo | None, owner: type) -> Fact[T] | T:
        return self if info is None else info.meta.get(self.name, self.default)

    def __set__(self, info: NodeInfo, value: T) -> None:
        info.meta[self.name] = value

    def __delete__(self, info: NodeInfo) -> None:
        info.meta.pop(self.name, None)


class NodeInfo:
    """The facts about one node.

    A view of `node.meta`, so that what copies a graph (`fx`, `deepcopy`, pickle) copies the facts, and two copies share
    none of them.
    """

    __slots__ = ("meta",)

    # the value of a node
    value = Fact[Value | None](None)  #: the tensor, None where it yields no single tensor
    size = Fact[Size | Computed | None](None)  #: the number, of a node that yields a size
    state = Fact[bool | None](None)  #: a parameter, a buffer, or computed from these alone; None: not asked yet
    weight_shape = Fact[tuple[int, ...]](())  #: the shape of the layer's weight

    # where it comes from
    origin = Fact[Origin | None](None)
    ends = Fact[tuple[Frame, ...]](())  #: the module calls whose first output it is
    ends_from = Fact[tuple[fx.Node, ...]](())  #: for each of them, what the call read first
    module_call = Fact[str | None](None)  #: the layer that was called here before it became a function call
    written_as = Fact[tuple[str, Target] | None](None)  #: (op, target) before it became another spelling

    # effects in addition to the value
    mutates = Fact[tuple[fx.Node, ...]](())  #: the values that it writes into
    inplace = Fact[InPlace | None](None)  #: how to write it in place and out of place, if capture converted it
    region = Fact[bool](False)  #: it begins or ends a region (autocast, no_grad)
    check = Fact[bool](False)  #: it checks a guard of the capture, and yields nothing
    derived = Fact[bool](False)  #: capture made it, to compute an argument that differs between recordings

    # while a model is recorded
    serial = Fact[int](0)  #: its number in the recording, from 1; 0 if it is not of a recording
    seen = Fact[Seen | None](None)  #: the tensor that it yielded in the recording
    layer = Fact[str | None](None)  #: the class of the layer that it calls
    opaque = Fact[bool](False)  #: the layer's inside was not recorded
    sized = Fact[bool](False)  #: it was recorded while a size was decided upon
    size_of_data = Fact[bool](False)  #: its sizes depend on values

    # changes by rewriting and folding
    role = Fact[Role | None](None)
    site = Fact[str | None](None)  #: the site whose tuner it belongs to
    replaces = Fact[str | None](None)  #: the name of the node whose place it took
    instead_of = Fact[str | None](None)  #: the name of the node that readers would read without it
    float32 = Fact[bool](False)  #: folding made it compute in float32

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta


def info(node: fx.Node) -> NodeInfo:
    """The facts about a node; assigning to a fact writes it on the node."""
    return NodeInfo(node.meta)


def inserted(
    node: fx.Node,
    origin: Origin | None,
    *,
    state: bool = False,
    value: Value | None = None,
    role: Role | None = None,
    site: str | None = None,
) -> fx.Node:
    """Say of a node that a pass has just made where it belongs and what it yields.

    Args:
        node: the new node.
        origin: of the node that it replaces.
        state: it is computed from parameters and buffers alone.
        value: the tensor that it yields.
        role: its task for a tuner.
        site: of which site.

    Returns:
        The same node.
    """
    known = info(node)
    known.origin, known.state = origin, state
    for fact, given in (("value", value), ("role", role), ("site", site)):
        if given is not None:
            setattr(known, fact, given)
    return node

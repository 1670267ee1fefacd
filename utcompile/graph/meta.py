"""What capture writes on every node, and how the other rooms read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import fx

from utcompile.graph.value import Value


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


def value_of(node: fx.Node) -> Value | None:
    """The tensor that a node yields, or None where it yields no single tensor."""
    value = node.meta.get("value")
    return value if isinstance(value, Value) else None


def tensor(node: fx.Node) -> Value:
    """The tensor that a node is known to yield."""
    return cast(Value, node.meta["value"])


def origin_of(node: fx.Node) -> Origin:
    """The origin of a node; an empty one for nodes that no module made."""
    return cast(Origin, node.meta.get("origin", Origin()))


def place_of(node: fx.Node) -> str:
    """The module path a node belongs to: the module it calls, or the one it runs in."""
    if node.op == "call_module":
        return str(node.target)
    return origin_of(node).path


def readers(node: fx.Node) -> list[fx.Node]:
    """What reads a node's value, without the checks of a captured graph: they change nothing and yield nothing."""
    return [user for user in node.users if not user.meta.get("check")]


def describe(node: fx.Node) -> str:
    """`layer1.0.conv1 (resnet.py:105)`, for messages."""
    return f"{node.name} in {place_of(node) or 'the root module'} ({origin_of(node).source})"

"""A captured model as a tree of modules: operation, output, layout and parameters of each, repeated blocks once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from utcompile.graph import GraphView, flops, is_state, origin_of, value_of
from utcompile.ops import Trait, having

# what moves numbers about, or does nothing at inference
_DROPOUT = having(Trait.DROPOUT)


@dataclass
class Entry:
    """A module, or one operation.

    Attributes:
        name: its name within its parent.
        operation: the module's class, or the canonical operation.
        shape: of its (last) output, with B for the batch.
        layout: where the channels are; empty where that is not known.
        parameters: its own and its children's.
        flops: floating-point operations at batch 1, its children's among them.
        last: of several modules alike, the last one's name; empty for a single one.
    """

    name: str
    path: str
    operation: str
    shape: str = ""
    layout: str = ""
    parameters: int = 0
    flops: int = 0
    children: list[Entry] = field(default_factory=list)
    last: str = ""

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for modules that are alike: operations, shapes and parameters, but not names."""
        own = (self.operation, self.shape, self.layout, self.parameters)
        return (*own, *(child.signature for child in self.children))

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        keys = ("path", "operation", "shape", "layout", "parameters", "flops")
        return {**{k: getattr(self, k) for k in keys}, "children": [c.to_dict() for c in self.children]}


def module_tree(view: GraphView, *, everything: bool = False) -> Entry:
    """The tree of a captured model.

    Args:
        everything: keep layout operations, identities and dropouts, and every one of several modules alike.
    """
    sizes = {name: p.numel() for name, p in view.module.named_parameters()}
    root = Entry("", "", type(view.module).__name__)
    modules = {"": root}
    for node in view.nodes:
        if node.op in ("placeholder", "output", "get_attr") or value_of(node) is None or is_state(node):
            continue
        parent = root
        count = flops(node, view.operations[node])
        root.flops += count
        for frame in origin_of(node).scope:
            if frame.path not in modules:
                name = frame.path.removeprefix(f"{parent.path}.")
                modules[frame.path] = Entry(name, frame.path, frame.cls)
                parent.children.append(modules[frame.path])
            if modules[frame.path] is not root:
                modules[frame.path].flops += count
            parent = modules[frame.path]
            parent.shape, parent.layout = _shape(node), _layout(node, view)
        if everything or not _quiet(node, view):
            parent.children.append(_operation(node, parent, view, sizes))
    _count(root, sizes)
    return root if everything else _collapsed(root)


def rows(entry: Entry, depth: int = 0) -> Iterator[tuple[int, Entry]]:
    """The entries of a tree in order, each with its depth."""
    yield depth, entry
    for child in entry.children:
        yield from rows(child, depth + 1)


def _operation(node: fx.Node, parent: Entry, view: GraphView, sizes: dict[str, int]) -> Entry:
    op = view.operations[node]
    path = str(node.target) if node.op == "call_module" else parent.path
    name = path.removeprefix(f"{parent.path}.") if node.op == "call_module" else ""
    parameters = sum(sizes.get(p, 0) for p in set(op.parameters.values()))
    return Entry(name, path, op.name, _shape(node), _layout(node, view), parameters, flops(node, op))


def _quiet(node: fx.Node, view: GraphView) -> bool:
    name = view.operations[node].name
    return name in _DROPOUT or name in ("getitem", "size") or "layout" in view.classes[node]


def _shape(node: fx.Node) -> str:
    return str(value_of(node))


def _layout(node: fx.Node, view: GraphView) -> str:
    return str(view.layouts.get(node) or "")


def _count(entry: Entry, sizes: dict[str, int]) -> None:
    """A module's parameters are those under its name, used in the graph or not."""
    if entry.children or not entry.path:
        inside = f"{entry.path}." if entry.path else ""
        entry.parameters = sum(n for name, n in sizes.items() if name.startswith(inside))
    for child in entry.children:
        if child.children:
            _count(child, sizes)


def _collapsed(entry: Entry) -> Entry:
    """Modules with no visible operation go, those with a single one become its line, neighbours alike become one."""
    children: list[Entry] = []
    for child in map(_collapsed, entry.children):
        is_module = bool(child.name) and child.path != entry.path
        if is_module and not child.children and child.operation[:1].isupper() and not child.parameters:
            continue
        before = children[-1] if children else None
        if before is not None and child.children and child.name[-1:].isdigit() and before.signature == child.signature:
            before.last = child.name
        else:
            children.append(child)
    if len(children) == 1 and not children[0].children and entry.path:
        only = children[0]
        return Entry(entry.name, entry.path, only.operation, only.shape, only.layout, entry.parameters, entry.flops)
    entry.children = children
    return entry

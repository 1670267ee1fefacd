"""A plan as boxes within boxes: modules that enclose operations and tuners, and lines between those of one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import fx

from utcompile.graph import flops, origin_of, value_of
from utcompile.matching import PlanData, Site
from utcompile.report.dataflow import Flow, Thing, flow_of
from utcompile.rules import Mark
from utcompile.tuners import ChainSite, ValueSite

Kind = Literal["module", "operation", "tuner", "sum", "repeat", "group"]
Part = Literal["", "follows", "index"]
ENTRY, EXIT = -1, -2


@dataclass(frozen=True)
class TunerNote:
    """A tuner as a drawing names it, with all its sites in the copies of a block.

    Attributes:
        joins: whether its result joins a sum, or is a stage of a side network.
    """

    rule: str
    form: str
    kind: str
    how: str
    detail: str
    parameters: int
    reads: str
    writes: str
    where: str
    config: Mapping[str, object]
    sites: list[str] = field(default_factory=list, compare=False)
    joins: Literal["sum", "stage", ""] = ""

    @property
    def title(self) -> str:
        """`lora r=8`."""
        return f"{self.kind} {self.detail}".strip()


@dataclass(frozen=True)
class Line:
    """A value between two boxes of one module.

    Attributes:
        source: the place of a box among its siblings, or `ENTRY`.
        target: the same, or `EXIT`.
    """

    source: int
    target: int
    shape: str
    is_side: bool = False


@dataclass
class Box:
    """A module call, an operation, a tuner or a sum; a unit that repeats, or a group of operations that read as one.

    Attributes:
        name: its name within its module; empty for an operation that no layer makes.
        word: a module's class, an operation's canonical name, or a tuner's kind.
        paths: the module paths that it stands for: several for the copies of a block.
        source: the line of Python code that made it.
        parameters, flops: its own and its children's, of one copy.
        trained: how many of its parameters `train:` selects.
        tuner: of a tuner and a sum.
        attached: tuners of its weights, or of its keys and values.
        times: how often it follows itself.
        inputs: for the root, name and shape of the model's inputs.
        part: whether an operation `follows` another closely (a norm, an activation), or computes an `index` or a mask.
    """

    kind: Kind
    name: str
    word: str
    paths: list[str]
    shape: str = ""
    source: str = ""
    parameters: int = 0
    flops: int = 0
    trained: int = 0
    tuner: TunerNote | None = None
    attached: list[TunerNote] = field(default_factory=list)
    children: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    times: int = 1
    inputs: Sequence[tuple[str, str]] = ()
    part: Part = ""

    @property
    def path(self) -> str:
        """The path of the first copy."""
        return self.paths[0]

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for boxes that are alike but for their names."""
        shape = self.shape if self.kind != "module" else ""
        own = (self.kind, self.word, shape, self.parameters, self.flops, self.trained > 0, self.times)
        tuners = tuple(_signature(note) for note in (*filter(None, [self.tuner]), *self.attached))
        # what leaves may be read in part by one reader, as the class token is
        lines = frozenset(replace(line, shape="") if line.target == EXIT else line for line in self.lines)
        return (*own, tuners, lines, *(child.signature for child in self.children))

    @property
    def has_tuner(self) -> bool:
        """Whether a tuner, or what trains itself, is in it."""
        return bool(self.tuner or self.attached or self.trained or any(c.has_tuner for c in self.children))


def _joins(site: Site) -> Literal["sum", "stage", ""]:
    match site.build_from:
        case ValueSite(replaces=False):
            return "sum"
        case ChainSite():
            return "stage"
    return ""


def _signature(note: TunerNote) -> tuple[object, ...]:
    return note.rule, note.form, note.kind, note.how, note.detail, note.parameters, note.reads, note.writes


def boxes_of(plan: PlanData) -> Box:
    """The boxes of a plan, every copy of a block with its own."""
    return _Tree(plan).build(flow_of(plan))


class _Tree:
    def __init__(self, plan: PlanData) -> None:
        self.plan, self.view = plan, plan.view
        self.sizes = {name: p.numel() for name, p in plan.view.module.named_parameters()}
        self.notes = {site.id: self._note(site) for site in plan.sites}

    def build(self, flow: Flow) -> Box:
        root = Box("module", "", type(self.plan.module).__name__, [""])
        way: dict[Thing, list[tuple[Box, int]]] = {}  # the boxes around each thing, with the place in each
        for thing in flow.things:
            way[thing] = self._put(thing, root)
        for wire in flow.wires:
            _connect(way[wire.source], way[wire.target], wire.shape, wire.is_side)
        for _, shape, reader in flow.inputs:
            for box, at in way[reader]:
                _line(box, ENTRY, at, shape, False)
        for thing, shape in flow.results:
            for box, at in way[thing]:
                _line(box, at, EXIT, shape, False)
        root.inputs = tuple(dict.fromkeys((name, shape) for name, shape, _ in flow.inputs))
        self._count(root)
        return _simple(root, is_root=True)

    def _put(self, thing: Thing, root: Box) -> list[tuple[Box, int]]:
        box, way = root, list[tuple[Box, int]]()
        for frame in thing.scope:
            if not frame.path:
                continue
            last = next((i for i in range(len(box.children) - 1, -1, -1) if box.children[i].tuner is None), None)
            if last is None or box.children[last].kind != "module" or box.children[last].path != frame.path:
                name = frame.path.removeprefix(f"{box.path}.")
                box.children.append(Box("module", name, frame.cls, [frame.path]))
                last = len(box.children) - 1
            way.append((box, last))
            box = box.children[last]
        box.children.append(self._leaf(thing, box))
        return [*way, (box, len(box.children) - 1)]

    def _leaf(self, thing: Thing, parent: Box) -> Box:
        shape, source = str(value_of(thing.node) or ""), origin_of(thing.node).source
        if thing.site is not None:
            note = self.notes[thing.site.id]
            if thing.what == "sum":
                return Box("sum", "", "add", [thing.site.path], shape, source, tuner=note)
            return Box("tuner", "", note.kind, [thing.site.path], shape, source, note.parameters, tuner=note)
        op = self.view.operations[thing.node]
        path = self._layer(thing.node) or parent.path
        name = path.removeprefix(f"{parent.path}.") if path != parent.path else ""
        names = set(op.parameters.values())
        return Box(
            "operation",
            name,
            op.name,
            [path],
            shape,
            source,
            sum(self.sizes.get(n, 0) for n in names),
            flops(thing.node, op),
            sum(self.plan.sizes.get(n, 0) for n in names),
            attached=[self.notes[site.id] for site in thing.attached],
            part=self._part(thing.node),
        )

    def _part(self, node: fx.Node) -> Part:
        if self.view.classes[node] & {"norm", "activation"}:
            return "follows"
        value = value_of(node)
        return "index" if value is None or not (value.dtype.is_floating_point or value.dtype.is_complex) else ""

    def _layer(self, node: fx.Node) -> str:
        """The path of the layer that an operation calls; empty where no layer makes it."""
        if node.op == "call_module":
            return str(node.target)
        weight = self.view.operations[node].parameters.get("weight", "")
        return weight.removesuffix(".weight") if weight.endswith(".weight") else ""

    def _note(self, site: Site) -> TunerNote:
        rule = next(r for r in self.plan.ruleset.rules if r.name == site.rule)
        config = {k: v for k, v in site.config.model_dump(mode="json").items() if k != "kind"}
        size = next(((k, config[k]) for k in ("r", "dim", "length", "tokens") if config.get(k) is not None), None)
        detail = f"{size[0]}={size[1]}" if size else ""
        how = site.how or ""
        numbers = (site.parameters, site.reads, site.writes, _short(rule.insert.mark), config)
        return TunerNote(site.rule, site.form, site.tuner, how, detail, *numbers, [site.id], _joins(site))

    def _count(self, box: Box) -> None:
        for child in box.children:
            self._count(child)
        if box.kind != "module":
            return
        inside = f"{box.path}." if box.path else ""
        box.parameters = sum(n for name, n in self.sizes.items() if name.startswith(inside))
        box.trained = sum(n for name, n in self.plan.sizes.items() if name.startswith(inside))
        box.flops = sum(child.flops for child in box.children)
        made = [line for line in box.lines if line.target == EXIT]
        box.shape = made[-1].shape if made else ""


def _short(mark: Mark) -> str:
    """A place in a rule file, without the folders above the file's own."""
    return f"{'/'.join(Path(mark.file).parts[-2:])}:{mark.line}:{mark.column}"


def _connect(source: list[tuple[Box, int]], target: list[tuple[Box, int]], shape: str, is_side: bool) -> None:
    """A line in the innermost box around both, and lines to and from the edges of the boxes around either."""
    common = 0
    while source[common] == target[common]:
        common += 1
    box, start = source[common]
    _line(box, start, target[common][1], shape, is_side)
    for inner, at in source[common + 1 :]:
        _line(inner, at, EXIT, shape, is_side)
    for inner, at in target[common + 1 :]:
        _line(inner, ENTRY, at, shape, is_side)


def _line(box: Box, source: int, target: int, shape: str, is_side: bool) -> None:
    if not any((old.source, old.target, old.is_side) == (source, target, is_side) for old in box.lines):
        box.lines.append(Line(source, target, shape, is_side))


def _simple(box: Box, *, is_root: bool = False) -> Box:
    """A module with a single operation becomes that operation."""
    box.children = [_simple(child) for child in box.children]
    only = box.children[0] if len(box.children) == 1 else None
    if is_root or only is None or box.kind != "module" or only.kind != "operation":
        return box
    only.name, only.paths = ".".join(filter(None, (box.name, only.name))), [only.path if only.name else box.path]
    only.parameters, only.trained = box.parameters, box.trained
    return only

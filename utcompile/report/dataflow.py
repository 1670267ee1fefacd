"""What a drawing shows of a plan: operations of the frozen model, tuners at their places, and the values between them.

Layout operations, dropouts and parts of a split are not drawn: a wire passes through them, and has the shape of the
value that its reader gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, assert_never

from torch import fx

from utcompile.graph import Frame, is_state, origin_of, value_of
from utcompile.matching import ChainPlace, PlanData, Site, TokensPlace, ValuePlace, WeightPlace
from utcompile.matching.forms import StreamTokensPlace
from utcompile.ops import Trait, having
from utcompile.tuners import tuner_class

What = Literal["operation", "tuner", "sum"]

_THROUGH = having(Trait.DROPOUT | Trait.CUTS | Trait.SAME)


@dataclass(eq=False)
class Thing:
    """Something that is drawn.

    Attributes:
        what: an operation of the frozen model, a tuner of values, or the sum that adds a tuner's result.
        scope: the module calls that enclose it, outermost first.
        order: where it comes among all: the position of an operation in the graph, then a number.
        node: the operation; for a tuner and a sum, the value that they change.
        site: the tuner's site.
        attached: the sites of tuners of its weights or of its keys and values.
    """

    what: What
    scope: tuple[Frame, ...]
    order: tuple[float, float]
    node: fx.Node
    site: Site | None = None
    attached: list[Site] = field(default_factory=list)


@dataclass(frozen=True)
class Wire:
    """A value on its way.

    Attributes:
        shape: of the value as the target reads it.
        is_side: it belongs to a side network, whose states flow next to the backbone.
    """

    source: Thing
    target: Thing
    shape: str
    is_side: bool = False


@dataclass(frozen=True)
class Flow:
    """All that is drawn, in order, with the inputs of the model and what it returns."""

    things: tuple[Thing, ...]
    wires: tuple[Wire, ...]
    inputs: tuple[tuple[str, str, Thing], ...]  # name, shape and reader
    results: tuple[tuple[Thing, str], ...]


def flow_of(plan: PlanData) -> Flow:
    """What a drawing of a plan shows."""
    return _Wiring(plan).flow()


class _Wiring:
    def __init__(self, plan: PlanData) -> None:
        self.plan, self.view = plan, plan.view
        self.things: dict[fx.Node, Thing] = {}
        self.inserted: list[Thing] = []
        self.stages: dict[str, Thing] = {}
        # what stands for a value once tuners have changed it, for one reader or for all; the latest is last
        self.instead: dict[fx.Node, list[tuple[fx.Node | None, Thing]]] = defaultdict(list)
        self.wires: list[Wire] = []
        self.inputs: list[tuple[str, str, Thing]] = []
        self.later: list[tuple[fx.Node, Thing]] = []  # values that tuners read, whatever changes them

    def flow(self) -> Flow:
        for node in self._needed():
            if not self._passes(node) and node.op != "placeholder":
                scope = origin_of(node).scope
                self.things[node] = Thing("operation", scope, (self.view.position[node], 0), node)
        for site in self.plan.sites:
            self._insert(site)
        for value, tuner in self.later:
            self._wire(value, None, tuner)
        for node, thing in self.things.items():
            for value in self._sources(node):
                self._wire(value, node, thing)
        results = tuple(
            (found, str(value_of(value) or ""))
            for value in self._returned()
            if (found := self._standing(value, None)) is not None
        )
        things = sorted([*self.things.values(), *self.inserted], key=lambda thing: thing.order)
        return Flow(tuple(things), tuple(self.wires), tuple(dict.fromkeys(self.inputs)), results)

    def _needed(self) -> list[fx.Node]:
        """The nodes from which the output and the tuned values are computed, composites as one; in graph order."""
        todo = [*self._returned(), *(n for site in self.plan.sites for n in _named(site))]
        found: set[fx.Node] = set()
        while todo:
            node = todo.pop()
            if node in found or is_state(node):
                continue
            found.add(node)
            todo += self._sources(node)
        return sorted(found, key=self.view.position.__getitem__)

    def _returned(self) -> Sequence[fx.Node]:
        """The values that the model returns, from inside what it packs them into."""
        found = [n for n in self.view.nodes[-1].all_input_nodes if not is_state(n)]
        while packed := [n for n in found if value_of(n) is None and not self._is_several(n) and n.all_input_nodes]:
            found = [n for n in found if n not in packed] + [s for n in packed for s in n.all_input_nodes]
        return [n for n in found if not is_state(n)]

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        found = self.view.operations[node].inputs or tuple(node.all_input_nodes)
        return [
            n
            for n in found
            if n in self.instead or (not is_state(n) and (value_of(n) is not None or self._is_several(n)))
        ]

    def _is_several(self, node: fx.Node) -> bool:
        """Whether a node yields several tensors."""
        return any("getitem" in self.view.classes[user] for user in node.users)

    def _passes(self, node: fx.Node) -> bool:
        """Whether a wire goes through a node."""
        names = self.view.classes[node]
        return ("layout" in names or self.view.operations[node].name in _THROUGH) and len(self._sources(node)) == 1

    def _way(self, value: fx.Node) -> Iterator[fx.Node]:
        """A value, then what it is a layout or a part of, and so on up to what is drawn."""
        yield value
        while value.op != "placeholder" and self._passes(value):
            value = self._sources(value)[0]
            yield value

    def _standing(self, value: fx.Node, reader: fx.Node | None) -> Thing | None:
        """What a reader gets a value from; None for an input of the model."""
        for node in self._way(value):
            for only, thing in reversed(self.instead.get(node, [])):
                if only is None or only is reader:
                    return thing
        return self.things.get(node)

    def _wire(self, value: fx.Node, reader: fx.Node | None, target: Thing, *, is_side: bool = False) -> None:
        """A line from what a reader gets a value from; that from an input of the model is noted apart."""
        source, shape = self._standing(value, reader), str(value_of(value) or "")
        if source is not None and source is not target:
            self.wires.append(Wire(source, target, shape, is_side))
        elif source is None:
            *_, start = self._way(value)
            if not is_state(start):
                self.inputs.append((str(start.target), str(value_of(start) or ""), target))

    def _insert(self, site: Site) -> None:
        match site.place:
            case ValuePlace() as place:
                for target in place.targets:
                    self._value(site, place, target)
            case WeightPlace() as place:
                for target in place.targets:
                    self._attach(target, site)
            case TokensPlace() as place:
                self._attach(place.attention.node, site)
            case StreamTokensPlace() as place:
                tuner = self._tuner("tuner", site, place.source, 1)
                self._wire(place.source, None, tuner)
                self.instead[place.source].append((None, tuner))
            case ChainPlace() as place:
                self._stage(site, place)
            case unknown:
                assert_never(unknown)

    def _attach(self, node: fx.Node, site: Site) -> None:
        for found in (node, *(n for n in node.users if node.op == "get_attr")):
            if found in self.things:
                self.things[found].attached.append(site)
                return

    def _value(self, site: Site, place: ValuePlace, target: fx.Node) -> None:
        if place.site.replaces:
            tuner = self._tuner("tuner", site, target, 1, place.reader)
            self._wire(target, place.reader, tuner)
            self.instead[target].append((place.reader, tuner))
            return
        tuner = self._tuner("tuner", site, target, 0.5, place.reader, place.source)
        added = self._tuner("sum", site, target, 1, place.reader, place.source)
        self._wire(target, place.reader, added)
        self.wires.append(Wire(tuner, added, str(value_of(target) or "")))
        self.instead[target].append((place.reader, added))
        self.later.append((place.source, tuner))

    def _stage(self, site: Site, place: ChainPlace) -> None:
        tuner = self._tuner("tuner", site, place.source, 1)
        self.stages[site.id] = tuner
        self._wire(place.source, None, tuner)
        if place.before is not None:
            state = place.site.previous.value if place.site.previous is not None else ""
            self.wires.append(Wire(self.stages[place.before], tuner, str(state), True))
        elif place.start is not None:
            self._wire(place.start, None, tuner, is_side=True)
        if place.end is None:
            return
        end = self._tuner("sum", site, place.end, 1.5) if tuner_class(site.tuner).joins else tuner
        if end is not tuner:
            self._wire(place.end, None, end)
            self.wires.append(Wire(tuner, end, str(value_of(place.end) or ""), True))
        self.instead[place.end].append((None, end))

    def _tuner(
        self,
        what: What,
        site: Site,
        value: fx.Node,
        after: float,
        reader: fx.Node | None = None,
        source: fx.Node | None = None,
    ) -> Thing:
        """A tuner, or a sum, at a value: in the innermost module call that the value does not leave."""
        *_, made = self._way(value)
        if reader is not None:
            order = (self.view.position[reader] - 0.5, self.view.position[made] + after)
            found = Thing(what, origin_of(reader).scope, order, value, site)
        else:
            order = (self.view.position[made], after)
            found = Thing(what, _around(made, value, source), order, value, site)
        self.inserted.append(found)
        return found


def _named(site: Site) -> Iterator[fx.Node]:
    """The nodes of the graph that a site names."""
    place = site.place
    yield from (n for n in (place.source, *place.targets) if n.op != "get_attr")
    if isinstance(place, TokensPlace):
        yield place.attention.node
    if isinstance(place, ChainPlace) and place.start is not None:
        yield place.start


def _around(made: fx.Node, value: fx.Node, source: fx.Node | None) -> tuple[Frame, ...]:
    """The calls around a value, without those that return it."""
    scope = list(origin_of(made).scope)
    readers = [n for n in value.users if value_of(n) is not None or n.op == "output"]
    while scope:
        frame = scope[-1]
        if any(_is_in(frame, n) for n in readers) or (source is not None and _is_in(frame, source)):
            break
        scope.pop()
    return tuple(scope)


def _is_in(frame: Frame, node: fx.Node) -> bool:
    return any(f.path == frame.path for f in origin_of(node).scope)

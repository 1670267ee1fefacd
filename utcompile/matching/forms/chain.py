"""`chain: v -> z`: the matches of one rule make one side network, one stage per match, in graph order.

Stage l reads `v` of its match, detached, and the state of stage l-1; the first stage reads `from:` of the first match,
if the rule has it. The last stage brings its state to `z` of the last match, which it replaces or joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Value, describe, readers, tensor
from utcompile.matching.fitting import check_form
from utcompile.matching.forms.found import Found
from utcompile.matching.forms.placing import Placed, TunerPlace
from utcompile.rules import ChainInsertion
from utcompile.tuners import ChainSite, Port, Tuner


@dataclass(frozen=True, kw_only=True)
class ChainPlace(TunerPlace):
    """The place of one stage in its side network.

    Attributes:
        site: the site as the tuner's `build` sees it.
        source: the value of the backbone that the stage reads.
        before: the id of the stage before it, None for the first.
        start: the value that the first stage reads as its previous state, or None.
        end: the value that the last stage replaces or joins, None for the others.
        state: the state that the stage returns.
    """

    site: ChainSite = field(compare=False)
    source: fx.Node = field(compare=False)
    before: str | None = field(default=None, compare=False)
    start: fx.Node | None = field(default=None, compare=False)
    end: fx.Node | None = field(default=None, compare=False)
    state: Port | None = field(default=None, compare=False)

    @property
    def targets(self) -> tuple[fx.Node, ...]:
        """The end of the network; for the stages before the last, the value that they read."""
        return (self.end if self.end is not None else self.source,)

    @property
    def given(self) -> tuple[Value, ...]:
        """The inputs of the tuner's `forward`."""
        previous = self.site.previous
        return (self.site.source.value,) if previous is None else (self.site.source.value, previous.value)


@dataclass(frozen=True)
class Earlier:
    """An earlier stage: the id of its site, and its place."""

    id: str
    place: ChainPlace


def place(found: Found, insertion: ChainInsertion, *, before: Sequence[Earlier], is_last: bool) -> Placed[ChainPlace]:
    """Check that a stage can read its match, and that the last stage can change the end.

    Args:
        found: the stage's match.
        insertion: the insertion of the rule.
        before: the stages so far.
        is_last: whether the network ends here.

    Raises:
        UtcError: it cannot, or the network would read a value that it changes; the caller adds `where`.
    """
    view, env = found.view, found.env
    source = _as_map(env[insertion.source], view)
    end = _as_map(env[insertion.target], view) if is_last else None
    start = env[insertion.start] if insertion.start and not before else None
    previous = found.port(insertion.start or "", start) if start is not None else None
    if before:
        previous = _state(before[-1])
    found.check_unwritten([n for n in (source, start, end) if n is not None])
    if end is not None:
        _check_order(insertion, [source, *(s.place.source for s in before)], end, view)
    site = ChainSite(
        source=found.port(insertion.source, source),
        target=found.port(insertion.target, end) if end is not None else found.port(insertion.source, source),
        captures=found.captures,
        previous=previous,
        is_last=is_last,
    )
    check_form(found.config, site)
    with torch.device("meta"):
        tuner = found.tuner.build(found.config, site)
    yields = tuner.state if not is_last else site.target
    assert yields is not None
    _check(tuner, site, yields)
    last = before[-1].id if before else None
    return Placed(
        place=ChainPlace(site=site, source=source, before=last, start=start, end=end, state=tuner.state),
        config=found.config,
        parameters=sum(p.numel() for p in tuner.parameters()),
        reads=tensor(source),
        writes=yields.value,
        note=None if end is None else _note(found, insertion, len(before) + 1, tuner),
    )


def _as_map(node: fx.Node, view: GraphView) -> fx.Node:
    """A row of tokens as the feature map that its only reader makes of it, as at the end of Swin's blocks."""
    reading = readers(node)
    reader = next(iter(reading), node)
    if len(reading) != 1 or "reshape" not in view.classes[reader] or view.channel_axis.get(reader) is None:
        return node
    whole = all(tensor(reader).sizes(batch)[0] == batch for batch in (2, 3))  # windows are more
    return reader if whole and (tensor(node).rank, tensor(reader).rank) == (3, 4) else node


def _state(stage: Earlier) -> Port:
    """The state of a stage."""
    assert stage.place.state is not None
    return replace(stage.place.state, name=f"the state of {stage.id}")


def _check_order(insertion: ChainInsertion, read: list[fx.Node], end: fx.Node, view: GraphView) -> None:
    for node in read:
        if node is not end and view.depends(node, end):
            raise UtcError(
                f"'{insertion.source}' at {describe(node)} is computed from '{insertion.target}' at {describe(end)}",
                why="a side network must not read a value that it changes",
                fix="let the chain end at a later value",
            )


def _check(tuner: Tuner, site: ChainSite, yields: Port) -> None:
    """Run a stage on the meta device at two batch sizes."""
    for batch in (2, 3):
        given = [
            torch.empty(p.value.sizes(batch), device="meta") for p in (site.source, site.previous) if p is not None
        ]
        with torch.no_grad():
            found = tuple(tuner(*given).shape)
        if found != yields.value.sizes(batch):
            raise UtcError(
                f"the stage yields {list(found)} where {list(yields.value.sizes(batch))} is needed, at batch {batch}",
                fix="choose captures of matching shapes",
            )


def _note(found: Found, insertion: ChainInsertion, stages: int, tuner: Tuner) -> str:
    end = found.env[insertion.target]
    what = "joins" if tuner.joins else "replaces"
    return (
        f"{found.rule.name}: a side network of {stages} stages reads the backbone detached, and no gradient enters it; "
        f"its result {what} '{insertion.target}' {tensor(end)} at {describe(end)}"
    )

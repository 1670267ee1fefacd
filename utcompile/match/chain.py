"""`chain: v -> z`: the matches of one rule make one side network, a stage each, in graph order.

Stage l reads `v` of its match, detached, and what stage l-1 yields; the first reads `from:` of the first match, if the
rule says so. The last stage brings its state to `z` of the last match, which it replaces or joins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, describe, readers, tensor
from utcompile.match.engine import Bindings
from utcompile.match.sites import Site, check_unwritten, port_of
from utcompile.rules import Rule
from utcompile.tuners import Port, Tuner, TunerSite, tuner_class


@dataclass(frozen=True)
class Stage:
    """One stage's place in its chain.

    Attributes:
        before: the id of the stage before it, None for the first.
        start: what the first stage reads as the state before it, or None.
        end: the value that the last stage replaces or joins, None for the others.
    """

    before: str | None
    start: fx.Node | None
    end: fx.Node | None


def make_chain(
    rule: Rule, chosen: Sequence[Bindings], view: GraphView, path_of: Callable[[Bindings], str]
) -> list[Site]:
    """The stages of a rule's side network.

    Raises:
        UtcError: where, why, and how to exclude the place; also where the network would read what it changes.
    """
    sites: list[Site] = []
    count: Counter[str] = Counter()
    for env in chosen:
        path = path_of(env)
        try:
            sites.append(_stage(rule, f"{rule.name}/{path}/{count[path]}", path, env, sites, env is chosen[-1], view))
        except UtcError as error:
            assert rule.insert.source is not None
            raise UtcError(
                f"rule '{rule.name}' at {describe(env[rule.insert.source])}: {error.what}",
                where=error.where or str(rule.insert.mark),
                why=error.why,
                fix=error.fix,
            ) from error
        count[path] += 1
    return sites


def _stage(rule: Rule, name: str, path: str, env: Bindings, before: list[Site], is_last: bool, view: GraphView) -> Site:
    insertion = rule.insert
    assert insertion.source is not None
    source = _as_map(env[insertion.source], view)
    end = _as_map(env[insertion.target], view) if is_last else None
    start = env[insertion.start] if insertion.start and not before else None
    previous = port_of(insertion.start or "", start, view) if start is not None else None
    if before:
        previous = _state(before[-1])
    check_unwritten([n for n in (source, start, end) if n is not None], view)
    if end is not None:
        _check_order(insertion.source, [source, *(s.source for s in before)], insertion.target, end, view)
    built_from = TunerSite(
        "chain",
        port_of(insertion.source, source, view),
        port_of(insertion.target, end, view) if end is not None else port_of(insertion.source, source, view),
        captures={k: view.operations[view.without_layout(n)] for k, n in env.items()},
        previous=previous,
        is_last=is_last,
    )
    config = insertion.tuner.config
    cls = tuner_class(config.kind)
    if "chain" not in cls.forms:
        raise UtcError(f"a {config.kind} tuner cannot be inserted as 'chain'", fix=f"use: {', '.join(cls.forms)}")
    with torch.device("meta"):
        tuner = cls.build(config, built_from)
    yields = tuner.state if not is_last else built_from.target
    assert yields is not None
    _check(tuner, built_from, yields)
    return Site(
        name,
        rule.name,
        path,
        "chain",
        config.kind,
        sum(p.numel() for p in tuner.parameters()),
        str(tensor(source)),
        str(yields.value),
        config,
        built_from,
        source,
        (end if end is not None else source,),
        bindings=env,
        place=Stage(before[-1].id if before else None, start, end),
        note=None if end is None else _note(rule, len(before) + 1, env, tuner, view),
    )


def _as_map(node: fx.Node, view: GraphView) -> fx.Node:
    """A row of tokens as the feature map that its only reader makes of it, as at the end of Swin's blocks."""
    reading = readers(node)
    reader = next(iter(reading), node)
    if len(reading) != 1 or "reshape" not in view.classes[reader] or view.channel_axis.get(reader) is None:
        return node
    whole = all(tensor(reader).sizes(batch)[0] == batch for batch in (2, 3))  # windows are more
    return reader if whole and (tensor(node).rank, tensor(reader).rank) == (3, 4) else node


def _state(site: Site) -> Port:
    """What a stage yields."""
    with torch.device("meta"):
        tuner = site.build()
    assert tuner.state is not None
    return replace(tuner.state, name=f"the state of {site.id}")


def _check_order(v: str, read: list[fx.Node], z: str, end: fx.Node, view: GraphView) -> None:
    for node in read:
        if node is not end and view.depends(node, end):
            raise UtcError(
                f"'{v}' at {describe(node)} is computed from '{z}' at {describe(end)}",
                why="a side network must not read what it changes",
                fix="let the chain end at a later value",
            )


def _check(tuner: Tuner, site: TunerSite, yields: Port) -> None:
    """Run a stage on the meta device at two batch sizes."""
    for batch in (2, 3):
        given = [
            torch.empty(p.value.sizes(batch), device="meta") for p in (site.source, site.previous) if p is not None
        ]
        with torch.no_grad():
            found = tuple(tuner(*given).shape)
        if found != yields.value.sizes(batch):
            raise UtcError(
                f"the stage yields {list(found)} where {list(yields.value.sizes(batch))} is wanted, at batch {batch}",
                fix="choose captures of matching shapes",
            )


def _note(rule: Rule, stages: int, env: Bindings, tuner: Tuner, view: GraphView) -> str:
    end = env[rule.insert.target]
    what = "joins" if tuner.joins else "replaces"
    return (
        f"{rule.name}: a side network of {stages} stages reads the backbone detached, and no gradient enters it; "
        f"its result {what} '{rule.insert.target}' {tensor(end)} at {describe(end)}"
    )

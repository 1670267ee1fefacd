"""A side network: `s_l = T_l(detach(v_l), s_{l-1})`; its end becomes the last state, or itself plus that state."""

from __future__ import annotations

import torch

from utcompile.graph import Role, info
from utcompile.matching import ChainPlace
from utcompile.rewrite.writer import Inserted, Writer


def insert(writer: Writer, site: Inserted, place: ChainPlace) -> None:
    """Add one stage: no gradient leaves it for the backbone."""
    source = writer.mapping[place.source]
    end = writer.mapping[place.end] if place.end is not None else None
    value = writer.value(source) if source is end else source
    reads = [writer.call(site, Role.DETACH, torch.detach, (value,), like=source)]
    if source is end:
        writer.running.add((reads[0], value))
    if place.start is not None:
        start = writer.mapping[place.start]
        reads.append(writer.call(site, Role.DETACH, torch.detach, (start,), like=start))
    elif place.before is not None:
        reads.append(writer.states[place.before])
    state = writer.states[site.id] = writer.tune(site, tuple(reads), like=source, after=reads[-1])
    if (port := site.tuner.state) is not None:
        info(state).value = port.value
    if end is None:
        return
    if site.tuner.joins:
        writer.add(site, end, state)
    else:
        info(state).replaces = writer.value(end).name
        writer.current[end] = state

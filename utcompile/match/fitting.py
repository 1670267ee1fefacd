"""Whether a tuner fits its site, and how many parameters it has: one built on the meta device tells.

Repeated blocks are alike in all that a tuner is built from, so one of them is tried and stands for the others.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.tuners import Port, TunerConfig, TunerSite, tuner_class


class Fitting:
    """The parameters of tuners by config and site, each kind of site tried once."""

    def __init__(self) -> None:
        self._parameters: dict[Hashable, int] = {}

    def parameters(self, config: TunerConfig, site: TunerSite) -> int:
        """How many parameters a tuner has at a site.

        Raises:
            UtcError: it cannot be inserted in that form, does not fit the site, or yields another shape than is wanted.
        """
        key = (type(config), str(config), *site_key(site))
        if key not in self._parameters:
            self._parameters[key] = _tried(config, site)
        return self._parameters[key]


def _tried(config: TunerConfig, site: TunerSite) -> int:
    cls = tuner_class(config.kind)
    if site.form not in cls.forms:
        what = f"a {config.kind} tuner cannot be inserted as '{site.form}'"
        raise UtcError(what, fix=f"use: {', '.join(cls.forms)}")
    with torch.device("meta"):
        tuner = cls.build(config, site)
    if site.form in ("parallel", "sequential"):
        for batch in (2, 3):
            given, wanted = site.source.value.sizes(batch), site.target.value.sizes(batch)
            with torch.no_grad():
                found = tuple(tuner(torch.empty(given, device="meta", dtype=torch.get_default_dtype())).shape)
            if found != wanted:
                raise UtcError(
                    f"the tuner yields {list(found)} where {list(wanted)} is wanted, at batch {batch}",
                    fix="choose captures of matching shapes",
                )
    return sum(p.numel() for p in tuner.parameters())


def site_key(site: TunerSite) -> tuple[Hashable, ...]:
    """All of a site that a tuner may be built from, the names of parameters and nodes aside."""
    captures = tuple((name, _operation_key(op)) for name, op in site.captures.items())
    operation = _operation_key(site.operation) if site.operation is not None else None
    ports = _port_key(site.source), _port_key(site.target)
    previous = _port_key(site.previous) if site.previous is not None else None
    place = site.heads, site.repeats, previous, site.is_last
    return site.form, *ports, operation, site.weight_shape, captures, *place


def _port_key(port: Port) -> Hashable:
    grid = port.grid if port.value.rank == 3 else None  # of tokens
    return port.name, port.channel_axis, port.value.shape, port.value.dtype, grid


def _operation_key(op: Operation) -> Hashable:
    return op.name, str(op.attributes), tuple(op.parameters), len(op.inputs)

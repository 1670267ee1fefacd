"""Whether a tuner fits its site, and how many parameters it has: one built on the meta device tells.

Repeated blocks are alike in all that a tuner is built from, so one of them is tried and stands for the others.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.tuners import Port, Tuner, TunerConfig, TunerSite, build_tuner, tuner_class

_MOST = 2**31  # parameters of one tuner: 8 GiB in float32
_SMALLER = "give it smaller sizes"


@dataclass(frozen=True)
class Fitted:
    """What is known of a tuner before it is built.

    Attributes:
        parameters: how many it has.
        how: of a weight tuner, `branch` or `reparametrised`.
    """

    parameters: int
    how: str


class Fitting:
    """What tuners are by config and site, each kind of site tried once."""

    def __init__(self) -> None:
        self._fitted: dict[Hashable, Fitted] = {}

    def fit(self, config: TunerConfig, site: TunerSite) -> Fitted:
        """Try a tuner at a site.

        Raises:
            UtcError: it cannot be inserted in that form, does not fit the site, or yields another shape than is wanted.
        """
        key = (type(config), str(config), *site_key(site))
        if key not in self._fitted:
            self._fitted[key] = _tried(config, site)
        return self._fitted[key]


def _tried(config: TunerConfig, site: TunerSite) -> Fitted:
    cls = tuner_class(config.kind)
    if site.form not in cls.forms:
        what = f"a {config.kind} tuner cannot be inserted as '{site.form}'"
        raise UtcError(what, fix=f"use: {', '.join(cls.forms)}")
    tuner = _on_meta(cls, config, site)
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
    return Fitted(sum(p.numel() for p in tuner.parameters()), tuner.how)


def _on_meta(cls: type[Tuner], config: TunerConfig, site: TunerSite) -> Tuner:
    """A tuner without memory, of a size that can have some."""
    try:
        with torch.device("meta"):
            tuner = build_tuner(cls, config, site)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UtcError(f"the {config.kind} tuner is too large for any memory", why=str(error), fix=_SMALLER) from error
    count = sum(p.numel() for p in tuner.parameters())
    if count > _MOST:
        raise UtcError(
            f"the {config.kind} tuner has {count:,} parameters", why=f"at most {_MOST:,} are made", fix=_SMALLER
        )
    return tuner


def site_key(site: TunerSite) -> tuple[Hashable, ...]:
    """All of a site that a tuner may be built from, the names of parameters and nodes aside."""
    captures = tuple((name, _operation_key(op)) for name, op in site.captures.items())
    operation = _operation_key(site.operation) if site.operation is not None else None
    ports = _port_key(site.source), _port_key(site.target)
    previous = _port_key(site.previous) if site.previous is not None else None
    place = site.heads, site.repeats, previous, site.is_last
    weights = (site.weight_shape, tuple(site.parameters.items()), site.direct, site.rows, site.held)
    return site.form, *ports, operation, weights, captures, *place


def _port_key(port: Port) -> Hashable:
    grid = port.grid if port.value.rank == 3 else None  # of tokens
    return port.name, port.channel_axis, port.value.shape, port.value.dtype, grid


def _operation_key(op: Operation) -> Hashable:
    return op.name, str(op.attributes), tuple(op.parameters), len(op.inputs)

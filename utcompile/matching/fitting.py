"""Whether a tuner fits its site, and how many parameters it has, found by building it on the meta device.

The sites of repeated blocks are equal in everything that a tuner is built from, so one of them is tried for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.tuners import Port, Tuner, TunerConfig, TunerSite, ValueSite, build_tuner, tuner_class

_MOST = 2**31  # parameters of one tuner: 8 GiB in float32
_SMALLER = "give it smaller sizes"


@dataclass(frozen=True)
class Fitted:
    """The facts of a tuner before it is built.

    Attributes:
        parameters: the number of its parameters.
        how: for a weight tuner, `branch` or `reparametrised`.
    """

    parameters: int
    how: Literal["branch", "reparametrised"]


class Fitting:
    """The facts of tuners by class, config and site; each kind of site is tried once."""

    def __init__(self) -> None:
        self._fitted: dict[tuple[object, ...], Fitted] = {}
        self._texts: dict[int, tuple[TunerConfig, str]] = {}  # by identity: writing a config out takes long

    def fit(self, config: TunerConfig, site: TunerSite) -> Fitted:
        """Try a tuner at a site.

        Raises:
            UtcError: the tuner cannot be inserted in that form, does not fit the site, or yields a wrong shape.
        """
        if id(config) not in self._texts:
            self._texts[id(config)] = config, str(config)
        _, text = self._texts[id(config)]
        key: tuple[object, ...] = (tuner_class(config.kind), type(config), text, *site_key(site))
        if key not in self._fitted:
            self._fitted[key] = _tried(config, site)
        return self._fitted[key]


def check_form(config: TunerConfig, site: TunerSite) -> None:
    """Refuse a tuner that is not made for the form of a site."""
    cls = tuner_class(config.kind)
    if not site.takes(cls.forms, cls.reads_stream):
        what = f"a {config.kind} tuner cannot be inserted as '{site.form}'"
        raise UtcError(what, fix=f"use: {', '.join(cls.forms)}")


def _tried(config: TunerConfig, site: TunerSite) -> Fitted:
    check_form(config, site)
    tuner = _on_meta(tuner_class(config.kind), config, site)
    if isinstance(site, ValueSite):
        for batch in (2, 3):
            given, needed = site.source.value.sizes(batch), site.target.value.sizes(batch)
            with torch.no_grad():
                found = tuple(tuner(torch.empty(given, device="meta", dtype=torch.get_default_dtype())).shape)
            if found != needed:
                raise UtcError(
                    f"the tuner yields {list(found)} where {list(needed)} is needed, at batch {batch}",
                    fix="choose captures of matching shapes",
                )
    return Fitted(sum(p.numel() for p in tuner.parameters()), tuner.how)


def _on_meta(cls: type[Tuner], config: TunerConfig, site: TunerSite) -> Tuner:
    """A tuner on the meta device, of a size that fits in memory."""
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
            f"the {config.kind} tuner has {count:,} parameters", why=f"at most {_MOST:,} are allowed", fix=_SMALLER
        )
    return tuner


def site_key(site: TunerSite) -> tuple[Hashable, ...]:
    """Everything of a site from which a tuner may be built, except the names of parameters and nodes."""
    given = ((f.name, _key(getattr(site, f.name))) for f in fields(site) if f.name != "shared")
    return type(site), *given


def _key(value: object) -> Hashable:
    match value:
        case Port():
            return value.name, value.channel_axis, value.value.shape, value.value.dtype, value.grid, value.windows
        case Operation():
            return value.name, _attributes(value), tuple(value.parameters), len(value.inputs)
        case Mapping():
            return tuple((name, _key(part)) for name, part in value.items())
    found: Hashable = value
    return found


def _attributes(operation: Operation) -> str:
    """The attributes of an operation, with one word for every value of the graph, whose name does not matter."""
    return str(fx.node.map_arg(dict(operation.attributes), lambda node: "node"))

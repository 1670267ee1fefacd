"""One tuner for each weight of a recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.ops import Trait, having
from utcompile.tuners.base import Tuner, TunerConfig
from utcompile.tuners.sites import TunerSite, WeightSite

RECURRENT = having(Trait.GATED)


class EachParameter(Tuner):
    """A tuner for each parameter of an LSTM, a GRU or a cell of them, by name: `weight_ih_l0`, `weight_hh_l0` …"""

    forms = ("weight",)

    def __init__(self, tuners: Mapping[str, Tuner]) -> None:
        super().__init__()
        self.roles = tuple(tuners)
        self.tuners = nn.ModuleDict(tuners)
        self.identity_at_start = all(t.identity_at_start for t in tuners.values())

    def _each(self, parameters: tuple[torch.Tensor | None, ...]) -> list[tuple[Tuner, torch.Tensor | None]]:
        tuners = [tuner for tuner in self.tuners.values() if isinstance(tuner, Tuner)]
        return list(zip(tuners, parameters, strict=True))

    def start(self, *parameters: torch.Tensor | None) -> None:
        """Start each."""
        for tuner, parameter in self._each(parameters):
            tuner.start(parameter)

    def changed(self, *parameters: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Change each."""
        return tuple(tuner.changed(parameter) for tuner, parameter in self._each(parameters))


def build_tuner(cls: type[Tuner], config: TunerConfig, site: TunerSite) -> Tuner:
    """Build a tuner for a site; for a recurrent layer, one tuner for each parameter of the tuner's role.

    Raises:
        UtcError: the tuner does not fit the site.
    """
    if not isinstance(site, WeightSite) or site.operation.name not in RECURRENT:
        return cls.build(config, site)
    if len(cls.roles) != 1:
        raise UtcError(
            f"a {config.kind} tuner does not apply to the weights of {site.operation.name}",
            why="the tuner scales the channels of a result, and the gates of a recurrent layer are nonlinear",
            fix="use {kind: lora}, {kind: dora} or {kind: bias}, or `sequential:` after the layer",
        )
    (role,) = cls.roles
    alone = {
        name: replace(site, operation=Operation("parameter"), weight_shape=shape or (), parameters={role: shape})
        for name, shape in site.parameters.items()
    }
    if not alone:
        raise UtcError(f"this {site.operation.name} has no {role}")
    return EachParameter({name: cls.build(config, part) for name, part in alone.items()})

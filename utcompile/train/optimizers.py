"""timm's optimizers, with a learning rate and a weight decay per rule where these are given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from utcompile.errors import UtcError, did_you_mean
from utcompile.rewrite import TunedModule, unwrapped
from utcompile.train.settings import Settings

TRAINED = "train"  # the group of the parameters that the rules name under `train:`
_log = logging.getLogger(__name__)


def check_optimizer(name: str) -> None:
    """Raise where timm has no such optimizer."""
    known = [str(name) for name in list_optimizers()]
    if name not in known:
        raise UtcError(f"timm has no optimizer {name!r}", fix=did_you_mean(name, known), code="train/settings")


def create_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """An optimizer of the parameters that require a gradient; decay applies to matrices only.

    Raises:
        UtcError: timm has no such optimizer, it needs a package, or a rate is given for a rule that trains nothing.
    """
    check_optimizer(settings.optimizer)
    parameters: Any = model
    if settings.rates or settings.decays:
        parameters = _groups(model, settings)
    try:
        return create_optimizer_v2(
            parameters, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay
        )
    except Exception as error:  # a package that it needs, or a kind of parameter that it does not take
        raise UtcError(
            f"the optimizer {settings.optimizer!r} cannot be made",
            why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            fix="take another one, e.g. adamw",
            code="train/settings",
        ) from error


def rules_of_parameters(model: nn.Module) -> dict[str, str]:
    """The rule of each parameter that trains, by the parameter's name; `train` for the parameters themselves."""
    tuned = unwrapped(model, "fit")
    owners: dict[int, str] = {}
    if isinstance(tuned, TunedModule):
        for site in tuned.sites:
            owners.update((id(p), site.rule) for p in tuned.tuner(site.id).parameters())
    return {name: owners.get(id(p), TRAINED) for name, p in model.named_parameters() if p.requires_grad}


def _groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    rules, named = rules_of_parameters(model), dict(model.named_parameters())
    for option, values in (("rates", settings.rates), ("decays", settings.decays)):
        for name in values:
            if name not in set(rules.values()):
                raise UtcError(
                    f"{option} names {name!r}, which trains nothing",
                    fix=did_you_mean(name, set(rules.values())),
                    code="train/settings",
                )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, rule in rules.items():
        parameter = named[name]
        spared = parameter.ndim <= 1 or name.endswith(".bias")
        decay = 0.0 if spared else settings.decays.get(rule, settings.weight_decay)
        groups.setdefault((settings.rates.get(rule, settings.lr) / settings.lr, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": settings.lr, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of what no rule changes."""
    group: Mapping[str, Any] = max(optimizer.param_groups, key=lambda g: g.get("lr_scale", 1.0))
    scale = group.get("lr_scale", 1.0)
    return float(group["lr"] / scale) if scale else 0.0

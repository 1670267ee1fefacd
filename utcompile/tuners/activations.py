"""Activations by name, and `same as a`: the activation of a captured operation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from torch import nn

from utcompile.errors import UtcError, did_you_mean
from utcompile.graph import ACTIVATIONS, Operation, module_of
from utcompile.graph.spellings import MODULES


def _makers() -> dict[str, type[nn.Module]]:
    """The activations whose modules need no argument and have no parameters and no randomness; and the identity."""
    classes = {name: module_of(name) for name in ACTIVATIONS}
    made = {name: cls for name, cls in classes.items() if cls is not None and _is_plain(cls)}
    return {**made, "identity": nn.Identity}


def _is_plain(cls: type[nn.Module]) -> bool:
    arguments = inspect.signature(cls).parameters.values()
    if any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in arguments):
        return False
    return not [*cls().parameters()] and "training" not in MODULES[cls].schema


_MAKERS = _makers()
ACTIVATION_NAMES = tuple(sorted(_MAKERS))
SAME_AS = re.compile(r"same as ([A-Za-z_]\w*)")


def check_activation(text: str) -> str:
    """Validate a config's `activation`: a known name or `same as <capture>`."""
    if not SAME_AS.fullmatch(text) and text not in _MAKERS:
        raise ValueError(f"unknown activation {text!r}; {did_you_mean(text, _MAKERS)}")
    return text


def make_activation(text: str, captures: Mapping[str, Operation]) -> nn.Module:
    """Build the activation that a config names; `same as a` takes the attributes of the captured operation."""
    name, attributes = activation_of(text, captures)
    if name not in _MAKERS:
        raise UtcError(f"no module computes the activation {name!r}", fix=f"use one of: {', '.join(ACTIVATION_NAMES)}")
    return _MAKERS[name](**attributes)


def activation_of(text: str, captures: Mapping[str, Operation]) -> tuple[str, dict[str, object]]:
    """The canonical name and attributes of the activation that a config names."""
    same = SAME_AS.fullmatch(text)
    if not same:
        return text, {}
    op = captures.get(same[1])
    if op is None:
        raise UtcError(f"'{text}': the match offers no capture '{same[1]}'", fix=did_you_mean(same[1], captures))
    if op.name not in ACTIVATIONS:
        raise UtcError(
            f"'{text}': '{same[1]}' is the result of {op.name}, which is no activation",
            fix="name the capture of the activation itself",
        )
    return op.name, {k: v for k, v in op.attributes.items() if k not in ("inplace",)}

"""In what the tuners of two tasks on one base may differ: the size of an inner axis, a fixed factor on the result."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from utcompile.errors import UtcError
from utcompile.rewrite.tuned_site import TunedSite
from utcompile.rewrite.whole import Whole, site_in
from utcompile.tuners import Inner, Tuner, TunerConfig, config_for

# how a tuner is computed, and not what: equal in exact arithmetic
HOW = frozenset(["how", "as_one"])


def inner_of(tuned: nn.Module, site: TunedSite) -> Inner | None:
    """The inner axis of the tuner at a site; None where the kind has none."""
    tuner = tuned.get_submodule(site.name)
    return tuner.inner() if isinstance(tuner, Tuner) else None


def free_fields(tuned: nn.Module, site: TunedSite) -> frozenset[str]:
    """The fields of a site's config in which tasks may differ."""
    return HOW | site.config.free if inner_of(tuned, site) is not None else HOW


def free_dims(whole: Whole) -> dict[str, int]:
    """The tensors of a checkpoint that have an inner axis, and which of their dimensions it is."""
    found: dict[str, int] = {}
    for path, tuned in whole.parts.items():
        for site in tuned.sites:
            inner = inner_of(tuned, site)
            if inner is not None:
                found |= {f"{site_in(path, site).id}:{key}": dim for key, dim in inner.axes.items()}
    return found


def factor_of(kind: str, config: Mapping[str, object], where: str) -> float:
    """The fixed factor on the result of a tuner of this config.

    Raises:
        UtcError: the kind is unknown here, or has no such config.
    """
    try:
        made: TunerConfig = config_for(kind).model_validate({k: v for k, v in config.items() if v is not None})
    except (ValueError, TypeError) as error:
        raise UtcError(
            f"the config of a {kind} is none",
            where=where,
            why=str(error).partition("\n")[2].strip()[:200] or None,
            code="checkpoint/other-sites",
        ) from error
    return made.result_factor()

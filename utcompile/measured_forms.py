"""`how: measured`: which form computes each site is timed once, when rules are matched, and is data from then on.

A plan has the choice and the times at its sites, and its rule set has them by the ids of sites. So the tuned module,
its checkpoint and the rules that are loaded from it have them too, and their sites are not timed again. In one process,
sites of one kind are timed once.

The form that costs less by count is taken unless another is faster by more than a twentieth: what lies within the noise
of a clock does not change the graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, path_in
from utcompile.graph.likeness import batch_of
from utcompile.matching import PlanData, Site, WeightPlace
from utcompile.matching.fitting import site_key
from utcompile.memory import clock
from utcompile.memory.site_steps import counted_form, forms_of, site_step, with_form
from utcompile.rules import Measured
from utcompile.tuners import LoraConfig, WeightSite
from utcompile.tuners.forms import BATCH, TimedForm

_P = TypeVar("_P", bound=PlanData)
_MARGIN = 1.05
_known: dict[tuple[Hashable, ...], Mapping[str, float]] = {}


def decide_forms(plan: _P, path: str = "") -> _P:
    """The plan with a form at each site of `how: measured`; of a plan without one, the plan itself.

    Args:
        plan: as matched.
        path: of the part of a model that it is of.

    Raises:
        UtcError: the rules have a form for a site that it cannot have.
    """
    asked = [site for site in plan.sites if isinstance(site.config, LoraConfig) and site.config.how == "measured"]
    if not asked:
        return plan
    batch = _batch(plan.module)
    decided = {site.id: _decided(site, plan.ruleset.measured.get(_in(path, site)), batch) for site in asked}
    found = {_in(path, site): site.measured for site in decided.values() if site.measured is not None}
    return replace(
        plan,
        sites=tuple(decided.get(site.id, site) for site in plan.sites),
        ruleset=replace(plan.ruleset, measured={**plan.ruleset.measured, **found}),
    )


def _in(path: str, site: Site) -> str:
    """A site's id in the whole model."""
    inside = path_in(path, site.path)
    return f"{site.rule}/{inside}{site.id.removeprefix(f'{site.rule}/{site.path}')}"


def _decided(site: Site, known: Measured | None, batch: int) -> Site:
    place, config = site.place, site.config
    assert isinstance(place, WeightPlace) and isinstance(config, LoraConfig)
    forms = forms_of(config, place.site)
    if known is not None and known.form not in forms:
        raise UtcError(
            f"the site cannot be computed as '{known.form}', which was measured before",
            where=f"site {site.id}",
            why=f"possible there: {', '.join(forms)}",
            fix="load the rules without `measured`, and the forms are measured again",
            code="tuner/does-not-fit",
        )
    found = known or _measured(config, place.site, forms, batch)
    chosen = with_form(config, found.form)
    if "one" not in forms:
        chosen = chosen.model_copy(update={"as_one": config.as_one})
    placed = replace(place, how="reparametrised" if found.form == "reparametrised" else "branch")
    return replace(site, config=chosen, place=placed, measured=found)


def _measured(config: LoraConfig, site: WeightSite, forms: tuple[TimedForm, ...], batch: int) -> Measured:
    counted = counted_form(config, site, forms)
    value, device = site.source.value, site.target.value.device
    if len(forms) == 1:
        return Measured(counted, {})
    if device.type == "meta":
        return Measured(counted, {}, "by count: the model has no numbers to compute with")
    sizes = list(value.sizes(batch))
    key = (clock.least_seconds, type(config), str(config), batch, torch.get_num_threads(), device, *site_key(site))
    if key not in _known:
        _known[key] = clock.least_seconds({form: site_step(config, site, form, batch) for form in forms}, device)
    seconds = _known[key]
    least = min(forms, key=lambda form: seconds[form])
    form = counted if seconds[counted] <= _MARGIN * seconds[least] else least
    return Measured(form, dict(seconds), f"{sizes} {str(value.dtype).removeprefix('torch.')} on {device}")


def _batch(module: UtcGraphModule) -> int:
    """The batch of the example inputs."""
    example = module.example_inputs
    if example is None:
        return BATCH
    return batch_of(example.arguments(module.dtype, module.device), module.batch_inputs) or BATCH

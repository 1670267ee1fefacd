"""`weight: h`: a tuner of the parameters of an operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Value, tensor, value_of
from utcompile.matching.fitting import Fitted
from utcompile.matching.forms.found import Found, no_complex
from utcompile.matching.forms.placing import Placed, Trial, TunerPlace
from utcompile.matching.weights import TunedWeight, quantised_branch_of, rows_of, tuned_weight
from utcompile.rules import MatchModule, WeightInsertion
from utcompile.tuners import Tuner, TunerConfig, WeightSite


@dataclass(frozen=True, kw_only=True)
class WeightPlace(TunerPlace):
    """The place of a weight tuner.

    Attributes:
        site: the site as the tuner's `build` sees it.
        source: the input of the operation; the parameter itself where there is no operation.
        targets: the operation, or all calls of a module that is called several times.
        how: `branch` or `reparametrised`.
        tunes: role to the name of the changed parameter; None for a parameter that the tuner adds.
    """

    site: WeightSite = field(compare=False)
    source: fx.Node = field(compare=False)
    targets: tuple[fx.Node, ...] = field(compare=False)
    how: Literal["branch", "reparametrised"]
    tunes: Mapping[str, str | None]

    @property
    def given(self) -> tuple[Value, ...]:
        """The input of the operation."""
        return (self.site.source.value,)

    def read(self, view: GraphView) -> Sequence[Value]:
        """The inputs of the calls of the operation; of a parameter itself, the parameter."""
        calls = [view.operations[target].inputs for target in self.targets]
        return [tensor(inputs[0] if inputs else self.source) for inputs in calls]

    def run(self, tuner: Tuner, inputs: Sequence[torch.Tensor]) -> bool:
        """A branch runs in each call; a weight is changed once for all calls."""
        if self.how == "branch":
            for value in inputs:
                tuner(value)
            return False
        dtype = self.site.target.value.dtype
        shapes = self.site.parameters.values()
        tuner(*(torch.empty(shape, dtype=dtype) if shape is not None else None for shape in shapes))
        return any(role != "bias" for role in self.tunes)

    def trial(self, tuner: Tuner, batch: int) -> Trial | None:
        """A trial on the parameters that the tuner changes, or on the input of its branch where it changes none."""
        if self.site.only_branch:
            return super().trial(tuner, batch)
        shapes = list(self.site.parameters.values())
        return Trial(shapes=shapes, run=tuner.changed, start=tuner.start, takes_dtype=True)


def place(found: Found, insertion: WeightInsertion) -> Placed[WeightPlace]:
    """Check that a tuner of weights can be inserted at a match.

    Raises:
        UtcError: it cannot; the caller adds `where`.
    """
    view, config = found.view, found.config
    tuned = _weight(found, insertion)
    read = found.port(insertion.target, tuned.source)
    slices = getattr(config, "slices", None)
    site = WeightSite(
        source=read,
        target=found.port(insertion.target, tuned.node) if value_of(tuned.node) is not None else read,
        captures=found.captures,
        operation=tuned.operation,
        weight_shape=tuned.unchangeable.shape if tuned.unchangeable else tuned.shapes.get("weight") or (),
        parameters=tuned.shapes,
        direct=tuned.direct,
        rows=rows_of(slices, found.env, tuned, view) if slices else (),
        only_branch=tuned.unchangeable.why if tuned.unchangeable else "",
    )
    _check_real(found, tuned)
    fitted, config = _fitted(found, site, tuned)
    if site.only_branch and fitted.how != "branch":
        raise UtcError(
            f"a {config.kind} tuner cannot change a weight that is quantised: {site.only_branch}",
            why="its update would be rounded away, and no gradient would reach it",
            fix="use {kind: lora}, whose branch is parallel to the layer, an adapter, or a sequential ssf or ia3",
            code="match/weights",
        )
    return Placed(
        place=WeightPlace(site=site, source=tuned.source, targets=(tuned.node,), how=fitted.how, tunes=tuned.names),
        config=config,
        parameters=fitted.parameters,
        reads=site.source.value,
        writes=site.target.value,
    )


def _weight(found: Found, insertion: WeightInsertion) -> TunedWeight:
    view, target = found.view, found.env[insertion.target]
    made = target if target.op == "get_attr" else view.without_layout(target)
    if isinstance(found.rule.match, MatchModule) and target is found.env.get("y"):
        branch = quantised_branch_of(found.path, found.env["x"], target, view)
        if branch is not None:
            return branch
    tuned = tuned_weight(made, found.tuner.roles, insertion.target, view)
    for name in filter(None, tuned.names.values()):
        tied = _tied(view, name)
        if tied and not insertion.all_uses:
            raise UtcError(
                f"the weight {name} is tied to {', '.join(tied)}",
                why="this tuner would change one of its uses alone",
                fix="write `all_uses: true` to give each use its own tuner, or exclude the site in `where:`",
                code="match/weights",
            )
    return tuned


def _tied(view: GraphView, name: str) -> list[str]:
    """The other names under which the graph reads a parameter."""
    parameter = view.parameters.get(name)
    names = view.names_of[parameter] if parameter is not None else ()
    return [n for n in names if n != name and n in view.parameters_read]


def _check_real(found: Found, tuned: TunedWeight) -> None:
    """Refuse a tuner of real numbers where a weight is complex."""
    named = found.view.parameters
    name = next((n for n in tuned.names.values() if n is not None and named[n].is_complex()), None)
    if name is not None and not found.tuner.takes_complex:
        raise no_complex(found.config.kind, f"the weight {name}", str(named[name].dtype))


def _fitted(found: Found, site: WeightSite, tuned: TunedWeight) -> tuple[Fitted, TunerConfig]:
    """The facts of a tuner at a site; with `how: reparametrised` where a value that a branch needs is overwritten.

    A tuner that changes the weight does not read values, so a later write into the result is no problem.
    """
    config = found.config
    fitted = found.fitting.fit(config, site)
    how: object = vars(config).get("how")
    if fitted.how == "reparametrised" and how != "measured":  # which may still choose the branch
        return fitted, config
    try:
        found.check_unwritten((tuned.source, tuned.node))
    except UtcError:
        if how not in ("auto", "measured") or vars(config).get("dropout"):
            raise
        config = config.model_copy(update={"how": "reparametrised"})
        fitted = found.fitting.fit(config, site)
    return fitted, config

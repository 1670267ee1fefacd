"""Every parameter of a tuner must learn: two steps of the tuner alone, on random values, show it.

`reach.py` reads off the graph that a gradient comes back to a tuner. Whether it comes to each parameter inside is the
tuner's own affair: a parameter that `forward` forgets, or two factors that both start at zero, train without an error
and change nothing. A step of the whole model would cost seconds; here one site of each kind is tried, the smallest.

The values are random, the frozen parameters too, so that nothing depends on the base or on the example inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence

import torch

from utcompile.errors import UtcError
from utcompile.matching import Site, WeightPlace
from utcompile.matching.forms.placing import Trial
from utcompile.rewrite.tuned import TunedModule
from utcompile.tuners import Tuner

_BATCH = 2
_DRAWS = 8  # a bottleneck of one channel may be dead under one draw's ReLU, as under one batch in training


def check_learning(sites: Sequence[Site], tuned: TunedModule) -> None:
    """Raise for the first tuner with a parameter that gets no gradient, or one that is not finite.

    Args:
        sites: of the plan.
        tuned: what it became; its tuners are copied, and the random state stays as it was.
    """
    kinds: dict[Hashable, tuple[int, Site, Tuner]] = {}
    for site, made in zip(sites, tuned.sites, strict=True):
        tuner = tuned.tuner(made.id)
        operation = site.place.site.operation.name if isinstance(site.place, WeightPlace) else None
        named = tuple((n, p.dim()) for n, p in tuner.named_parameters())
        key = (type(site.config), str(site.config), site.form, operation, named)
        trial = site.place.trial(tuner, _BATCH)
        if trial is None:
            continue
        size = sum(torch.Size(s).numel() for s in trial.shapes if s is not None)
        if key not in kinds or size < kinds[key][0]:
            kinds[key] = size, site, tuner
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for _, site, tuner in kinds.values():
            _check(site, copy.deepcopy(tuner).cpu().float().train())


def _check(site: Site, tuner: Tuner) -> None:
    trained = {n: p for n, p in tuner.named_parameters() if p.requires_grad and p.numel()}
    trial = site.place.trial(tuner, _BATCH)
    if not trained or trial is None:
        return
    dtype = torch.float32
    if trial.takes_dtype:
        dtype = next((p.dtype for p in trained.values() if p.is_complex()), torch.float32)
    if trial.start is not None:
        trial.start(*_inputs(trial, dtype))
    waiting = set(trained)
    for draw in range(_DRAWS):
        made = trial.run(*_inputs(trial, dtype))
        results = [t for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, torch.Tensor)]
        real = [torch.view_as_real(t) if t.is_complex() else t for t in results]
        loss = torch.stack([(t * torch.randn_like(t)).sum() for t in real]).sum()
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if loss.requires_grad else ()
        for (name, parameter), grad in zip(trained.items(), grads, strict=False):
            if grad is None or not grad.any():
                continue
            if not grad.isfinite().all():
                raise UtcError(
                    f"the gradient of '{name}' in a {site.tuner} tuner is not finite",
                    where=f"site {site.id}",
                    why=f"in step {draw + 1} of the tuner alone, on random values",
                    fix="look for a division by zero, or a root at zero, where the tuner starts",
                    code="tune/no-gradient",
                )
            waiting.discard(name)
            with torch.no_grad():
                parameter.sub_(0.1 * grad / grad.abs().max())
        if not waiting:
            return
    raise UtcError(
        f"no gradient reaches {', '.join(repr(n) for n in trained if n in waiting)} in a {site.tuner} tuner",
        where=f"site {site.id}",
        why="in steps of the tuner alone, on random values: it takes no part in what the tuner computes, or what it is "
        "multiplied by starts at zero and stays there",
        fix="start only one of two factors at zero; what is not to be trained is a buffer",
        code="tune/no-gradient",
    )


def _inputs(trial: Trial, dtype: torch.dtype) -> list[torch.Tensor | None]:
    return [None if s is None else _random(s, dtype) for s in trial.shapes]


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device="cpu")  # whatever the defaults are

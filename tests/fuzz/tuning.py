"""Random programs between frozen layers, tuned by random rules: what must be true of the tuned and the folded model.

1. Outputs and gradients under the memory plan are those without it: outputs to the bit, gradients to rounding.
2. The folded model computes what the tuned one computes, in calls that no proof saw.
3. Whatever does not work is a `UtcError`, and none of them says that it is utcompile's own fault.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import types
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import utcompile as utc
from utcompile.graph import operation
from utcompile.ops import ROWS

from .oracle import Outcome, _brief, _differs, _module, _values
from .program import Program

_TUNERS = {
    "linear": ("lora, r: 2", "dora, r: 2", "bias", "ssf", "ia3", "lora, r: 2, how: branch"),
    "conv2d": ("lora, r: 2", "bias", "ssf", "lora, r: 2, how: branch"),
    "layer_norm": ("norm_affine", "ssf", "bias"),
}
_PARALLEL = ("adapter, dim: 2, activation: identity", "adapter, dim: 3", "adapter, dim: 2, scale: channel", "ssf")
_SEQUENTIAL = ("ssf", "ia3", "adapter, dim: 2", "adapter, dim: 2, activation: identity")
_GRADIENT, _FOLD = 1e-6, 1e-3  # relative to the largest value: one operation in another order; a fold in float32
_OURS = "fault of utcompile"


class Framed(nn.Module):
    """A program between layers that every rule can find, so that gradients flow through it."""

    def __init__(self, inner: nn.Module, image: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1) if image else nn.Linear(4, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1) if image else nn.Linear(4, 4)
        self.norm = nn.BatchNorm2d(4) if image else nn.LayerNorm(4)
        self.inner, self.last = inner, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *rest: Any) -> Any:
        h = self.first(x)
        out = self.inner(self.norm(self.second(F.gelu(h)) + h), *rest)
        is_wide = isinstance(out, torch.Tensor) and out.is_floating_point() and out.ndim > 1 and out.shape[-1] == 4
        return self.last(out) if is_wide else out


def judge(program: Program) -> Outcome:
    """Tune a program by rules of its seed, and compare its gradients and its folded model."""
    with _module(program) as module, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        outcome = Outcome()
        try:
            _judge(program, module, outcome)
        except utc.UtcError as error:
            outcome.refused += 1
            outcome.refuse("tuning", error)
            if _OURS in str(error):
                outcome.wrong.append(("tuning", str(error)))
        except Exception as error:
            outcome.wrong.append(("tuning", f"traceback {_brief(error)}"))
        return outcome


def _judge(program: Program, module: types.ModuleType, outcome: Outcome) -> None:
    given = _values(module, program.example)
    torch.manual_seed(0)
    try:
        model = Framed(module.Model(), given[0].ndim == 4).eval().requires_grad_(False)
        copy.deepcopy(model)(*given)
    except Exception:  # whatever a random model raises
        outcome.runs = False
        return
    captured = utc.capture(model, _values(module, program.example), dynamic=eval(program.dynamic))
    tuned = utc.match(captured, rules_for(captured, random.Random(program.seed))).apply()
    generator = torch.Generator().manual_seed(program.seed)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, tuned.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned.eval()
    calls = [program.example, *(sequence[0] for sequence in program.calls)]
    for call in calls:
        _compare_gradients(tuned, _values(module, call), _values(module, call), call.label, outcome)
    folded, _ = utc.fold(tuned)
    for call in calls:
        _compare_folded(tuned, folded, _values(module, call), _values(module, call), call.label, outcome)


def rules_for(captured: utc.CapturedModule, r: random.Random) -> str:
    """Up to three rules on operations that a model has."""
    found = {operation(n, captured).name for n in captured.graph.nodes if n.op.startswith("call_")}
    names = sorted(n for n in found if n in ROWS and n not in ("getitem", "size", "abs"))
    lines = [_rule(i, names, r) for i in range(r.randint(1, 3))]
    return "\n".join(["version: 1", "name: random", "rules:", *lines])


def _rule(number: int, names: Sequence[str], r: random.Random) -> str:
    form, op = r.choice(("weight", "parallel", "sequential: h", "sequential: x")), r.choice(names)
    if form == "weight":
        op = r.choice([n for n in names if n in _TUNERS] or ["linear"])
        insert = f"weight: h, tuner: {{kind: {r.choice(_TUNERS[op])}}}"
    elif form == "parallel":
        insert = f"parallel: x -> h, tuner: {{kind: {r.choice(_PARALLEL)}}}"
    else:
        insert = f"{form}, tuner: {{kind: {r.choice(_SEQUENTIAL)}}}"
    name = f"name: r{number}, on_refusal: skip, expect: {{optional: true}}"
    return f"  - {{{name}, match: {{op: {op}}}, insert: {{{insert}}}}}"


def _compare_gradients(
    tuned: utc.TunedModule, args: tuple[Any, ...], same: tuple[Any, ...], label: str, outcome: Outcome
) -> None:
    plain, planned = copy.deepcopy(tuned), copy.deepcopy(tuned)
    plain.memory = None
    try:
        expected, gradients = _step(plain, args)
    except Exception:  # a guard, or torch's own refusal of a write into what backward needs
        outcome.invalid += 1
        return
    found, others = _step(planned, same)
    difference = _differs(expected, found)
    for name, gradient in gradients.items():
        difference = difference or _apart(gradient, others[name], _GRADIENT, f"gradient of {name}")
    if difference:
        outcome.wrong.append((label, f"planned: {difference}"))
    outcome.equal += difference is None


def _step(tuned: utc.TunedModule, args: tuple[Any, ...]) -> tuple[Any, dict[str, torch.Tensor | None]]:
    out = tuned(*args)
    leaves = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
    weights = [torch.linspace(0.5, 1.5, t.numel()).view(t.shape) for t in leaves]
    total = sum((t * w).sum() for t, w in zip(leaves, weights, strict=True))
    if isinstance(total, torch.Tensor):
        total.backward()
    return out, {n: p.grad for n, p in tuned.named_parameters() if p.requires_grad}


def _compare_folded(
    tuned: utc.TunedModule,
    folded: nn.Module,
    args: tuple[Any, ...],
    same: tuple[Any, ...],
    label: str,
    outcome: Outcome,
) -> None:
    with torch.no_grad():
        try:
            expected = copy.deepcopy(tuned)(*args)
        except utc.UtcError:
            outcome.guarded += 1
            return
        except Exception:  # the model's own, in a call that it does not take
            outcome.invalid += 1
            return
        found = copy.deepcopy(folded)(*same)
    pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
    difference = next(filter(None, (_apart(a, b, _FOLD, f"output {i}") for i, (a, b) in enumerate(pairs))), None)
    if difference:
        outcome.wrong.append((label, f"folded: {difference}"))
    outcome.equal += difference is None


def _apart(expected: Any, found: Any, tolerance: float, where: str) -> str | None:
    """How two values differ by more than rounding; None where they do not."""
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        return None if expected == found or expected is found else f"{where} is {found!r}, not {expected!r}"
    if expected.shape != found.shape or not expected.is_floating_point():
        return _differs(expected, found, where)
    a, b = expected.detach(), found.detach()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return f"{where} is finite elsewhere"
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    largest = max(a.abs().max().item(), 1e-3) if a.numel() else 1.0  # below, a value has cancelled out
    error = (a - b).abs().max().item() / largest if a.numel() else 0.0
    return f"{where} differs by {error:.1e} of its largest value" if error > tolerance else None

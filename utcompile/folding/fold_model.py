"""`fold`: the tuners of a trained model become part of its frozen weights, each with a proof."""

from __future__ import annotations

import copy
from functools import partial
from typing import TypeVar, overload

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.folding.driver import Driver
from utcompile.folding.fold_parts import fold_parts
from utcompile.folding.folding import Folding, Options
from utcompile.folding.inputs import ProofInputs, Samples
from utcompile.folding.plain import changes_of_names, drop_tuners, state_read, sweep_graph
from utcompile.folding.proof import count_flops
from utcompile.folding.report import FoldedSite, FoldReport
from utcompile.folding.site import is_first
from utcompile.folding.whole import compare, is_proven, is_rounding, refusal
from utcompile.graph import (
    UtcGraphModule,
    affine_batch_norm,
    clear_inplace,
    copy_graph,
    drop_state,
    set_affine_norms,
    set_inplace,
    set_trainable_recurrence,
)
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import cut_ties, owned
from utcompile.rewrite import KEPT, TunedModule, Whole, count_parameters, settle_precision, unwrapped

M = TypeVar("M", bound=nn.Module)


@overload
def fold(
    tuned: UtcGraphModule,
    strict: bool = ...,
    *,
    float32: bool = ...,
    constants: bool = ...,
    batch_norms: bool = ...,
    dequantize: bool = ...,
    check_inputs: Samples = ...,
) -> tuple[UtcGraphModule, FoldReport]: ...
@overload
def fold(
    tuned: M,
    strict: bool = ...,
    *,
    float32: bool = ...,
    constants: bool = ...,
    batch_norms: bool = ...,
    dequantize: bool = ...,
    check_inputs: Samples = ...,
) -> tuple[M, FoldReport]: ...
def fold(
    tuned: nn.Module,
    strict: bool = False,
    *,
    float32: bool = False,
    constants: bool = False,
    batch_norms: bool = False,
    dequantize: bool = False,
    check_inputs: Samples = None,
) -> tuple[nn.Module, FoldReport]:
    """Fold every tuner that algebra allows into the frozen weights.

    Weight tuners and linear tuners of values are absorbed. Bottlenecks parallel to an ffn or an inverted residual widen
    it. Learned tokens become constant keys and values. The rest is kept with its reason (cases: docs/folding.md).
    `utc.register_fold` adds other folds.

    Each fold is computed in float64 and proven on the site with random inputs; the whole model is compared in its own
    dtype, on the example that it was captured with and on inputs drawn like it. `tuned` stays as it was.

    Args:
        tuned: a `TunedModule`, a model with tuned parts, or what DDP, `torch.compile` or an EMA made of it; a
            `CapturedModule` has no tuners and is only copied.
        strict: raise if a tuner is kept.
        float32: in a half-precision model, let a layer whose rounding would keep less than 95 % of a tuner's effect
            compute in float32, between casts; otherwise its tuner is kept.
        constants: also compute once, into buffers, what the base computes from parameters alone in every call.
        batch_norms: also fold the base's BatchNorms into the convolutions and linears before them.
        dequantize: fold a tuner of a quantised weight into a weight of floating-point numbers, which takes its place;
            otherwise such a tuner is kept.
        check_inputs: real samples to compare the whole model on as well: one, or a list of them, each a tensor, a
            tuple (positional) or a dict (keyword).

    Returns:
        A module with the folded weights, in eval, and the report. Of a model with tuned parts (`within=`) it is the
        user's own class, with the user's own modules where nothing was widened or kept.

    Raises:
        UtcError: a tuner is kept and `strict` is set, or the folded model's outputs differ.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 4),), vars={"r": 2})
        >>> folded, report = utc.fold(tuned)
        >>> [s.status for s in report.sites], [n.op for n in folded.graph.nodes if n.name[0] == "_"]
        (['absorbed'], ['call_module', 'call_module', 'call_module'])
        >>> model.load_state_dict(folded.state_dict(), strict=True)
        <All keys matched successfully>
    """
    found = unwrapped(tuned, "fold")
    if isinstance(found, nn.Module) and KEPT in vars(found):
        _refuse_samples(check_inputs)
        fold_one = partial(
            fold, strict=strict, float32=float32, constants=constants, batch_norms=batch_norms, dequantize=dequantize
        )
        return fold_parts(Whole.of(found, "fold"), fold_one)
    tuned = _as_graph(found)
    options = Options(float32, constants, batch_norms, dequantize)
    compared = structural_copy(tuned)  # other threads may be using `tuned`, or have it off
    assert isinstance(compared, UtcGraphModule)
    inputs = ProofInputs(compared, check_inputs)
    folded, sites, base = _fold_sites(tuned, inputs, options)
    cut = cut_ties(folded, tuned.ties)
    owned(folded, _what_trains(tuned))
    report = FoldReport(
        tuple(sites),
        prove_model(inputs.tuned, folded, inputs, options),
        (count_parameters(tuned), count_parameters(folded)),
        tuple(base),
        count_flops(tuned, folded),
        (*changes_of_names(tuned, folded), *cut),
    )
    if strict and report.kept:
        raise UtcError(
            f"{len(report.kept)} of {len(report.sites)} tuners cannot be folded",
            why="; ".join(f"{s.id}: {s.reason}" for s in report.kept[:3]),
            fix="fold without `strict`, or compile with the rule's foldable sibling",
            code="fold/kept",
        )
    return folded, report


def _what_trains(tuned: UtcGraphModule) -> list[torch.Tensor]:
    """What a step of training, or a call in train mode, writes into: no folded model may share it."""
    tuners = tuned._modules.get("tuners")
    found: list[torch.Tensor] = [p for p in tuned.parameters() if p.requires_grad]
    if tuners is not None:
        found += [*tuners.parameters(), *tuners.buffers()]
    if tuned.follows_mode:
        found += tuned.buffers()
    return found


_Folded = tuple[UtcGraphModule, list[FoldedSite], list[FoldedSite]]


def prove_model(tuned: UtcGraphModule, folded: UtcGraphModule, inputs: ProofInputs, options: Options) -> float:
    """The largest relative difference of the outputs, in the model's dtype; both are left as they were.

    Raises:
        UtcError: it is larger than rounding explains; the error then has the result of the same fold in float64.
    """
    found = compare(tuned, folded, inputs)
    if is_proven(found, tuned.dtype):
        return found.error
    in_float64 = None
    if tuned.dtype != torch.float64:
        try:
            double = copy.deepcopy(tuned).double()
            given = ProofInputs(double)
            in_float64 = compare(double, _fold_sites(double, given, options)[0], given)
        except Exception:  # it does not run there, or memory is short: then nothing is known
            in_float64 = None
    if in_float64 is not None and is_rounding(found, in_float64):
        allowed = compare(tuned, folded, inputs, as_rounding=True)
        if is_proven(allowed, tuned.dtype):
            return allowed.error
    raise refusal(found, tuned.dtype, in_float64)


def _refuse_samples(check_inputs: Samples) -> None:
    if check_inputs is not None:
        raise UtcError(
            "check_inputs are samples of one graph, and in this model parts are tuned",
            fix="leave them out: the whole model is compared on the call that it was compiled with",
            code="arguments/value",
        )


def _as_graph(found: object) -> UtcGraphModule:
    if isinstance(found, UtcGraphModule) and any(hasattr(p, "full_tensor") for p in found.parameters()):
        raise UtcError(
            "the model is distributed over processes, and a part of it cannot be folded",
            fix="save it with utc.save_tuners, load that into a model that was compiled in one process, and fold it",
            code="tune/wrapped",
        )
    if not isinstance(found, UtcGraphModule):
        raise UtcError(
            f"fold takes a TunedModule, not {type(found).__name__}",
            fix="compile the model first: utc.compile",
            code="arguments/type",
        )
    return found


def to_fold(tuned: UtcGraphModule, inputs: ProofInputs, options: Options) -> Folding:
    """A copy of a tuned model in which operations are what folds read: out of place, and BatchNorms as such."""
    names: dict[fx.Node, fx.Node] = {}
    graph = copy_graph(tuned.graph, names)
    original = frozenset(n for n, _ in tuned.named_parameters(remove_duplicate=False))
    seen_as = {new: old.name for old, new in names.items()}
    model = Folding(graph, structural_copy(tuned), inputs, options, original, seen_as)
    settle_precision(model.graph, model.root)
    clear_inplace(model.graph, model.root)
    set_affine_norms(model.root, False)
    set_trainable_recurrence(model.root, model.graph, False)
    for node in model.graph.nodes:
        if node.target is affine_batch_norm:
            node.target = F.batch_norm
    return model


def _fold_sites(tuned: UtcGraphModule, inputs: ProofInputs, options: Options) -> _Folded:
    model = to_fold(tuned, inputs, options)
    driver = Driver(model)
    read_before = state_read(model.graph, model.root)
    sites = tuned.sites if isinstance(tuned, TunedModule) else ()
    done: dict[str, FoldedSite] = {}
    waiting = sorted(sites, key=is_first, reverse=True)
    while waiting:
        for site in waiting:
            done[site.id] = driver.fold(site)
        # what was kept because another tuner stood in its way may have none there now
        kept = [s for s in waiting if done[s.id].status == "kept"]
        waiting = [s for s in kept if s.id not in driver.disproved] if len(kept) < len(waiting) else []
    base = list(driver.fold_base())
    model.settle(all=True)
    sweep_graph(model.graph)
    drop_tuners(model.root, [s for s in sites if done[s.id].status != "kept"])
    unread = read_before - state_read(model.graph, model.root)
    drop_state(model.root, sorted(n for n in unread if not n.startswith("tuners.")))
    set_inplace(model.graph, model.root)
    model.graph.lint()
    folded = UtcGraphModule(model.root, model.graph, type(tuned).__name__)
    folded.inherit(tuned)
    folded.requires_grad_(False)
    return folded.eval(), [done[s.id] for s in sites], base

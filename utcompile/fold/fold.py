"""`fold`: the tuners of a trained model become part of its frozen weights, each with a proof."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.fold.absorb import plan_absorption
from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.fold.maps import plan_map
from utcompile.fold.proof import SiteProof, model_inputs, relative_error
from utcompile.fold.report import FoldedSite, FoldReport, Status
from utcompile.fold.widen import plan_widening
from utcompile.graph import (
    UtcGraphModule,
    affine_batch_norm,
    clear_inplace,
    copy_graph,
    set_affine_norms,
    set_inplace,
)
from utcompile.graph.structure import structural_copy
from utcompile.rewrite import TunedModule, TunedSite, site_nodes
from utcompile.tuners import Adapter, ChannelMap, Tuner

# a fold is exact in real arithmetic; float64 leaves 2.2e-16 an operation, sums of some thousand terms less than this
_SITE_TOLERANCE = 1e-9
# of the whole model, in its own dtype: rounding of the folded weights, amplified through the layers
_MODEL_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class _Disproved(Exception):
    def __init__(self, site: str, error: float) -> None:
        super().__init__(site)
        self.site, self.error = site, error


def fold(tuned: UtcGraphModule, strict: bool = False) -> tuple[UtcGraphModule, FoldReport]:
    """Fold every tuner that algebra allows into the frozen weights.

    Weight tuners and linear tuners of values are absorbed; adapters beside an ffn or an inverted residual widen it
    (see `fold/widen.py`); the rest is kept with its reason.

    Each fold is computed in float64 and proven on the site with random inputs; the whole model is compared in its own
    dtype. `tuned` stays as it was.

    Args:
        tuned: a `TunedModule`; a `CapturedModule` has no tuners and is only copied.
        strict: raise if a tuner is kept.

    Returns:
        A module with the folded weights, in eval, and the report.

    Raises:
        UtcError: a tuner is kept and `strict` is set, or the folded model's outputs differ.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 4),), vars={"r": 2})
        >>> folded, report = utc.fold(tuned)
        >>> [s.status for s in report.sites], [n.op for n in folded.graph.nodes]
        (['absorbed'], ['placeholder', 'call_module', 'call_module', 'call_module', 'output'])
    """
    if not isinstance(tuned, UtcGraphModule):
        raise UtcError(
            f"fold takes a TunedModule, not {type(tuned).__name__}", fix="compile the model first: utc.compile"
        )
    disproved: dict[str, str] = {}
    while True:
        try:
            folded, sites = _fold(tuned, disproved)
            break
        except _Disproved as failed:  # start again without this site; nothing of it may remain
            disproved[failed.site] = (
                f"folded, the site differs by {failed.error:.1e}; what stands between is not what it seems"
            )
    parameters = tuple(sum(p.numel() for p in m.parameters()) for m in (tuned, folded))
    report = FoldReport(tuple(sites), _prove_model(tuned, folded), (parameters[0], parameters[1]))
    if strict and report.kept:
        raise UtcError(
            f"{len(report.kept)} of {len(report.sites)} tuners cannot be folded",
            why="; ".join(f"{s.id}: {s.reason}" for s in report.kept[:3]),
            fix="fold without `strict`, or compile with the rule's foldable sibling",
        )
    return folded, report


def _fold(tuned: UtcGraphModule, disproved: dict[str, str]) -> tuple[UtcGraphModule, list[FoldedSite]]:
    work = Work(copy_graph(tuned.graph), structural_copy(tuned))
    clear_inplace(work.graph, work.root)
    set_affine_norms(work.root, False)
    for node in work.graph.nodes:
        if node.target is affine_batch_norm:
            node.target = F.batch_norm
    sites = tuned.sites if isinstance(tuned, TunedModule) else ()
    done: dict[str, FoldedSite] = {}
    # weights first: a widening wants plain layers beside it
    waiting = sorted(sites, key=lambda s: s.form != "weight")
    while waiting:
        for number, site in enumerate(waiting):
            if site.form != "weight" and (number == 0 or waiting[number - 1].form == "weight"):
                work.forget_view(layouts=True)  # reparametrised operations are the original ones again
            done[site.id] = (
                FoldedSite(site.id, "kept", reason=disproved[site.id])
                if site.id in disproved
                else _fold_site(work, site)
            )
        # what was kept because another tuner stood in its way may have none there now
        kept = [s for s in waiting if done[s.id].status == "kept" and s.id not in disproved]
        waiting = kept if len(kept) < len(waiting) else []
    work.settle(all=True)
    _sweep_state(work.graph)
    set_inplace(work.graph, work.root)
    work.graph.lint()
    folded = UtcGraphModule(_without_leftovers(work, done, sites), work.graph, type(tuned).__name__)
    folded.inherit(tuned)
    folded.requires_grad_(False)
    return folded.eval(), [done[s.id] for s in sites]


def _fold_site(work: Work, site: TunedSite) -> FoldedSite:
    """Fold one site and prove it; a reason where it must be kept."""
    tuner = work.root.get_submodule(site.name)
    assert isinstance(tuner, Tuner)
    nodes = site_nodes(work.graph, site.id)
    linear = tuner.channel_map() if site.form in ("parallel", "sequential") else None
    widens = site.form == "parallel" and (linear is not None or isinstance(tuner, Adapter))
    if site.form != "weight" and linear is None and not widens:
        return FoldedSite(site.id, "kept", reason=f"no exact fold is known for a {site.form} {site.tuner}")
    status: Status = "absorbed"
    try:
        if site.form == "weight":
            planned = plan_absorption(work, site, nodes)
        else:
            planned, status = _of_values(work, site, nodes, linear)
    except Unfoldable as reason:
        return FoldedSite(site.id, "kept", reason=str(reason))
    proof = SiteProof(work, planned.sources, planned.outputs)
    results = planned.commit()
    if site.form != "weight":  # a weight leaves the values between as they are
        work.forget_view()
    error = proof.error(results)
    if error > _SITE_TOLERANCE:
        raise _Disproved(site.id, error)
    work.settle()
    return FoldedSite(site.id, status, error, retained=planned.retained)


def _of_values(
    work: Work, site: TunedSite, nodes: dict[str, list[fx.Node]], linear: ChannelMap | None
) -> tuple[Planned, Status]:
    """A tuner of values: absorbed where it is linear and a layer takes it, else widened."""
    if linear is None:
        return plan_widening(work, site, nodes), "widened"
    try:
        return plan_map(work, nodes, linear), "absorbed"
    except Unfoldable as alone:
        if site.form != "parallel":
            raise
        try:
            return plan_widening(work, site, nodes), "widened"
        except Unfoldable as beside:
            raise Unfoldable(f"{alone}; {beside}") from None


def _sweep_state(graph: fx.Graph) -> None:
    """Parameters that only folded nodes read."""
    for node in reversed(list(graph.nodes)):
        if node.meta.get("state") and not node.users:
            graph.erase_node(node)


def _without_leftovers(work: Work, done: dict[str, FoldedSite], sites: tuple[TunedSite, ...]) -> nn.Module:
    """Take out the tuners that were folded and the copies of what `train:` replaced."""
    tuners = work.root._modules.get("tuners")
    for site in sites:
        if done[site.id].status != "kept" and tuners is not None:
            del tuners._modules[site.name.rpartition(".")[2]]
    work.root._modules.pop("base_values", None)
    return work.root


def _prove_model(tuned: UtcGraphModule, folded: UtcGraphModule) -> float:
    """The largest relative difference of the outputs, in the model's dtype.

    Raises:
        UtcError: it is larger than rounding explains.
    """
    parameter = next(tuned.parameters(), torch.empty(0))
    inputs = model_inputs(tuned, parameter.device)
    mode = tuned.training
    tuned.eval()
    with torch.no_grad():
        expected, found = (
            [t for t in pytree.tree_leaves(m(**inputs)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            for m in (tuned, folded)
        )
    tuned.train(mode)
    error = max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if error > _MODEL_TOLERANCE.get(parameter.dtype, 1e-3):
        raise UtcError(
            f"the folded model's outputs differ by {error:.1e} of their largest value",
            why="every site was proven, so this is rounding that the model amplifies",
            fix="fold in float64: utc.fold(tuned.double())",
        )
    return error

"""`Plan` × graph -> `TunedModule`.

How each form of insertion enters the graph is one file in `rewrite/forms`.

Parallel tuners on one value add up; sequential ones compose in file order. What a tuner reads is the value as all the
others have changed it, as every other reader sees it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import (
    affine_batch_norm,
    copy_graph,
    descendants,
    info,
    is_state,
    set_affine_norms,
    set_inplace,
    set_parameter,
    set_trainable_recurrence,
)
from utcompile.graph.statistics import own_statistics
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import clones
from utcompile.matching import PlanData, Site, TunerDtype, WeightPlace, require_sites
from utcompile.rewrite.checkpoint import read_tensors
from utcompile.rewrite.devices import device_at
from utcompile.rewrite.forms import Inserted, Writer, insert
from utcompile.rewrite.masters import raise_precision
from utcompile.rewrite.order import sort_graph
from utcompile.rewrite.originals import NAME, Originals
from utcompile.rewrite.reach import check_reach
from utcompile.rewrite.tasks import Tasks
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite, tuned_of
from utcompile.rewrite.weights import frozen_parameters
from utcompile.rewrite.whole import tensors_of
from utcompile.tuners import HALVES, Tuner


def apply_plan(plan: PlanData) -> TunedModule:
    """Insert the tuners of a plan into a copy of its captured model, which shares the captured memory.

    Requires: the rules found a place, or something is trained itself; the captured graph is as it was matched.
    Ensures: the captured model is as it was; every tuner reaches an output that a gradient comes back from.

    Raises:
        UtcError: one of these does not hold.
    """
    require_sites(plan)
    _require_nodes(plan)
    root = structural_copy(plan.module)
    root.requires_grad_(False)
    if plan.module.follows_mode:
        own_statistics(root, plan.module.graph)
    _clone_trained(root, plan.trained, plan.untied, plan.module.graph)
    mapping: dict[fx.Node, fx.Node] = {}
    graph = copy_graph(plan.module.graph, mapping)
    _settle_earlier(graph)
    writer, shared = Writer(root=root, graph=graph, view=plan.view, mapping=mapping), dict[Hashable, nn.Module]()
    sites = tuple(_insert(writer, site, shared, plan.tuner_dtype) for site in plan.sites)
    if plan.tuner_dtype == "float32":
        raise_precision(graph, root, {name: f"{NAME}.{i}" for i, name in enumerate(plan.trained)})
    _finish(writer, plan.module.follows_mode)
    check_reach(graph, root, sites)
    tuned = TunedModule(root, graph, type(plan.module).__name__)
    tuned.inherit(plan.module)
    tuned.sites, tuned.trained, tuned.ruleset = sites, plan.trained, plan.ruleset
    tuned.base_graph, tuned.tasks = copy_graph(plan.module.graph), Tasks(tensors_of, read_tensors)
    _settle_earlier(tuned.base_graph)
    return tuned.train()


def _require_nodes(plan: PlanData) -> None:
    """Raise where the graph has lost a node that a site names."""
    nodes = set(plan.module.graph.nodes)
    for site in plan.sites:
        for node in (site.source, *site.targets):
            if node not in nodes:
                raise UtcError(
                    f"the captured graph has changed since the plan was made: site {site.id} is at {node.name}, "
                    "which is not in it any more",
                    fix="match the rules again: utc.match(captured, rules)",
                    code="tune/not-tunable",
                )


def _settle_earlier(graph: fx.Graph) -> None:
    """Tuners that an earlier fold kept are operations of the base as any other."""
    for node in graph.nodes:
        known = info(node)
        del known.site, known.role, known.replaces, known.instead_of


def _clone_trained(root: nn.Module, names: tuple[str, ...], untied: tuple[str, ...], base: fx.Graph) -> None:
    if not names:
        return
    parameters = {name: root.get_parameter(name) for name in names}
    originals = Originals(names, parameters)
    originals.add_twins(base, root)
    for name, clone in clones(parameters, untied).items():
        set_parameter(root, name, clone)
    root.add_module(NAME, originals)


def _insert(writer: Writer, site: Site, shared: dict[Hashable, nn.Module], tuner_dtype: TunerDtype) -> TunedSite:
    """Build a site's tuner and add its nodes."""
    tuner = _build(site, writer.root, shared, tuner_dtype)
    name = _add_module(writer.root, site.id, tuner)
    insert(writer, Inserted(site, name, tuner), site.place)
    return TunedSite(
        id=site.id,
        rule=site.rule,
        path=site.path,
        tuner=site.tuner,
        name=name,
        config=site.config,
        place=tuned_of(site.place),
    )


def _add_module(root: nn.Module, site_id: str, tuner: Tuner) -> str:
    name = re.sub(r"[^0-9A-Za-z_]", "_", site_id)
    if "tuners" not in root._modules:  # else an earlier fold has kept some
        root.add_module("tuners", nn.Module())
    tuners = root.get_submodule("tuners")
    while hasattr(tuners, name):  # `a.b` and `a_b` read alike
        name += "_"
    tuners.add_module(name, tuner)
    return f"tuners.{name}"


def _finish(writer: Writer, follows_mode: bool) -> None:
    """Every reader of a changed value reads what it has become."""
    for target, value in writer.current.items():
        for reader in list(target.users):
            if (reader, target) not in writer.running and not info(reader).check:
                reader.replace_input_with(target, value)
        if target.op == "get_attr":  # what is computed from a tuned parameter is no parameter any more
            _forget_state(value)
    for node in reversed(list(writer.graph.nodes)):
        if is_state(node) and not node.users:
            writer.graph.erase_node(node)
    sort_graph(writer.graph)
    if not follows_mode:
        set_affine_norms(writer.root, True)
        set_trainable_recurrence(writer.root, writer.graph, True)
        for node in writer.graph.nodes:
            if node.target is F.batch_norm:
                node.target = affine_batch_norm
    set_inplace(writer.graph, writer.root)
    writer.graph.lint()


def _forget_state(node: fx.Node) -> None:
    for user in [*descendants(node.users, until=lambda n: not info(n).state)]:
        info(user).state = None


def _build(site: Site, root: nn.Module, shared: dict[Hashable, nn.Module], tuner_dtype: TunerDtype) -> Tuner:
    tuner = site.build(shared)
    value = site.build_from.target.value
    dtype = value.dtype if value.dtype.is_floating_point else torch.get_default_dtype()
    if dtype in HALVES and tuner_dtype == "float32":
        dtype = torch.float32
    tuner.to(device=device_at(site.targets[0], root) or value.device, dtype=dtype)
    if isinstance(site.place, WeightPlace):
        frozen = frozen_parameters(site.place, root)
        if kind := next((p.dtype for p in frozen if p is not None and p.is_complex()), None):
            _make_complex(tuner, kind)
        own = [p.to(dtype) if p is not None and p.dtype in HALVES else p for p in frozen]
        tuner.start(*own)
    return tuner


def _make_complex(tuner: nn.Module, dtype: torch.dtype) -> None:
    """Complex factors for a complex weight: real ones would leave the imaginary half of it as it is."""
    for module in tuner.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)

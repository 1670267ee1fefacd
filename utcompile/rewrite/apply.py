"""`Plan` × graph -> `TunedModule`.

1. `parallel: x -> y`: `y' = y + T(x)` for all readers of y.
2. `sequential: v`: `v' = T(v)` for all readers of v, or (`for: op`) for one.
3. `weight: h`: see `rewrite/weights.py`.
4. `tokens: [k, v]`: see `rewrite/tokens.py`.
5. `chain: v -> z`: `s_l = T_l(detach(v_l), s_{l-1})`; z becomes the last state, or z plus it.

Parallel tuners on one value add up; sequential ones compose in file order. What a tuner reads is the value as all the
others have changed it, as every other reader sees it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.graph import (
    GraphView,
    Role,
    affine_batch_norm,
    copy_graph,
    info,
    inserted,
    is_state,
    origin_of,
    set_affine_norms,
    set_inplace,
    set_parameter,
    set_trainable_recurrence,
    tensor,
)
from utcompile.graph.statistics import own_statistics
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import clones
from utcompile.match import Plan, Site, Stage, TunerDtype, require_sites
from utcompile.rewrite.devices import device_at
from utcompile.rewrite.masters import raise_precision
from utcompile.rewrite.order import sort_graph
from utcompile.rewrite.originals import NAME, Originals
from utcompile.rewrite.reach import check_reach
from utcompile.rewrite.tasks import Tasks
from utcompile.rewrite.tokens import TokensWriter
from utcompile.rewrite.tuned import TunedModule, TunedSite
from utcompile.rewrite.weights import frozen_parameters, reparametrise
from utcompile.tuners import HALVES, Tuner


def apply_plan(plan: Plan) -> TunedModule:
    """Insert the tuners of a plan into a copy of its captured model, which shares the captured memory.

    Raises:
        UtcError: its rules found no place, or a tuner would be bypassed.
    """
    require_sites(plan)
    root = structural_copy(plan.module)
    root.requires_grad_(False)
    if plan.module.follows_mode:
        own_statistics(root, plan.module.graph)
    _clone_trained(root, plan.trained, plan.untied, plan.module.graph)
    mapping: dict[fx.Node, fx.Node] = {}
    graph = copy_graph(plan.module.graph, mapping)
    _settle_earlier(graph)
    work = _Rewriter(root, graph, plan.view, mapping, plan.module.follows_mode, plan.tuner_dtype)
    sites = tuple(work.insert(site) for site in plan.sites)
    if plan.tuner_dtype == "float32":
        raise_precision(graph, root, {name: f"{NAME}.{i}" for i, name in enumerate(plan.trained)})
    work.finish()
    check_reach(graph, root, sites)
    tuned = TunedModule(root, graph, type(plan.module).__name__)
    tuned.inherit(plan.module)
    tuned.sites, tuned.trained, tuned.ruleset = sites, plan.trained, plan.ruleset
    tuned.base_graph, tuned.tasks = copy_graph(plan.module.graph), Tasks()
    _settle_earlier(tuned.base_graph)
    return tuned.train()


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


class _Rewriter:
    """Inserts sites one by one, then lets every reader see the changed values."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        view: GraphView,
        mapping: dict[fx.Node, fx.Node],
        follows_mode: bool,
        tuner_dtype: TunerDtype,
    ) -> None:
        self.root, self.graph, self.view, self.mapping = root, graph, view, mapping
        self.follows_mode, self.tuner_dtype = follows_mode, tuner_dtype
        self.current: dict[fx.Node, fx.Node] = {}  # a recorded node -> its value as changed so far
        self.running: set[tuple[fx.Node, fx.Node]] = set()  # (reader, value): links of a chain, which stay
        self.states: dict[str, fx.Node] = {}  # a stage of a side network -> what it yields
        self.shared: dict[Hashable, nn.Module] = {}  # what tuners have in common

    def insert(self, site: Site) -> TunedSite:
        """Build a site's tuner and add its nodes."""
        tuner = _build(site, self.root, self.shared, self.tuner_dtype)
        name = self._add_module(site, tuner)
        source = self.mapping[site.source]
        targets = [self.mapping[t] for t in site.targets]
        if site.form == "weight" and tuner.how == "reparametrised":
            reparametrise(self.graph, self.root, site, name, targets)
            targets = []
        for target in targets:
            if site.form == "tokens":
                self._tokens(site, name)
            elif site.form == "chain":
                self._stage(site, name, target)
            elif site.form == "sequential" and site.reader is not None:
                self._for_reader(site, name, target, self.mapping[site.reader])
            elif site.form == "sequential":
                self._link(target, self._node(site, Role.TUNER, target, name, (self._value(target),)))
            elif site.form == "weight":
                self._branch(site, name, target)
            else:
                added = self._node(site, Role.TUNER, target, name, (source,))
                self._link(
                    target, self._node(site, Role.SUM, target, operator.add, (self._value(target), added), after=added)
                )
        how = tuner.how if site.form == "weight" else None
        return TunedSite(site.id, site.rule, site.path, site.form, site.tuner, name, site.config, how, dict(site.tunes))

    def _tokens(self, site: Site, name: str) -> None:
        writer = TokensWriter(self.graph, self.mapping, site, name, self._tuner(name))
        added = writer.write()
        if added is not None:  # attention is spelled out
            node = writer.node
            self._link(node, self._node(site, Role.SUM, node, operator.add, (self._value(node), added), after=added))

    def _stage(self, site: Site, name: str, target: fx.Node) -> None:
        """A stage of a side network: no gradient leaves it for the backbone."""
        place: Stage = site.place
        source = self.mapping[site.source]
        is_end = place.end is not None and source is target
        value = self._value(source) if is_end else source
        reads = [self._node(site, Role.DETACH, source, torch.detach, (value,))]
        if is_end:
            self.running.add((reads[0], value))
        if place.start is not None:
            start = self.mapping[place.start]
            reads.append(self._node(site, Role.DETACH, start, torch.detach, (start,)))
        elif place.before is not None:
            reads.append(self.states[place.before])
        state = self.states[site.id] = self._node(site, Role.TUNER, source, name, tuple(reads), after=reads[-1])
        if (port := self._tuner(name).state) is not None:
            info(state).value = port.value
        if place.end is None:
            return
        if not self._tuner(name).joins:
            info(state).replaces = self._value(target).name
            self.current[target] = state
            return
        self._link(target, self._node(site, Role.SUM, target, operator.add, (self._value(target), state), after=state))

    def _tuner(self, name: str) -> Tuner:
        tuner = self.root.get_submodule(name)
        assert isinstance(tuner, Tuner)
        return tuner

    def _branch(self, site: Site, name: str, target: fx.Node) -> None:
        """Add to the operation's own result; tuners that earlier rules placed on it read the sum."""
        recorded = next(t for t in site.targets if self.mapping[t] is target)
        source = self.mapping[self.view.operations[recorded].inputs[0]]
        node = self._node(site, Role.BRANCH, target, name, (source, target), after=target)
        for reader, value in [link for link in self.running if link[1] is target]:
            reader.replace_input_with(target, node)
            self.running.remove((reader, value))
            self.running.add((reader, node))
        self.running.add((node, target))
        self.current.setdefault(target, node)

    def _value(self, target: fx.Node) -> fx.Node:
        return self.current.get(target, target)

    def _link(self, target: fx.Node, node: fx.Node) -> None:
        self.running.add((node, self._value(target)))
        self.current[target] = node

    def _for_reader(self, site: Site, name: str, target: fx.Node, reader: fx.Node) -> None:
        given = next((n for n in reader.all_input_nodes if n is target or info(n).instead_of == target.name), target)
        node = self._node(site, Role.TUNER, target, name, (given,))
        info(node).instead_of = target.name
        reader.replace_input_with(given, node)

    def _node(
        self, site: Site, role: Role, target: fx.Node, what: Any, args: tuple[Any, ...], after: fx.Node | None = None
    ) -> fx.Node:
        with self.graph.inserting_after(self._after_inputs(after or self._value(target))):
            if isinstance(what, str):
                node = self.graph.call_module(what, args)
            else:
                node = self.graph.call_function(what, args)
        node._rename(f"{re.sub(r'[^0-9A-Za-z_]', '_', site.id)}_{role}")
        origin = origin_of(target)  # an input of the model has none
        inserted(node, origin, value=tensor(target), role=role, site=site.id)
        return node

    def _after_inputs(self, node: fx.Node) -> fx.Node:
        """A node itself; of the inputs of the model the last, since nothing is computed before it."""
        if node.op != "placeholder":
            return node
        return next(n for n in reversed(self.graph.nodes) if n.op == "placeholder")

    def _add_module(self, site: Site, tuner: Tuner) -> str:
        name = re.sub(r"[^0-9A-Za-z_]", "_", site.id)
        if "tuners" not in self.root._modules:  # else an earlier fold has kept some
            self.root.add_module("tuners", nn.Module())
        tuners = self.root.get_submodule("tuners")
        while hasattr(tuners, name):  # `a.b` and `a_b` read alike
            name += "_"
        tuners.add_module(name, tuner)
        return f"tuners.{name}"

    def finish(self) -> None:
        """Every reader of a changed value reads what it has become."""
        for target, value in self.current.items():
            for reader in list(target.users):
                if (reader, target) not in self.running and not info(reader).check:
                    reader.replace_input_with(target, value)
            if target.op == "get_attr":  # what is computed from a tuned parameter is no parameter any more
                _forget_state(value)
        for node in reversed(list(self.graph.nodes)):
            if is_state(node) and not node.users:
                self.graph.erase_node(node)
        sort_graph(self.graph)
        if not self.follows_mode:
            set_affine_norms(self.root, True)
            set_trainable_recurrence(self.root, self.graph, True)
            for node in self.graph.nodes:
                if node.target is F.batch_norm:
                    node.target = affine_batch_norm
        set_inplace(self.graph, self.root)
        self.graph.lint()


def _forget_state(node: fx.Node) -> None:
    stack = list(node.users)
    while stack:
        user = stack.pop()
        known, info(user).state = info(user).state, None
        if known:
            stack += user.users


def _build(
    site: Site, root: nn.Module, shared: dict[Hashable, nn.Module], tuner_dtype: TunerDtype = "float32"
) -> Tuner:
    tuner = site.build(shared)
    value = site.build_from.target.value
    dtype = value.dtype if value.dtype.is_floating_point else torch.get_default_dtype()
    if dtype in HALVES and tuner_dtype == "float32":
        dtype = torch.float32
    tuner.to(device=device_at(site.targets[0], root) or value.device, dtype=dtype)
    if site.form == "weight":
        frozen = frozen_parameters(site, root)
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

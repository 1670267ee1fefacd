"""`Plan` × graph -> `TunedModule`.

1. `parallel: x -> y`: `y' = y + T(x)` for all readers of y.
2. `sequential: v`: `v' = T(v)` for all readers of v, or (`for: op`) for one.
3. `weight: h`, as a branch: `h' = h + T(x)`, where x is what the operation reads.
4. `weight: h`, reparametrised: `h' = OP(x; T(W))`.
5. `tokens: [k, v]`: see `rewrite/tokens.py`.
6. `chain: v -> z`: `s_l = T_l(detach(v_l), s_{l-1})`; z becomes the last state, or z plus it.

Parallel tuners on one value add up; sequential ones compose in file order. What a tuner reads is the value as all the
others have changed it, as every other reader sees it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import GraphView, copy_graph, set_inplace, tensor
from utcompile.graph.structure import structural_copy
from utcompile.match import Plan, Site, Stage
from utcompile.rewrite.order import sort_graph
from utcompile.rewrite.reach import check_reach
from utcompile.rewrite.tokens import TokensWriter
from utcompile.rewrite.tuned import TunedModule, TunedSite
from utcompile.tuners import Tuner


def apply_plan(plan: Plan) -> TunedModule:
    """Insert the tuners of a plan into a copy of its captured model, which shares the captured memory."""
    root = structural_copy(plan.module)
    root.requires_grad_(False)
    _clone_trained(root, plan.trained)
    mapping: dict[fx.Node, fx.Node] = {}
    graph = copy_graph(plan.module.graph, mapping)
    work = _Rewriter(root, graph, plan.view, mapping)
    sites = tuple(work.insert(site) for site in plan.sites)
    work.finish()
    check_reach(graph, sites)
    tuned = TunedModule(root, graph, type(plan.module).__name__)
    tuned.inherit(plan.module)
    tuned.sites, tuned.trained, tuned.ruleset = sites, plan.trained, plan.ruleset
    tuned.base_graph = copy_graph(plan.module.graph)
    return tuned.train()


def _clone_trained(root: nn.Module, names: tuple[str, ...]) -> None:
    if not names:
        return
    store = nn.Module()
    root.add_module("base_values", store)
    for i, name in enumerate(names):
        path, _, attribute = name.rpartition(".")
        owner = root.get_submodule(path)
        parameter = owner._parameters[attribute]
        assert parameter is not None
        store.register_buffer(str(i), parameter.detach(), persistent=False)
        owner._parameters[attribute] = nn.Parameter(parameter.detach().clone(), requires_grad=True)


class _Rewriter:
    """Inserts sites one by one, then lets every reader see the changed values."""

    def __init__(self, root: nn.Module, graph: fx.Graph, view: GraphView, mapping: dict[fx.Node, fx.Node]) -> None:
        self.root, self.graph, self.view, self.mapping = root, graph, view, mapping
        self.current: dict[fx.Node, fx.Node] = {}  # a recorded node -> its value as changed so far
        self.running: set[tuple[fx.Node, fx.Node]] = set()  # (reader, value): links of a chain, which stay
        self.states: dict[str, fx.Node] = {}  # a stage of a side network -> what it yields
        root.add_module("tuners", nn.Module())

    def insert(self, site: Site) -> TunedSite:
        """Build a site's tuner and add its nodes."""
        name = self._add_module(site, _build(site, self.root))
        source = self.mapping[site.source]
        for target in (self.mapping[t] for t in site.targets):
            tuner = self.root.get_submodule(name)
            if site.form == "tokens":
                self._tokens(site, name)
            elif site.form == "chain":
                self._stage(site, name, target)
            elif site.form == "sequential" and site.reader is not None:
                self._for_reader(site, name, target, self.mapping[site.reader])
            elif site.form == "sequential":
                self._link(target, self._node(site, "tuner", target, name, (self._value(target),)))
            elif site.form == "weight" and getattr(tuner, "branch", None) is None:
                self._reparametrise(site, name, target)
            else:
                read = source if site.form == "parallel" else self._input_of(site, target)
                added = self._node(site, "tuner", target, name, (read,))
                self._link(
                    target, self._node(site, "sum", target, operator.add, (self._value(target), added), after=added)
                )
        return TunedSite(site.id, site.rule, site.path, site.form, site.tuner, name, site.config)

    def _tokens(self, site: Site, name: str) -> None:
        writer = TokensWriter(self.graph, self.mapping, site, name, self._tuner(name))
        added = writer.write()
        if added is not None:  # attention is spelled out
            node = writer.node
            self._link(node, self._node(site, "sum", node, operator.add, (self._value(node), added), after=added))

    def _stage(self, site: Site, name: str, target: fx.Node) -> None:
        """A stage of a side network: no gradient leaves it for the backbone."""
        place: Stage = site.place
        source = self.mapping[site.source]
        is_end = place.end is not None and source is target
        value = self._value(source) if is_end else source
        reads = [self._node(site, "detach", source, torch.detach, (value,))]
        if is_end:
            self.running.add((reads[0], value))
        if place.start is not None:
            start = self.mapping[place.start]
            reads.append(self._node(site, "detach", start, torch.detach, (start,)))
        elif place.before is not None:
            reads.append(self.states[place.before])
        state = self.states[site.id] = self._node(site, "tuner", source, name, tuple(reads), after=reads[-1])
        if (port := self._tuner(name).state) is not None:
            state.meta["value"] = port.value
        if place.end is None:
            return
        if not self._tuner(name).joins:
            state.meta["replaces"] = self._value(target).name
            self.current[target] = state
            return
        self._link(target, self._node(site, "sum", target, operator.add, (self._value(target), state), after=state))

    def _tuner(self, name: str) -> Tuner:
        tuner = self.root.get_submodule(name)
        assert isinstance(tuner, Tuner)
        return tuner

    def _input_of(self, site: Site, target: fx.Node) -> fx.Node:
        recorded = next(t for t in site.targets if self.mapping[t] is target)
        return self.mapping[self.view.operations[recorded].inputs[0]]

    def _value(self, target: fx.Node) -> fx.Node:
        return self.current.get(target, target)

    def _link(self, target: fx.Node, node: fx.Node) -> None:
        self.running.add((node, self._value(target)))
        self.current[target] = node

    def _for_reader(self, site: Site, name: str, target: fx.Node, reader: fx.Node) -> None:
        given = next(
            (n for n in reader.all_input_nodes if n is target or n.meta.get("instead_of") == target.name), target
        )
        node = self._node(site, "tuner", target, name, (given,))
        node.meta["instead_of"] = target.name
        reader.replace_input_with(given, node)

    def _reparametrise(self, site: Site, name: str, target: fx.Node) -> None:
        """Replace a convolution's module call by the function, and its weight by the tuner's result."""
        if self._value(target) is not target:
            raise UtcError(
                f"site {site.id} tunes the weight of an operation whose result another rule changed before",
                fix="put the rule that tunes the weight first in the file",
            )
        recorded = next(t for t in site.targets if self.mapping[t] is target)
        op = self.view.operations[recorded]
        with self.graph.inserting_before(target):
            weight, bias = (
                self.graph.get_attr(op.parameters[k]) if op.parameters.get(k) else None for k in ("weight", "bias")
            )
            tuned = self.graph.call_module(name, (weight,))
            source = self.mapping[op.inputs[0]]
            function, arguments = _functional(op.name, op.attributes, self.graph, source)
            node = self.graph.call_function(function, (arguments.pop("input"), tuned, bias), arguments)
        for made, role in ((tuned, "tuner"), (node, "operation")):
            made.meta.update(site=site.id, role=role, origin=target.meta["origin"])
        node.meta["value"] = tensor(target)
        node.meta["module_call"] = target.target if target.op == "call_module" else None
        for read in (weight, bias):
            if read is not None:
                read.meta.update(origin=target.meta["origin"], state=True)
        target.replace_all_uses_with(node)
        self.graph.erase_node(target)
        self.mapping[recorded] = node

    def _node(
        self, site: Site, role: str, target: fx.Node, what: Any, args: tuple[Any, ...], after: fx.Node | None = None
    ) -> fx.Node:
        with self.graph.inserting_after(after or self._value(target)):
            if isinstance(what, str):
                node = self.graph.call_module(what, args)
            else:
                node = self.graph.call_function(what, args)
        node._rename(f"{re.sub(r'[^0-9A-Za-z_]', '_', site.id)}_{role}")
        node.meta.update(site=site.id, role=role, origin=target.meta["origin"], value=tensor(target), state=False)
        return node

    def _add_module(self, site: Site, tuner: Tuner) -> str:
        name = re.sub(r"[^0-9A-Za-z_]", "_", site.id)
        tuners = self.root.get_submodule("tuners")
        while hasattr(tuners, name):  # `a.b` and `a_b` read alike
            name += "_"
        tuners.add_module(name, tuner)
        return f"tuners.{name}"

    def finish(self) -> None:
        """Every reader of a changed value reads what it has become."""
        for target, value in self.current.items():
            for reader in list(target.users):
                if (reader, target) not in self.running:
                    reader.replace_input_with(target, value)
            if target.op == "get_attr":  # what is computed from a tuned parameter is no parameter any more
                _forget_state(value)
        sort_graph(self.graph)
        set_inplace(self.graph, self.root)
        self.graph.lint()


def _forget_state(node: fx.Node) -> None:
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if user.meta.pop("state", False):
            stack += user.users


def _build(site: Site, root: nn.Module) -> Tuner:
    tuner = site.build()
    value = site.build_from.target.value
    dtype = value.dtype if value.dtype.is_floating_point else torch.get_default_dtype()
    reference = next(root.parameters(), None)
    return tuner.to(device=reference.device if reference is not None else value.device, dtype=dtype)


_FUNCTIONS = {"linear": F.linear, "conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}


def _functional(
    name: str, attributes: Mapping[str, Any], graph: fx.Graph, source: fx.Node
) -> tuple[Any, dict[str, Any]]:
    """A convolution as a function call; padding modes other than zeros become an `F.pad` before it."""
    if name == "linear":
        return F.linear, {"input": source}
    arguments = {k: attributes[k] for k in ("stride", "padding", "dilation", "groups")}
    if attributes.get("padding_mode", "zeros") != "zeros":
        padding = arguments["padding"]
        edges = [e for p in reversed(padding) for e in (p, p)]
        source = graph.call_function(F.pad, (source, edges), {"mode": attributes["padding_mode"]})
        source.meta["role"] = "padding"
        arguments["padding"] = 0
    return _FUNCTIONS[name], {"input": source, **arguments}

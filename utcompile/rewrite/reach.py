"""Every tuner must reach an output of the model, and a gradient must come back: read off the graph, nothing is run.

A tuner that is computed and never seen trains without an error and changes nothing. So a site is refused where

1. no path leads from its tuner to an output; the message names where the path ends and what is in its place;
2. every path to an output passes a `detach`, a `no_grad` region, or a value that is no floating-point number.

Where every way passes a frozen weight that is zero throughout (a LayerScale or the last norm of a branch, in a model
that was never trained), the gradient is zero in every step. That is a property of the weights and no mistake of the
rules, so it is logged as a warning that names the sites.

What happens inside a tuner's module is for `learn.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import Role, describe, info, operation, value_of
from utcompile.rewrite.tuned_site import TunedSite

logger = logging.getLogger(__name__)
# operation -> roles in which a parameter that is zero throughout makes the gradient of what is read zero
_LAYERS = (
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm layer_norm group_norm "
    "instance_norm rms_norm"
)
_FACTORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_LAYERS.split(), ("weight",)),
    **dict.fromkeys(("mul", "matmul"), ("input", "other")),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


def check_reach(graph: fx.Graph, root: nn.Module, sites: Sequence[TunedSite]) -> None:
    """Raise for the first site whose parameters no gradient can reach; warn of those where it is zero."""
    outputs = [graph.output_node()]
    blocked = _blocked(graph)
    sources = _sources(graph)
    trained = _above(outputs, blocked, sources)
    reads = _reads(graph, {s.name for s in sites})
    for site in sites:
        mine = reads[site.name]
        if trained.isdisjoint(mine):
            raise _refused(site, mine, _above(outputs, {}, sources), blocked, sources)
    zeros = _zeros(graph, root)
    passed = _above(outputs, {**blocked, **zeros}, sources) if zeros else trained
    mute = [s.id for s in sites if passed.isdisjoint(reads[s.name])]
    if mute:
        logger.warning(
            "%d of %d sites get no gradient (%s): %s. Load trained weights, or exclude the places in `where:`",
            len(mute), len(sites), ", ".join(mute[:3]) + (" …" if len(mute) > 3 else ""), next(iter(zeros.values())),
        )  # fmt: skip


def _reads(graph: fx.Graph, names: set[str]) -> dict[str, list[fx.Node]]:
    """The nodes that call each tuner's module, or read its parameters; `tuners.NAME` is the module of a site."""
    found: dict[str, list[fx.Node]] = {name: [] for name in names}
    for node in graph.nodes:
        name = ".".join(str(node.target).split(".")[:2])
        if node.op in ("call_module", "get_attr") and name in names:
            found[name].append(node)
    return found


def _sources(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What each node reads: its inputs, and what was written into their memory before (`x[mask] = y`, `copy_`)."""
    writers: dict[int, list[fx.Node]] = {}
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        read = (value_of(n) for n in node.all_input_nodes)
        written = [w for v in read if v is not None for w in writers.get(v.storage, ())]
        found[node] = [*node.all_input_nodes, *written]
        for value in map(value_of, info(node).mutates):
            if value is not None:
                writers.setdefault(value.storage, []).append(node)
    return found


def _above(
    ends: Iterable[fx.Node], blocked: Mapping[fx.Node, str], sources: Mapping[fx.Node, Sequence[fx.Node]]
) -> set[fx.Node]:
    """The nodes that lead to `ends` by a way that none of `blocked` closes."""
    found, stack = set(ends), list(ends)
    while stack:
        for source in sources[stack.pop()]:
            if source not in found and source not in blocked:
                found.add(source)
                stack.append(source)
    return found


def _blocked(graph: fx.Graph) -> dict[fx.Node, str]:
    """The nodes through which no gradient passes, and why."""
    found: dict[fx.Node, str] = {}
    enabled, before = True, dict[fx.Node, bool]()
    for node in graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if name == "set_grad_enabled" and info(node).region:
            given = node.args[0]
            before[node] = enabled
            enabled = before[given] if isinstance(given, fx.Node) else bool(given)
            continue
        value = value_of(node)
        if name == "detach":
            found[node] = "it detaches what it reads"
        elif not enabled:
            found[node] = "it is in a no_grad region"
        elif value is not None and not (value.dtype.is_floating_point or value.dtype.is_complex):
            found[node] = f"it yields {str(value.dtype).removeprefix('torch.')}"
    return found


def _zeros(graph: fx.Graph, root: nn.Module) -> dict[fx.Node, str]:
    """The operations that multiply what they read by a frozen parameter that is zero throughout."""
    named = dict(root.named_parameters(remove_duplicate=False))
    zero = {n for n, p in named.items() if not p.requires_grad and not n.startswith("tuners.") and _is_zero(p)}
    found = {}
    for node in graph.nodes if zero else ():
        if info(node).role in (Role.TUNER, Role.OPERATION, Role.BRANCH):  # its parameters are tuned
            continue
        read = {f"{node.target}.weight"} if node.op == "call_module" else {str(n.target) for n in node.all_input_nodes}
        if read.isdisjoint(zero):
            continue
        op = operation(node, root)
        name = next((n for r in _FACTORS.get(op.name, ()) if (n := op.parameters.get(r)) in zero), None)
        if name is not None:
            found[node] = f"{name} is frozen and zero throughout"
    return found


def _is_zero(parameter: torch.Tensor) -> bool:
    is_plain = type(parameter) in (torch.Tensor, nn.Parameter)  # a quantiser's class need not index
    if not is_plain or parameter.is_meta or not parameter.numel() or not parameter.is_floating_point():
        return False
    return not parameter[(0,) * parameter.dim()] and not parameter.any()  # the first number tells nearly always


def _refused(
    site: TunedSite,
    tuners: list[fx.Node],
    alive: set[fx.Node],
    blocked: Mapping[fx.Node, str],
    sources: Mapping[fx.Node, Sequence[fx.Node]],
) -> UtcError:
    fix = "exclude the place in `where:`, or remove the rule that bypasses it"
    below = _below(tuners, sources)
    if alive.isdisjoint(tuners):
        end = max(below, key=list(sources).index)
        instead = next((info(n).site for n in sources if info(n).replaces == end.name), None)
        why = f"its way ends at {describe(end)}, which nothing reads"
        if instead is not None:
            why = f"its way ends at {describe(end)}, which site {instead} replaces"
        return UtcError(f"site {site.id} reaches no output of the model", why=why, fix=fix)
    stops = [n for n in sources if n in below and n in blocked]
    why = "; ".join(f"{describe(n)}: {blocked[n]}" for n in stops[:2])
    return UtcError(f"no gradient reaches site {site.id}", why=f"its way to the output is cut at {why}", fix=fix)


def _below(nodes: Iterable[fx.Node], sources: Mapping[fx.Node, Sequence[fx.Node]]) -> set[fx.Node]:
    """The nodes that read some nodes, directly or by way of others; `sources` is in graph order."""
    found = set(nodes)
    for node, read in sources.items():
        if not found.isdisjoint(read):
            found.add(node)
    return found

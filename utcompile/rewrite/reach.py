"""Every tuner must reach an output of the model, and a gradient must come back: read off the graph, nothing is run.

A tuner that is computed and never seen trains without an error and changes nothing. So a site is refused where

1. no path leads from its tuner to an output; the message names where the path ends and what stands in its place;
2. every path to an output passes a `detach`, a `no_grad` region, or a value that is no floating-point number.

What happens inside a tuner's module is its author's promise; the tests of each family run two steps and look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import describe, value_of
from utcompile.rewrite.tuned import TunedSite


def check_reach(graph: fx.Graph, sites: Sequence[TunedSite]) -> None:
    """Raise for the first site whose parameters no gradient can reach."""
    outputs = [graph.output_node()]
    blocked = _blocked(graph)
    trained = _above(outputs, blocked)
    reads = _reads(graph, {s.name for s in sites})
    for site in sites:
        mine = reads[site.name]
        if trained.isdisjoint(mine):
            raise _refused(site, mine, _above(outputs, {}), blocked, graph)


def _reads(graph: fx.Graph, names: set[str]) -> dict[str, list[fx.Node]]:
    """The nodes that call each tuner's module, or read its parameters; `tuners.NAME` is the module of a site."""
    found: dict[str, list[fx.Node]] = {name: [] for name in names}
    for node in graph.nodes:
        name = ".".join(str(node.target).split(".")[:2])
        if node.op in ("call_module", "get_attr") and name in names:
            found[name].append(node)
    return found


def _above(ends: Iterable[fx.Node], blocked: Mapping[fx.Node, str]) -> set[fx.Node]:
    """The nodes that lead to `ends` by a way that none of `blocked` closes."""
    found, stack = set(ends), list(ends)
    while stack:
        for source in stack.pop().all_input_nodes:
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
        if name == "set_grad_enabled" and node.meta.get("region"):
            given = node.args[0]
            before[node] = enabled
            enabled = before[given] if isinstance(given, fx.Node) else bool(given)
            continue
        value = value_of(node)
        if name == "detach":
            found[node] = "it detaches what it reads"
        elif not enabled:
            found[node] = "it stands in a no_grad region"
        elif value is not None and not (value.dtype.is_floating_point or value.dtype.is_complex):
            found[node] = f"it yields {str(value.dtype).removeprefix('torch.')}"
    return found


def _refused(
    site: TunedSite, tuners: list[fx.Node], alive: set[fx.Node], blocked: Mapping[fx.Node, str], graph: fx.Graph
) -> UtcError:
    fix = "exclude the place in `where:`, or remove the rule that bypasses it"
    below = _below(tuners)
    if alive.isdisjoint(tuners):
        end = max(below, key=list(graph.nodes).index)
        instead = next((n.meta["site"] for n in graph.nodes if n.meta.get("replaces") == end.name), None)
        why = f"its way ends at {describe(end)}, which nothing reads"
        if instead is not None:
            why = f"its way ends at {describe(end)}, which site {instead} replaces"
        return UtcError(f"site {site.id} reaches no output of the model", why=why, fix=fix)
    stops = [n for n in graph.nodes if n in below and n in blocked]
    why = "; ".join(f"{describe(n)}: {blocked[n]}" for n in stops[:2])
    return UtcError(f"no gradient reaches site {site.id}", why=f"its way to the output is cut at {why}", fix=fix)


def _below(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found, stack = set(nodes), list(nodes)
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found

"""Absorption of weight tuners: what the tuner makes of the parameters becomes the parameters.

1. As a branch, `T(x, y)` beside `y = OP(x; W)`: `W = T.changed(W)`, and the branch goes.
2. Reparametrised, `OP(x; T(W))`: `W = T.changed(W)`, and the original call comes back.

`Tuner.changed`, run in float64, is all that is asked of a tuner, so a user's own is absorbed too.
"""

from __future__ import annotations

import torch
from torch import fx

from utcompile.fold.execute import as_real, double_copy
from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.graph import Role, info, inserted, is_state, owner_path, value_of
from utcompile.rewrite import TunedSite, to_module, written_again
from utcompile.tuners import Tuner

_PIECE = 1 << 16
_BETWEEN = (Role.PARAMETER, Role.TUNER)  # roles of nodes that hand a changed parameter on


def operations_of(nodes: dict[Role, list[fx.Node]]) -> list[fx.Node]:
    """The operations that a weight site changes, in graph order."""
    if "branch" in nodes:
        return [b.args[1] for b in nodes[Role.BRANCH] if isinstance(b.args[1], fx.Node)]
    found: dict[fx.Node, None] = {}
    stack = list(nodes[Role.TUNER])
    while stack:
        for user in stack.pop().users:
            data = any(_is_data(n) for n in user.all_input_nodes)
            if info(user).role in _BETWEEN or not data:
                stack.append(user)
            else:
                found[user] = None
    return sorted(found)


def _is_data(node: fx.Node) -> bool:
    return (value_of(node) is not None or info(node).role == Role.PADDING) and not of_parameters(node)


def of_parameters(node: fx.Node) -> bool:
    """Whether a node is computed from parameters and weight tuners alone."""
    if is_state(node):
        return True
    return info(node).role in _BETWEEN and all(of_parameters(n) for n in node.all_input_nodes)


def plan_absorption(work: Work, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Planned:
    """Find out whether a weight tuner can go into the parameters.

    Raises:
        Unfoldable: a parameter is shared with an operation outside the site.
    """
    tuner = work.root.get_submodule(site.name)
    assert isinstance(tuner, Tuner)
    operations = operations_of(nodes)
    names = list(site.tunes.values())
    for known in filter(None, names):
        _check_readers(work, known, {*operations, *nodes.get(Role.TUNER, ())})
    before = [work.state(n) if n is not None else None for n in names]
    with torch.no_grad():
        made = double_copy(tuner).changed(*before)  # type: ignore[operator]
    after = list(made) if isinstance(made, tuple) else [made]
    homes = [work.home_of(n) for n in names if n is not None]
    changes = [(n, b, a) for n, b, a in zip(names, before, after, strict=True) if n is not None and b is not None]
    retained = min((share_retained(b, a, work.home_of(n)[0]) for n, b, a in changes), default=1.0)

    def commit() -> list[fx.Node]:
        added: dict[int, str] = {}
        for i, (name, value) in enumerate(zip(names, after, strict=True)):
            if name is not None:
                work.put(name, value)
            elif value is not None:
                added[i] = _add(work, operations, value, homes[0] if homes else work.home)
        if "branch" in nodes:
            for branch, node in zip(nodes[Role.BRANCH], operations, strict=True):
                branch.replace_all_uses_with(node)
                work.graph.erase_node(branch)
            return operations
        for node in nodes[Role.TUNER]:
            _restore(work, node, added)
        for node in operations:
            _call_again(work, node)
        return operations

    outputs = nodes.get(Role.BRANCH) or operations
    return Planned(tuple(map(_read_by, outputs)), tuple(outputs), commit, retained)


def _read_by(output: fx.Node) -> fx.Node:
    """What an operation, or the branch beside it, reads."""
    source = next(n for n in output.all_input_nodes if not of_parameters(n) and info(n).size is None)
    return source.all_input_nodes[0] if info(source).role == Role.PADDING else source


def _restore(work: Work, tuner: fx.Node, added: dict[int, str]) -> None:
    """Let what read the tuner's parameters read the parameters themselves."""

    def parameter(index: int) -> fx.Node:
        given = tuner.args[index]
        if isinstance(given, fx.Node):
            return given
        with work.graph.inserting_before(tuner):
            node = work.graph.get_attr(added[index])
        inserted(node, info(tuner).origin, state=True)
        return node

    if len(tuner.args) == 1:
        tuner.replace_all_uses_with(parameter(0))
    else:
        for part in list(tuner.users):
            index = part.args[1]
            assert isinstance(index, int)
            part.replace_all_uses_with(parameter(index))
            work.graph.erase_node(part)
    work.graph.erase_node(tuner)


def _call_again(work: Work, node: fx.Node) -> None:
    """Write an operation as it was, once nothing of it is tuned any more."""
    if any(info(n).role in _BETWEEN and not _only_parameters(n) for n in node.all_input_nodes):
        return
    written_again(node)
    before = node.all_input_nodes
    if info(node).module_call is not None:
        to_module(work.graph, node)
    del info(node).role
    _sweep(work, before)


def _only_parameters(node: fx.Node) -> bool:
    """Whether a node reads parameters through no tuner."""
    if info(node).role == Role.TUNER:
        return False
    return all(_only_parameters(n) for n in node.all_input_nodes)


def _add(work: Work, operations: list[fx.Node], value: torch.Tensor, home: tuple[torch.dtype, torch.device]) -> str:
    """A bias for an operation that had none: in its module, or under a new name beside the weight."""
    path = next((str(info(n).module_call) for n in operations if info(n).module_call is not None), None)
    if path is None:
        read = next(n for n in operations[0].all_input_nodes if of_parameters(n))
        while read.op != "get_attr":
            read = read.all_input_nodes[0]
        path = owner_path(str(read.target))
    name = f"{path}.bias".lstrip(".")
    while name in dict(work.root.named_parameters(remove_duplicate=False)):
        name += "_"
    work.changed[name] = home
    work.put(name, value)
    return name


def _check_readers(work: Work, name: str, mine: set[fx.Node]) -> None:
    """Every reader of a parameter must be part of the site; a tie to another name is cut by the new parameter."""
    owner = owner_path(name)
    for node in work.graph.nodes:
        reads = node.op == "call_module" and str(node.target) == owner
        reads |= node.op == "get_attr" and str(node.target) == name and not set(node.users) <= mine
        if reads and node not in mine:
            raise Unfoldable(f"the weight {name} is shared with {node.name}, which is not tuned")


def share_retained(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> float:
    """`<round(W + Δ) − W, Δ> / <Δ, Δ>`: 1 where rounding loses nothing of the update.

    Args:
        before, after: W and W + Δ in float64.
        dtype: what W + Δ is rounded to.
    """
    energy = kept = 0.0
    before, after, dtype = as_real(before), as_real(after), dtype.to_real()
    # in pieces that stay in a processor's cache: large temporaries cost more than the arithmetic
    for old, new in zip(before.reshape(-1).split(_PIECE), after.reshape(-1).split(_PIECE), strict=True):
        delta = new - old
        energy += torch.dot(delta, delta).item()
        kept += torch.dot(new.to(dtype).double() - old, delta).item()
    return kept / energy if energy else 1.0


def _sweep(work: Work, nodes: list[fx.Node]) -> None:
    """Erase what nothing reads any more: parameters, an explicit padding."""
    for node in nodes:
        if not node.users and (is_state(node) or info(node).role in (Role.PARAMETER, Role.PADDING)):
            inputs = node.all_input_nodes
            work.graph.erase_node(node)
            _sweep(work, inputs)

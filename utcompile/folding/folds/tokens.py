"""Learned tokens of an attention become constants: computed once, in float64, and rounded once, into buffers."""

from __future__ import annotations

import operator

import torch
from torch import fx

from utcompile.folding.algebra.buffers import new_buffer
from utcompile.folding.algebra.constant_nodes import constant_nodes
from utcompile.folding.base import Fold
from utcompile.folding.case import Case
from utcompile.folding.execute import in_float64
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Added, Draft, Given, Patch, Remove, Replace, Unread
from utcompile.folding.site import Site
from utcompile.graph import Role, Size, origin_of, run_node, tensor
from utcompile.rewrite import TunedTokens


class ConstantTokens(Fold):
    """`K_p` and `V_p` are the same for every sample.

    A prefix has them; a prompt P has them by the frozen norm and projections, `K_p = W_k LN(P) + b_k`. The attention
    itself stays as it is.
    """

    status = "constant"
    trusted = True
    cases = (
        Case(
            "T1",
            "learned keys and values: a prefix has them; a prompt P has them by the frozen norm and "
            "projections, `K_p = W_k LN(P) + b_k`",
            "they are the same for every sample: a custom tuner of tokens is run once",
            "keys that depend on x are others for the next x; the proof finds out",
            "folding/test_own_folds.py::test_tokens_that_depend_on_the_input_are_kept",
        ),
    )
    local = True

    def requires(self, site: Site, model: Folding) -> bool:
        """A site of learned tokens."""
        return isinstance(site.place, TunedTokens)

    def plan(self, site: Site, model: Folding) -> Patch:
        """Find the learned keys and values, and how they become constants.

        Raises:
            Unfoldable: they cannot be the same for every sample.
        """
        return _from_tuner(model, site) if site.call.args else _from_stream(model, site)


def _from_stream(model: Folding, site: Site) -> Patch:
    """Everything up to what is repeated for each sample."""
    constant = constant_nodes(model.graph)
    ends = [n for n in site.nodes.get(Role.PART, ()) if n in constant and any(u not in constant for u in n.users)]
    if len(ends) != 2 or any(len(n.users) != 1 for n in ends):
        raise Unfoldable("what its tokens become depends on the input")
    repeated = [next(iter(n.users)) for n in ends]
    sizes = [i for n in repeated for i in n.all_input_nodes if i not in ends]

    draft = Draft()
    for name, end in zip(("keys", "values"), ends, strict=True):
        buffer = new_buffer(model, draft, site.tuned.path, f"{site.tuned.tuner}_{name}", model.evaluate(end), end)
        draft.edits.append(Replace(end, by=buffer))
    draft.edits.append(
        Unread(tuple(n for role in site.nodes.values() for n in role if n in constant and n not in ends))
    )
    return draft.patch((i for s in sizes for i in s.all_input_nodes), repeated, 1.0)


def _from_tuner(model: Folding, site: Site) -> Patch:
    """The tuner is asked once; that it yields the same for every input is for the proof to find out."""
    tuner = site.call
    given = [n for n in tuner.args if isinstance(n, fx.Node)]
    parts = sorted(tuner.users, key=lambda n: n.args[1])  # type: ignore[arg-type, return-value]
    if len(given) != 2 or [p.args[1] for p in parts] != [0, 1]:
        raise Unfoldable("its keys and values are not found")
    for node in given:
        shape = tensor(node).shape
        if not isinstance(shape[0], Size) or any(isinstance(d, Size) for d in shape[1:-2]):
            raise Unfoldable(f"{node.name} {tensor(node)} has not the batch, and it alone, in front")

    example = {n: torch.zeros(tensor(n).sizes(1), dtype=torch.float64) for n in given}
    try:
        made = run_node(model.root, tuner, example.__getitem__, in_float64)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unfoldable(f"it does not run alone: {type(error).__name__}: {error}".partition("\n")[0]) from error
    draft = Draft()
    for name, part, like, value in zip(("keys", "values"), parts, given, made, strict=True):
        draft.edits.append(Replace(part, by=_for_all(model, draft, site, name, part, like, value)))
    draft.edits.append(Remove(tuner))
    return draft.patch(given, parts, 1.0)


def _for_all(
    model: Folding, draft: Draft, site: Site, name: str, part: fx.Node, like: fx.Node, value: torch.Tensor
) -> Added:
    """A constant for every sample: `(1, …, heads, length, d)` seen B times, or `(heads, length, d)` repeated."""
    rank, origin = tensor(like).rank, origin_of(part)
    buffer = new_buffer(
        model, draft, site.tuned.path, f"{site.tuned.tuner}_{name}", value[:1] if rank > 3 else value, part
    )
    batch = Added("call_method", "size", (like, 0), part, origin)
    if rank > 3:
        every: tuple[Given, ...] = (buffer, batch, *[-1] * (rank - 1))
        draft.edits += [batch, made := Added("call_method", "expand", every, part, origin, value=tensor(part))]
        return made
    times = Added("call_function", operator.floordiv, (batch, value.shape[0]), part, origin)
    made = Added("call_method", "repeat", (buffer, times, 1, 1), part, origin, value=tensor(part))
    draft.edits += [batch, times, made]
    return made

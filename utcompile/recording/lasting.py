"""Whether a later call reads what a recording left behind: the model is recorded once more, in the state after it.

Numbers are set to what they would be many calls later, and lists are as long, so that a threshold shows itself too. If
the same operations run, nothing reads the state. A tensor that was made of weights alone is a cache (LeViT's
`attention_bias_cache`): every call would make the same one, so it is taken away before the second recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph.nested import alike, tensors
from utcompile.recording.places import OTHER_MEMORY, Change
from utcompile.recording.recorder import Recorder
from utcompile.recording.state import Snapshot
from utcompile.recording.tracked import plain
from utcompile.recording.unrecordable import Unrecordable
from utcompile.recording.watch import SETTLES, Watch, lasting_error

T = torch.Tensor
_CALLS = 1009  # how many calls later; a prime, so that `% n` shows itself
_MOVES = frozenset("to type type_as float half bfloat16 double cpu cuda contiguous".split())
CACHE = "made of weights and sizes alone, as a cache"
UNREAD = "assigned, and no later call reads it"
READ = "the same call, recorded again in the state that the first one left, runs otherwise"
MODULES = "forward changes which modules the model has"
MEMORY = "forward gives a parameter or buffer other memory (`.data = …`), where copy_ would write into it"


def watched(
    once: Callable[[], Recorder],
    model: nn.Module,
    watch: Watch,
    *,
    judges: bool,
    written: Callable[[], list[str]] = list,
) -> Recorder:
    """Record a model, and report the state that its forward left in Python to the watch; the surroundings are put back.

    Args:
        once: records the model.
        model: the model that is recorded.
        watch: collects the state.
        judges: whether to find out what a later call reads; else random numbers are noted alone.
        written: the parameters and buffers that a recording with real values has written into: it may choose by them.

    Raises:
        UtcError: forward changes which modules the model has.
    """
    own = Snapshot.of_model(model)
    try:
        first = once()
        into = [Change(name) for name in written()]
        new = watch.new([*own.changes(), *watch.around.changes(), *into])
        if new and judges:
            watch.around.forget_caches()
            unread, why = judge(first, new, once)
            names = {c.name for c in into}
            watch.assigned |= {name: reason for name, reason in unread.items() if name not in names}
            watch.lasting |= {c.name: why for c in new if c.name not in unread}
        return first
    except (UtcError, Unrecordable) as error:
        grown = [c.name for c in own.changes() if _is_module(c)]
        if grown:
            raise lasting_error(watch.model, grown, MODULES) from error
        made = _module_made(error)
        if made:
            raise UtcError(
                f"the model's forward keeps state in Python from one call to the next, or makes it anew: {made}",
                where=getattr(error, "source", None),
                why="its weights are no part of the model that is captured",
                fix="make modules in __init__",
            ) from error
        raise
    finally:
        watch.around.put_back()


def _module_made(error: BaseException) -> str:
    """The class of the module that forward was making when it could not be recorded any more."""
    at = error.__traceback__
    while at is not None:
        made = at.tb_frame.f_locals.get("self")
        if at.tb_frame.f_code.co_name == "__init__" and isinstance(made, nn.Module):
            return f"a new {type(made).__name__}"
        at = at.tb_next
    return ""


def _is_module(change: Change) -> bool:
    return isinstance(change.after, nn.Module) or isinstance(change.before, nn.Module)


def judge(first: Recorder, changes: Sequence[Change], again: Callable[[], Recorder]) -> tuple[dict[str, str], str]:
    """Find out which changes of a recording a later call reads.

    Args:
        first: the recording.
        changes: the changes that it left, still in place.
        again: records the same call once more.

    Returns:
        The names of what no later call reads, with the reason; and why the others are read, empty if there is none.
    """
    if any(map(_is_module, changes)):
        return {}, MODULES
    if any(c.after is OTHER_MEMORY for c in changes):
        return {}, MEMORY
    caches = [c for c in changes if _is_cache(first, c, changes) or _is_moved(first, c)]
    owners = {_owner(c.name) for c in caches}
    # numbers and flags next to a cache belong to it; tensors of inputs do not
    kept = [c for c in changes if _owner(c.name) not in owners or (c not in caches and tensors(c.after))]
    for change in changes:
        if change.place is not None:
            change.place.put(change.key, change.before if change not in kept else _much_later(change))
    try:
        second = again()
    except (Unrecordable, UtcError) as error:
        why = READ if isinstance(error, Unrecordable) else f"{READ}: {error.why or error}"
    else:
        why = "" if _alike(first, second) else SETTLES if _is_repeated(second, again) else READ
    if why and not kept:  # only caches are left, which are taken away: something else makes the recordings differ
        return {}, why
    unread = {c.name: CACHE if c in caches else UNREAD for c in changes if not why or c not in kept}
    return unread, why


def _is_repeated(recorder: Recorder, again: Callable[[], Recorder]) -> bool:
    """Whether the call after a recording runs like it."""
    try:
        return _alike(recorder, again())
    except (Unrecordable, UtcError):
        return False


def _owner(name: str) -> str:
    return name.partition("[")[0].rpartition(".")[0]


def _is_cache(recorder: Recorder, change: Change, changes: Sequence[Change]) -> bool:
    made, before = tensors(change.after), {id(t) for c in changes for t in tensors(c.before)}
    if not made:
        return False
    names = {c.name for c in changes}
    for tensor in made:
        above = recorder.above([tensor])
        if not above or any(n.op == "placeholder" for n in above):
            return False
        for node in above:
            if node.op == "get_attr" and (str(node.target) in names or id(recorder.kept(node)) in before):
                return False
    return True


def _is_moved(recorder: Recorder, change: Change) -> bool:
    """Whether a tensor was only moved or cast, which has no effect twice (`self.table = self.table.to(x.device)`)."""
    if not isinstance(change.before, T) or not isinstance(change.after, T):
        return False
    node = recorder.node_of(change.after)
    while node is not None and node.op == "call_method" and node.target in _MOVES:
        node = node.args[0] if isinstance(node.args[0], fx.Node) else None
    return (
        node is not None
        and node.op == "get_attr"
        and (node.target == change.name or recorder.kept(node) is change.before)
    )


def _much_later(change: Change) -> object:
    """The value of changed state after many calls, as far as one call shows."""
    before, after = change.before, plain(change.after)
    match [v for v in (before, after) if type(v) is int or type(v) is float]:
        case [first, last]:
            return first + _CALLS * (last - first)
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and after.dtype.kind in "iuf":
        return before + _CALLS * (after - before)
    if isinstance(after, list) and isinstance(before, list) and len(after) > len(before):
        owner = getattr(change.place, "owner", None)
        longest = owner.maxlen if isinstance(owner, deque) and owner.maxlen else len(after) + _CALLS
        return (after + after[len(before) :] * _CALLS)[:longest]
    return after


def _alike(first: Recorder, second: Recorder) -> bool:
    """Whether two recordings at one sample ran the same operations with the same arguments."""
    one, two = list(first.graph.nodes), list(second.graph.nodes)
    if len(one) != len(two):
        return False
    number: dict[fx.Node, int] = {n: i for nodes in (one, two) for i, n in enumerate(nodes)}
    pairs = zip(one, two, strict=True)

    def same(a: object, b: object) -> bool:
        if isinstance(a, fx.Node):
            return isinstance(b, fx.Node) and number[a] == number[b]
        return a is b or (type(a) is type(b) and bool(a == b or (a != a and b != b)))

    return all(
        a.op == b.op
        and _same_target(a, b)
        and alike((a.args, a.kwargs), (b.args, b.kwargs), same)
        and (a.op != "get_attr" or _same_tensor(first.kept(a), second.kept(b)))
        for a, b in pairs
    )


def _same_tensor(a: T | None, b: T | None) -> bool:
    if a is b:
        return True
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _same_target(a: fx.Node, b: fx.Node) -> bool:
    return a.target == b.target or getattr(a.target, "__qualname__", a) == getattr(b.target, "__qualname__", b)

"""Axes as products of atoms, and the exact effect of a reshape on them.

An *origin* is an axis as some operation made it: the channels of a convolution, the rows of an image. An *atom* is a
digit of an origin's index in mixed radix, so that `i = Σ digit · stride`. Reshaping `(B, N, 768)` to `(B, N, 12, 64)`
makes two atoms of one origin, `(stride 64, size 12)` and `(stride 1, size 64)`; a permute moves atoms, a flattening
puts several on one axis, and adjacent digits that meet again are one.

Sizes are plain integers: a batch is a large prime, so that nothing divides by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

from torch import fx

from utcompile.graph.value import BATCH, Size, Symbol

_PRIMES = (1_000_003, 10_007, 20_011, 30_011, 40_009)


class Origin:
    """An axis as it was made.

    Attributes:
        size: how many elements it has.
        role: `batch`, `channel`, `space`, or None while it is unknown.
        letter: how it is shown.
        order: a later one has a larger number.
        makers: the operations whose output channels these are.
        sealed: ranges of strides, `(low, high)`, between which its index must not be divided: its places there were
            moved as one, so that the digits between mean nothing.
        moved: its places are the makers' in another order, so that an addition to what was not moved alike mixes them.
        alias: the atoms that this was found to be, where an addition showed it.
    """

    __slots__ = ("alias", "letter", "makers", "moved", "order", "role", "sealed", "size")

    def __init__(self, size: int, role: str | None, order: int, letter: str = "", maker: fx.Node | None = None) -> None:
        self.size, self.role, self.order, self.letter = size, role, order, letter
        self.makers: dict[fx.Node, None] = {} if maker is None else {maker: None}  # in order, each once
        self.sealed: set[tuple[int, int]] = set()
        self.moved = False
        self.alias: Axis | None = None


class Atom(NamedTuple):
    """A digit of an origin's index."""

    origin: Origin
    stride: int
    size: int


Axis = tuple[Atom, ...]
Found = list[Axis | None] | None  # of a value: its axes, None where one is unknown; None where nothing is known


class Sizes:
    """Sizes that vary, as the integers that represent them."""

    def __init__(self) -> None:
        self._symbols: dict[Symbol, int] = {BATCH: _PRIMES[0]}
        self._known: dict[int, tuple[Size, int]] = {}

    def __call__(self, size: int | Size) -> int:
        if isinstance(size, int):
            return size
        known = self._known.get(id(size))
        if known is None:
            for symbols, _ in size.terms:
                for s in symbols:
                    prime = _PRIMES[min(len(self._symbols), len(_PRIMES) - 1)]
                    self._symbols.setdefault(s, s.example + s.step * prime)
            known = self._known[id(size)] = (size, size.of(self._symbols))  # kept, so that its id stays its own
        return known[1]


def resolved(axis: Axis) -> Axis:
    """An axis with every origin replaced by the one that it was found to be."""
    if all(a.origin.alias is None for a in axis):
        return axis
    found: list[Atom] = []
    for atom in axis:
        alias = atom.origin.alias
        if alias is None:
            found.append(atom)
            continue
        atom.origin.alias = alias = resolved(alias)
        parts = regrouped(alias, (atom.origin.size // (atom.stride * atom.size), atom.size, atom.stride))
        middle = parts[1]
        found += (atom,) if middle is None else middle
    return _merged(found)


def regrouped(atoms: Iterable[Atom], sizes: Sequence[int]) -> list[Axis | None]:
    """The atoms on axes of new sizes, in row-major order; None for an axis that no atoms make up.

    Example:
        >>> heads = Origin(6, "channel", 0)
        >>> outer, inner = regrouped([Atom(heads, 1, 6)], (2, 3))
        >>> outer[0].stride, outer[0].size, inner[0].stride, inner[0].size
        (3, 2, 1, 3)
    """
    known = [a for a in atoms if a.size > 1]
    if prod(a.size for a in known) != prod(sizes):
        return [None] * len(sizes)
    front = _consumed(known[::-1], sizes, inner=False)
    if len(front) == len(sizes):
        return [*front]
    back = _consumed(known, sizes[::-1], inner=True)[::-1]
    gap = len(sizes) - len(front) - len(back)
    return [*front, *[None] * gap, *back] if gap >= 0 else [None] * len(sizes)


def _consumed(left: list[Atom], sizes: Sequence[int], *, inner: bool) -> list[Axis]:
    """Axes filled from the end of `left`, as far as its atoms can be divided."""
    axes: list[Axis] = []
    left = list(left)
    for size in sizes:
        axis: list[Atom] = []
        while size > 1:
            if not left:
                return axes
            atom = left.pop()
            if size % atom.size == 0:
                axis.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                rest = atom.size // size
                low, high = (size, rest) if inner else (rest, size)
                digits = Atom(atom.origin, atom.stride, low), Atom(atom.origin, atom.stride * low, high)
                axis.append(digits[not inner])
                left.append(digits[inner])
                size = 1
            else:
                return axes
        axes.append(_merged(axis[::-1] if inner else axis))
    return axes


def _merged(atoms: Sequence[Atom]) -> Axis:
    result: list[Atom] = []
    for atom in atoms:
        last = result[-1] if result else None
        if last is not None and last.origin is atom.origin and last.stride == atom.stride * atom.size:
            result[-1] = Atom(atom.origin, atom.stride, last.size * atom.size)
        else:
            result.append(atom)
    return tuple(result)


def whole(axis: Axis) -> Origin | None:
    """The one origin that an axis is, all of it and nothing else."""
    if len(axis) == 1 and axis[0].size == axis[0].origin.size:
        return axis[0].origin
    return None


def same(kept: Axis, other: Axis) -> None:
    """Record that two axes contain the same places: `kept` is the older, and its roles count."""
    kept, other = resolved(kept), resolved(other)
    if kept == other or _is_moved(kept) or _is_moved(other):
        return
    mine, theirs = whole(kept), whole(other)
    if theirs is None or (mine is not None and mine.role is None and theirs.role is not None):
        kept, other, mine, theirs = other, kept, theirs, mine
    if theirs is None or any(a.origin is theirs for a in kept):
        return
    if theirs.role == "channel" and all(a.origin.role == "channel" for a in kept):
        for origin in {id(a.origin): a.origin for a in kept}.values():
            origin.makers |= theirs.makers
    theirs.alias = kept


def _is_moved(axis: Axis) -> bool:
    return any(a.origin.moved and a.origin.role == "channel" for a in axis)


def are_mixed(a: Axis, b: Axis) -> bool:
    """Whether adding values along these axes adds channels that one order of their makers does not move alike."""
    a, b = resolved(a), resolved(b)
    shared = {t.origin for t in a if t.origin.role == "channel"} & {t.origin for t in b}
    return a != b and (bool(shared) or _is_moved(a) or _is_moved(b))


def seal(origin: Origin, low: int, high: int) -> None:
    """Its index must not be divided between these strides."""
    origin.sealed.add((low, high))


def inherit(made: Origin, parts: Iterable[Axis]) -> None:
    """Give channels that were put together of parts the makers of these, where an order of theirs is one of all."""
    atoms = [atom for axis in parts for atom in axis]
    made.moved = any(a.origin.moved for a in atoms)
    if any(a.stride > 1 or (a.origin.moved and not a.origin.makers) for a in atoms):
        made.moved = True
        return
    made.makers |= {m: None for a in atoms for m in a.origin.makers}
    if any(a.origin.sealed for a in atoms):
        seal(made, 1, made.size)


def is_divided(origin: Origin, atoms: Iterable[Atom]) -> bool:
    """Whether its atoms divide it where that means nothing."""
    return any(low < a.stride < high for a in atoms for low, high in origin.sealed)


def role_of(axis: Axis) -> str | None:
    """The role of an axis: channels where any of it is, else positions, else the role of all of it."""
    roles = {a.origin.role for a in axis}
    for role in ("channel", "space"):
        if role in roles:
            return role
    return roles.pop() if len(roles) == 1 else None


def letter_of(axes: Sequence[Axis]) -> str:
    """The names of axes that are one side of an image each."""
    letters = {axis[0].origin.letter if len(axis) == 1 else "" for axis in axes}
    return letters.pop() if len(letters) == 1 else ""

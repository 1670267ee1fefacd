"""The table of operations: patterns, the reading of nodes and every pass take the facts about an operation from here.

A row gives a name, a gloss, traits, how axes are carried, and the callables of torch that are this operation, each with
its signature. Signatures are Python's, with torch's own argument names and defaults; names that begin with `_`, and
`inplace` and `out`, say nothing about the operation and are read over. A spelling is

    gelu          torch.gelu and the method x.gelu(), as far as there are such
    F.gelu        torch.nn.functional.gelu
    nn.GELU       a leaf module: its attributes of the signature's names are the operation's
    op.add        operator.add
    T.float       the method only
    torch.rsub    the function only, also of a submodule: torch.linalg.norm

and the variant that writes in place (`relu_`) belongs to each. What differs between spellings of one name is stated
after the signature: `kind=avg`.

No pass lists names of operations. It uses those that have a trait, in a set that contains registered operations too:

>>> PRODUCTS = having(Trait.PRODUCT)
>>> "einsum" in PRODUCTS, "conv2d" in PRODUCTS, sorted(having(Trait.CONV | Trait.CONV_TRANSPOSE))[:2]
(True, False, ['conv1d', 'conv2d'])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from itertools import chain
from types import MappingProxyType

from utcompile.ops import elementwise, layers, made, moves, reductions, spectral
from utcompile.ops.row import Row
from utcompile.ops.traits import Axes, Trait

GROUPS: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {
        "layers with a weight": layers.WEIGHTED,
        "products": layers.PRODUCTS,
        "elementwise": elementwise.ELEMENTWISE,
        "choices and comparisons": elementwise.CHOICES,
        "joining and cutting": moves.JOINING,
        "pooling and resizing": reductions.POOLING,
        "activations": elementwise.ACTIVATIONS,
        "gates": elementwise.GATES,
        "norms": layers.NORMS,
        "Fourier transforms": spectral.FOURIER,
    }
)
_rows: dict[str, Row] = {r.name: r for r in chain(*GROUPS.values(), moves.DROPOUT, made.MADE)}
_glosses: dict[str, str] = {r.name: r.gloss for r in _rows.values() if r.gloss}
_sets: list[tuple[Callable[[Row], bool], set[str]]] = []
_known: dict[Trait | Axes, Set[str]] = {}

ROWS: Mapping[str, Row] = MappingProxyType(_rows)
GLOSSES: Mapping[str, str] = MappingProxyType(_glosses)


def having(what: Trait | Axes) -> Set[str]:
    """The names of the operations that have at least one of some traits, or that carry axes in one way.

    It is one set for all who ask, to read and to keep: an operation that is registered later enters it.
    """
    if what not in _known:
        _known[what] = _followed(lambda row: bool(row.traits & what) if isinstance(what, Trait) else row.axes is what)
    return _known[what]


def words(more: Iterable[str] = ()) -> Set[str]:
    """The names that a pattern may use, and more words; an operation that is registered later enters the set."""
    found = _followed(lambda row: bool(row.gloss))
    found |= set(more)  # in place
    return found


def callables(*names: Iterable[str]) -> frozenset[str]:
    """The last parts of the spellings of some operations: `amax` for `max`, `view` for `reshape`.

    >>> sorted(callables(["softmax", "maximum"]))
    ['Softmax', 'Softmax2d', 'fmax', 'maximum', 'softmax']
    """
    found = (words for name in chain(*names) for _, words in _rows[name].spellings)
    return frozenset(word.rpartition(".")[2] for text in found for word in text.split())


def callables_with(*arguments: str, without: str | None = None) -> frozenset[str]:
    """The last parts of the spellings whose signature has one of some arguments, and another not.

    >>> sorted(callables_with("size", without="input"))
    ['empty', 'full', 'ones', 'rand', 'randint', 'randn', 'zeros']
    """
    found = (
        words
        for row in _rows.values()
        for signature, words in row.spellings
        if {*arguments} & (given := {*_arguments(signature)}) and without not in given
    )
    return frozenset(word.rpartition(".")[2] for text in found for word in text.split())


def _arguments(signature: str) -> list[str]:
    return [argument.partition("=")[0].strip(" *") for argument in signature.partition(";")[0].split(",")]


def add(row: Row) -> None:
    """Let the table have one more row; the caller has checked that its name is free."""
    _rows[row.name] = row
    if row.gloss:
        _glosses[row.name] = row.gloss
    for has, names in _sets:
        if has(row):
            names.add(row.name)


def remove(name: str) -> None:
    """Undo `add`."""
    del _rows[name]
    _glosses.pop(name, None)
    for _, names in _sets:
        names.discard(name)


def _followed(has: Callable[[Row], bool]) -> set[str]:
    names = {row.name for row in _rows.values() if has(row)}
    _sets.append((has, names))
    return names

"""The example inputs by name, and which of their dimensions vary between calls."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.graph import BATCH, Symbol
from utcompile.graph.nested import map_tensors, parts, tensors
from utcompile.recording.layouts import check_layouts

T = torch.Tensor
Examples = T | Sequence[object] | Mapping[str, object]
Dynamic = Sequence[str] | Mapping[str, object]


@dataclass(frozen=True)
class Inputs:
    """Example inputs with their varying dimensions.

    Attributes:
        arguments: values by parameter name of `forward`.
        varying: one dict per tensor, in the order of the flattened arguments: dimension -> symbol.
        positional: names of the arguments that the user gives by position; hooks see the difference.
    """

    arguments: dict[str, object]
    varying: tuple[dict[int, Symbol], ...]
    positional: tuple[str, ...] = ()

    def as_given(self, arguments: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """Arguments by name, as the user gives them: by position and by keyword."""
        named = {k: v for k, v in arguments.items() if k not in self.positional}
        return [arguments[name] for name in self.positional], named

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The sizes that vary, the batch first."""
        found = dict.fromkeys(s for dims in self.varying for s in dims.values())
        return tuple(sorted(found, key=lambda s: s != BATCH))

    @property
    def example(self) -> dict[Symbol, int]:
        """The size that each symbol has in the example."""
        pairs = zip(tensors(self.arguments), self.varying, strict=True)
        return {symbol: t.shape[dim] for t, dims in pairs for dim, symbol in dims.items()}

    @property
    def batch_inputs(self) -> tuple[str, ...]:
        """Names of the arguments in which a dimension 0 is the batch."""
        names = [name for name, _ in _named(self.arguments)]
        return tuple(dict.fromkeys(n for n, dims in zip(names, self.varying, strict=True) if dims.get(0) == BATCH))

    def without(self, symbols: Sequence[Symbol]) -> Inputs:
        """The same inputs, some symbols with the example's size only."""
        return replace(
            self, varying=tuple({d: s for d, s in dims.items() if s not in symbols} for dims in self.varying)
        )

    def fixing(self, names: Collection[str]) -> Inputs:
        """The same inputs, some of them with the example's sizes only."""
        owners = [name for name, _ in _named(self.arguments)]
        pairs = zip(owners, self.varying, strict=True)
        return replace(self, varying=tuple({} if owner in names else dims for owner, dims in pairs))

    def at(
        self, sizes: Mapping[Symbol, int], convert: Callable[[T], T] = lambda t: t, *, values: bool = True
    ) -> dict[str, object]:
        """The arguments at other sizes: rows of the example repeated or left out; zeros where the example is empty.

        Args:
            sizes: the size of each symbol.
            convert: applied to every tensor.
            values: whether the values matter; else what is resized has memory that nothing has written.
        """
        varying = iter(self.varying)

        def resize(leaf: T) -> T:
            for dim, symbol in next(varying).items():
                leaf = _resized(leaf, dim, sizes[symbol], values)
            return convert(leaf)

        return {name: map_tensors(resize, value) for name, value in self.arguments.items()}

    def shapes_at(self, sizes: Mapping[Symbol, int]) -> tuple[object, ...]:
        """The shapes of the input tensors at other sizes; for a tensor of another layout, its identity."""
        pairs = zip(tensors(self.arguments), self.varying, strict=True)
        return tuple(
            tuple(sizes[dims[d]] if d in dims else n for d, n in enumerate(t.shape))
            if t.layout == torch.strided
            else id(t)
            for t, dims in pairs
        )


def _resized(tensor: T, dim: int, size: int, values: bool) -> T:
    if not values and tensor.layout == torch.strided:
        return tensor.new_empty((*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]))
    if tensor.shape[dim] == 0:
        return tensor.new_zeros((*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]))
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])


def read_inputs(model: nn.Module, example_inputs: Examples, dynamic: Dynamic | None) -> Inputs:
    """Bind example inputs to `forward` and decide which dimensions vary.

    By default the batch is dimension 0 of every tensor whose dimension 0 equals the first tensor's, and the length is
    dimension 1 of integer tensors (token ids, masks). There is one length per group of names; `decoder_…` is a group.
    A length of masks alone is that of the sound or features that they cover too.
    """
    arguments = _distinct(bind_inputs(model, example_inputs))
    check_layouts(model, arguments)
    given = (
        _by_position(inspect.signature(model.forward), example_inputs) if isinstance(example_inputs, Mapping) else None
    )
    positional = tuple(arguments) if given is None else tuple(arguments)[: len(given[0])]
    varying = _inferred(arguments) if dynamic is None else _stated(arguments, dynamic)
    return Inputs(arguments, varying, positional)


def _distinct(arguments: dict[str, object]) -> dict[str, object]:
    """One tensor given for several inputs becomes one tensor per input: a recording finds values by identity."""
    seen: set[int] = set()

    def own(tensor: T) -> T:
        if id(tensor) in seen:
            return tensor.detach()
        seen.add(id(tensor))
        return tensor

    return {name: map_tensors(own, value) for name, value in arguments.items()}


def bind_inputs(model: nn.Module, example_inputs: Examples) -> dict[str, object]:
    """The example inputs by parameter name of `forward`; those of `*args` are `args_0`, `args_1`, …"""
    signature = inspect.signature(model.forward)
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = {}
    if isinstance(example_inputs, T):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        args, kwargs = _by_position(signature, example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = example_inputs
    else:
        raise UtcError(
            f"example_inputs must be a tuple, a dict or a tensor, not {type(example_inputs).__name__}",
            code="capture/inputs",
        )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UtcError(
            "the example inputs do not fit the model's forward",
            why=f"{error}",
            fix=f"{type(model).__name__}.forward takes {signature}",
            code="capture/inputs",
        ) from error
    result: dict[str, object] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            result.update({f"{name}_{i}": member for i, member in enumerate(value)})
        else:
            result.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    for name in result:
        if keyword.iskeyword(name):
            raise UtcError(
                f"an example input is named '{name}', a word of Python",
                fix="wrap the model in a module whose forward gives it another name",
                code="capture/inputs",
            )
    if not tensors(result):
        raise UtcError(
            "the example inputs contain no tensor",
            fix="give at least one tensor, e.g. torch.randn(2, 3, 224, 224)",
            code="capture/inputs",
        )
    return result


def _by_position(
    signature: inspect.Signature, given: Mapping[str, object]
) -> tuple[Sequence[object], Mapping[str, object]]:
    """Split inputs by name: `*args`, which a dict gives as a tuple, and all before it must be given by position."""
    names = list(signature.parameters)
    variadic = next((n for n in names if signature.parameters[n].kind is inspect.Parameter.VAR_POSITIONAL), "")
    members = given.get(variadic) if variadic else None
    if not isinstance(members, (tuple, list)):
        return (), given
    before = [n for n in names[: names.index(variadic)] if n in given]
    rest = {n: v for n, v in given.items() if n != variadic and n not in before}
    return [*(given[n] for n in before), *members], rest


def _inferred(arguments: dict[str, object]) -> tuple[dict[int, Symbol], ...]:
    first = next((t for t in tensors(arguments) if t.dim()), None)
    lengths: dict[tuple[str, int], Symbol] = {}
    found: list[dict[int, Symbol]] = []
    for name, value in arguments.items():
        for t in tensors(value):
            dims: dict[int, Symbol] = {}
            if first is not None and t.dim() and t.shape[0] == first.shape[0]:
                dims[0] = BATCH
            if t.dim() == 2 and _is_token(t) and t.shape[1] > 1:
                group = "decoder_" if name.startswith("decoder_") else ""
                key = (group, t.shape[1])
                label = "L" if not lengths else f"L{len(lengths) + 1}"
                dims[1] = lengths.setdefault(key, Symbol(label, t.shape[1]))
            found.append(dims)
    return _with_what_masks_cover(arguments, found)


def _with_what_masks_cover(
    arguments: Mapping[str, object], found: Sequence[dict[int, Symbol]]
) -> tuple[dict[int, Symbol], ...]:
    """A length that masks alone have is also that of the sound or the features that they cover.

    It is the one dimension, behind the batch, that has this size, of floating-point inputs `(B, n)` or `(B, n, m)`.
    """
    given = [(name, t, dict(dims)) for (name, t), dims in zip(_named(arguments), found, strict=True)]
    for symbol in dict.fromkeys(dims[1] for _, _, dims in given if 1 in dims):
        beside = [(name, t.shape[1]) for name, t, dims in given if dims.get(1) == symbol]
        covered = [
            (dims, d)
            for _, t, dims in given
            for d in range(1, t.dim())
            if t.dim() in (2, 3) and t.is_floating_point() and t.shape[d] == beside[0][1] and BATCH in dims.values()
        ]
        if len(covered) == 1 and all("mask" in name for name, _ in beside):
            dims, d = covered[0]
            dims[d] = symbol
    return tuple(dims for _, _, dims in given)


def _named(arguments: Mapping[str, object]) -> list[tuple[str, T]]:
    return [(name, t) for name, value in arguments.items() for t in tensors(value)]


def _is_token(t: T) -> bool:
    return not t.is_floating_point() and not t.is_complex()


def _stated(arguments: dict[str, object], dynamic: Dynamic) -> tuple[dict[int, Symbol], ...]:
    check_type(dynamic, (str, Sequence, Mapping), "dynamic", "names of inputs, or a mapping to dimensions")
    asked: dict[str, object] = (
        dict(dynamic)
        if isinstance(dynamic, Mapping)
        else dict.fromkeys([dynamic] if isinstance(dynamic, str) else dynamic)
    )
    named = [(n, name, t) for name, value in arguments.items() for n, t in named_tensors(name, value)]
    for name in asked:
        if name not in arguments and name not in [n for n, _, _ in named]:
            raise UtcError(
                f"dynamic names {name!r}, which is no input", fix=did_you_mean(name, arguments), code="capture/dynamic"
            )
    known: dict[str, Symbol] = {}
    chosen = [(n if n in asked else name, t) for n, name, t in named]
    return tuple(_dimensions(name, t, asked[name], known) if name in asked else {} for name, t in chosen)


def named_tensors(name: str, value: object) -> Iterator[tuple[str, T]]:
    """The tensors in an argument, as a person reads them: `x`, `batch['mask']`, `features[0]`."""
    if isinstance(value, T):
        yield name, value
        return
    for key, part in parts(value):
        yield from named_tensors(f"{name}[{key!r}]", part)


def _dimensions(name: str, t: T, asked: object, known: dict[str, Symbol]) -> dict[int, Symbol]:
    """One input's entry of `dynamic=`: None (the batch), or dimension -> name."""
    dims = {0: "B"} if asked is None else asked
    if not isinstance(dims, Mapping):
        raise UtcError(
            f"dynamic gives {asked!r} for {name!r}",
            why="it takes dimension numbers and names",
            fix=f'write dynamic={{"{name}": {{0: "B", 2: "H"}}}}',
            code="capture/dynamic",
        )
    found: dict[int, Symbol] = {}
    for dim, label in dims.items():
        if not isinstance(dim, int) or not -t.dim() <= dim < t.dim():
            raise UtcError(f"dynamic names dimension {dim!r} of {name!r}, which has {t.dim()}", code="capture/dynamic")
        size = t.shape[dim]
        if dim % t.dim() == 0 and str(label).lower() in ("b", "batch", "n", "batch_size"):
            found[0] = BATCH
            continue
        step = 1 if _is_token(t) else next(s for s in (32, 16, 8, 4, 2, 1) if size % s == 0)
        symbol = known.setdefault(str(label), Symbol(str(label), size, step))
        if symbol.example != size:
            raise UtcError(
                f"dynamic gives {label!r} to dimensions of different sizes",
                why=f"{symbol.example} and {size}",
                code="capture/dynamic",
            )
        found[dim % t.dim()] = symbol
    return found

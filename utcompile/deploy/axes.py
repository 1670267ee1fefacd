"""Which sizes of a model's inputs vary, how they are named in a file, and between which bounds the model is right."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.graph import Size, UtcGraphModule, info

BATCH = "batch"
_WORDS = {"B": BATCH, "L": "length"}  # what capture calls B and L
_LARGE = 2**20  # a size that is allowed here is taken as not bounded
_PERIOD = 128  # sizes in a row that are looked at for a step
Axes = tuple[Mapping[int, str], ...]
"""For each input tensor, the dimensions that vary, with the names of their axes."""


@dataclass(frozen=True)
class Axis:
    """A size that varies between calls.

    Attributes:
        name: of the axis in the file: `batch`, `length`, or as the capture named it.
        example: its size in the example.
        low, high: the smallest and the largest size that the guards allow; `high` is None where they set no bound.
        step: allowed sizes differ by multiples of this.
    """

    name: str
    example: int
    low: int = 1
    high: int | None = None
    step: int = 1

    def __str__(self) -> str:
        bounds = f"{self.low} to {self.high}" if self.high else f"from {self.low}"
        return f"{self.name} {bounds}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def to_dict(self) -> dict[str, object]:
        """For a file's metadata."""
        return {"name": self.name, "min": self.low, "max": self.high, "step": self.step}


def word_of(symbol: str) -> str:
    """The name of an axis for a symbol of the capture.

    >>> word_of("B"), word_of("L2"), word_of("height")
    ('batch', 'length2', 'height')
    """
    found = re.fullmatch(r"([BL])(\d*)", symbol)
    return _WORDS[found[1]] + found[2] if found else symbol


def guards_in_words(model: nn.Module) -> tuple[str, ...]:
    """The guards of a capture with the names that a file has for its axes."""
    symbols = {s for shape in _captured(model).values() for s in shape.values()} if _is_captured(model) else set()
    pattern = re.compile(
        r"(?<![\w.'\"])(" + "|".join(map(re.escape, sorted(symbols, key=len)[::-1])) + r")(?![\w'\"(])"
    )
    guards = [str(getattr(guard, "relation", guard)) for guard in getattr(model, "guards", ())]
    return tuple(pattern.sub(lambda m: word_of(m[1]), g) if symbols else g for g in guards)


def _is_captured(model: nn.Module) -> bool:
    return isinstance(model, UtcGraphModule)


def captured_axes(model: nn.Module, names: Sequence[str]) -> Axes | None:
    """What a captured model has dynamic, for each input by name; None where the model is not captured."""
    if not _is_captured(model):
        return None
    known = _captured(model)
    return tuple({d: word_of(s) for d, s in known.get(name.rstrip("_"), known.get(name, {})).items()} for name in names)


def _captured(model: nn.Module) -> dict[str, dict[int, str]]:
    """For each input of a captured model, the dimensions that vary, with the names of their symbols."""
    assert isinstance(model, UtcGraphModule)
    found: dict[str, dict[int, str]] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder" and (value := info(node).value) is not None:
            shape = {d: str(size) for d, size in enumerate(value.shape) if isinstance(size, Size)}
            found[str(node.target).lstrip("*")] = shape
        for name, varying in getattr(node.target, "varying", ()):  # the check of fixed sizes knows nested inputs too
            found.setdefault(_flat(name), dict(varying))
    return found


def _flat(name: str) -> str:
    """`pair[0]['mask']` as a file names it: `pair_0_mask`."""
    return re.sub(r"\['?([^\]']*)'?\]", r"_\1", name)


def asked_axes(names: Sequence[str], tensors: Sequence[Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> Axes:
    """`dynamic=` of an export, checked against the inputs.

    Raises:
        UtcError: an input or a dimension that is not there, or a name that is no text.
    """
    check_type(dynamic, Mapping, "dynamic", 'a mapping as {"x": {0: "batch", 2: "height"}}')
    for name, shape in dynamic.items():
        if name not in names:
            raise UtcError(
                f"dynamic names {name!r}, which is no input", fix=did_you_mean(name, names), code="export/inputs"
            )
        check_type(shape, Mapping, f"dynamic[{name!r}]", "a mapping from dimensions to names")
        rank = tensors[list(names).index(name)].dim()
        for dim, axis in shape.items():
            if not isinstance(dim, int) or not 0 <= dim < rank or not isinstance(axis, str) or not axis.isidentifier():
                raise UtcError(
                    f"dynamic[{name!r}] has {dim!r}: {axis!r}",
                    why=f"{name!r} has {rank} dimensions",
                    fix='write dimensions and names, as {0: "batch", 2: "height"}',
                    code="export/inputs",
                )
    return tuple({d: word_of(s) for d, s in sorted(dynamic.get(name, {}).items())} for name in names)


def check_asked(asked: Axes, captured: Axes, names: Sequence[str], model: nn.Module) -> None:
    """Raise where a size should vary that the capture has fixed."""
    for name, wanted, known in zip(names, asked, captured, strict=True):
        for dim in wanted:
            if dim not in known:
                pinned = [str(one) for one in getattr(getattr(model, "report", None), "pinned", ())]
                raise UtcError(
                    f"dimension {dim} of {name!r} is fixed in the captured model",
                    why="; ".join(pinned) or "it was captured with this size of the example",
                    fix=f'capture the model again with dynamic={{"{name}": {{{dim}: "{wanted[dim]}"}}}}',
                    code="export/fixed-size",
                )


def sizes_in(axes: Axes, tensors: Sequence[Tensor], names: Sequence[str]) -> dict[str, int]:
    """The size of each axis in example tensors, in the order in which they are met.

    Raises:
        UtcError: two dimensions of one name differ.
    """
    found: dict[str, int] = {}
    for name, shape, tensor in zip(names, axes, tensors, strict=True):
        for dim, axis in shape.items():
            if found.setdefault(axis, tensor.shape[dim]) != tensor.shape[dim]:
                raise UtcError(
                    f"the axis {axis!r} is {found[axis]} in one input and {tensor.shape[dim]} in {name!r}",
                    fix="give the inputs one size there, or name the axes apart",
                    code="export/inputs",
                )
    return found


def is_allowed(model: nn.Module) -> Callable[[Mapping[str, int]], bool]:
    """Whether the guards on sizes of a captured model allow sizes, given by the names of axes."""
    if not _is_captured(model):
        return lambda _: True
    assert isinstance(model, UtcGraphModule)
    symbols = {s for shape in _captured(model).values() for s in shape.values()}
    checks = [n.target for n in model.graph.nodes if hasattr(n.target, "tests") and set(n.target.names) <= symbols]
    asked = [([word_of(s) for s in check.names], check.tests) for check in checks]

    def allowed(sizes: Mapping[str, int]) -> bool:
        return all(
            test(*(sizes[name] for name in names))
            for names, tests in asked
            if all(name in sizes for name in names)
            for test in tests
        )

    return allowed


def bounded(model: nn.Module, example: Mapping[str, int]) -> tuple[Axis, ...]:
    """Each axis with the bounds that the guards set, the others being as in the example."""
    allowed = is_allowed(model)
    return tuple(_bounds(name, size, _alone(allowed, example, name)) for name, size in example.items())


def _alone(
    allowed: Callable[[Mapping[str, int]], bool], example: Mapping[str, int], name: str
) -> Callable[[int], bool]:
    return lambda size: allowed({**example, name: size})


def _bounds(name: str, size: int, allowed: Callable[[int], bool]) -> Axis:
    low = next((n for n in range(1, size) if allowed(n)), size)
    high = _highest(size, allowed)
    seen = [n for n in range(low, low + 4 * _PERIOD) if n == size or allowed(n)]
    step = math.gcd(*(b - a for a, b in itertools.pairwise(seen))) or 1
    return Axis(name, size, low, high, step)


def _highest(size: int, allowed: Callable[[int], bool]) -> int | None:
    """The largest size that is allowed; None where there is no bound."""

    def some(start: int) -> bool:
        return any(allowed(start + n) for n in range(_PERIOD))

    if some(_LARGE):
        return None
    low, high = size, _LARGE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if some(middle) else (low, middle)
    return max((n for n in range(low, low + _PERIOD) if allowed(n)), default=size)

"""Guards: decisions of the model's Python code by sizes and properties, checked in every call of the captured graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from utcompile.errors import GuardError
from utcompile.recording.expressions import FUNCTIONS


@dataclass(frozen=True)
class Guard:
    """A relation that was true at capture and must be true in every call.

    Attributes:
        relation: as a person reads it: `L <= 16`, `B % 8 == 0`, `x.requires_grad is False`.
        source: the line of the model's code that decided by it.
        fix: the example for which the model can be captured again.

    Example:
        >>> print(Guard("L <= 16", "modeling_rope_utils.py:301 in forward"))
        L <= 16 (modeling_rope_utils.py:301)
    """

    relation: str
    source: str
    fix: str = "capture it again with an example of this kind"

    def __str__(self) -> str:
        return f"{self.relation} ({self.source.partition(' in ')[0]})"

    def refuse(self, found: str) -> GuardError:
        """The error of a call in which the relation is not true."""
        return GuardError(
            f"this capture is right for {self.relation}, and the call has {found}",
            where=self.source,
            why="the model's Python code decides by it, and would run otherwise",
            fix=self.fix,
            code="call/guard",
        )


_LAYER = re.compile(r"(?<=\.)\d+(?=[.:])")  # the number of a layer in a dotted name


def grouped(guards: Iterable[Guard]) -> tuple[Guard, ...]:
    """Guards for a list: those that a line of the model asks of each layer alike are one.

    Example:
        >>> asked = [Guard(f"layers.{i}.mixer.pad.shape[1] % 128 == 0", "model.py:3") for i in (0, 2, 4)]
        >>> print(*grouped(asked))
        layers.*.mixer.pad.shape[1] % 128 == 0 (model.py:3)
    """
    found: dict[tuple[str, str], list[Guard]] = {}
    for guard in guards:
        found.setdefault((_LAYER.sub("*", guard.relation), guard.source), []).append(guard)
    return tuple(replace(alike[0], relation=_in_common([g.relation for g in alike])) for alike in found.values())


def _in_common(relations: Sequence[str]) -> str:
    """Relations that differ in numbers of layers, with `*` for those in which they differ."""
    numbers = [*zip(*(_LAYER.findall(r) for r in relations), strict=True)]
    shown = iter(n[0] if len(set(n)) == 1 else "*" for n in numbers)
    return _LAYER.sub(lambda _: next(shown), relations[0])


class SizeCheck:
    """All guards on sizes that can be asked at one place of the graph: one call with the sizes as its arguments.

    Args:
        guards: the guards.
        names: of the sizes, as a person reads them; one per argument.
        codes: one Python body per guard, over the arguments `v0`, `v1` …

    Example:
        >>> check = SizeCheck((Guard("B <= 6", "model.py:3"),), ("B",), ("return v0 <= 6",))
        >>> check(4)
        >>> check(9)
        Traceback (most recent call last):
        utcompile.errors.GuardError: model.py:3: this capture is right for B <= 6, and the call has B=9
          why: the model's Python code decides by it, and would run otherwise
          fix: capture it again with an example of this kind
    """

    __name__ = "check_sizes"

    def __init__(self, guards: Sequence[Guard], names: Sequence[str], codes: Sequence[str]) -> None:
        self.guards, self.names, self.codes = tuple(guards), tuple(names), tuple(codes)
        self.tests = tuple(_compiled(code, len(names)) for code in codes)
        self.asked = True  # not while a model is exported: guards narrow a file, and are no part of it

    def __call__(self, *sizes: int) -> None:
        if not self.asked:
            return
        for test in self.tests:
            if not test(*sizes):
                self._refuse(sizes)

    def _refuse(self, sizes: Sequence[int]) -> None:
        guard = next(g for g, test in zip(self.guards, self.tests, strict=True) if not test(*sizes))
        raise guard.refuse(", ".join(f"{n}={v}" for n, v in zip(self.names, sizes, strict=True)))

    def __reduce__(self) -> tuple[object, ...]:
        return SizeCheck, (self.guards, self.names, self.codes)

    def __deepcopy__(self, memo: dict[int, object]) -> SizeCheck:
        return self


def _compiled(code: str, count: int) -> Callable[..., object]:
    """The function of a body that `conditions` wrote; it names nothing but its arguments and the functions of sizes."""
    body = "\n".join(f"    {line}" for line in code.splitlines())
    scope: dict[str, Callable[..., object]] = {**FUNCTIONS, "float": float}
    exec(f"def test({', '.join(f'v{i}' for i in range(count))}):\n{body}", scope)
    return scope["test"]


@dataclass(frozen=True)
class FlagCheck:
    """A property of a tensor that Python read: `requires_grad`, `is_contiguous`."""

    guard: Guard
    property: str
    value: bool
    __name__ = "check_flag"

    def __call__(self, tensor: torch.Tensor) -> None:
        found = getattr(tensor, self.property)
        if (found() if callable(found) else found) is not self.value:
            raise self.guard.refuse(str(not self.value))


@dataclass(frozen=True)
class StructureCheck:
    """An argument that is a container: its structure, and the values in it that are no tensors.

    Example:
        >>> check = StructureCheck.of("config", {"scale": 2.0})
        >>> check({"scale": 2.0})
        >>> check({"scale": 5.0})
        Traceback (most recent call last):
        utcompile.errors.GuardError: the captured model was recorded with config['scale']=2.0, not 5.0
          why: values that are no tensors are part of the graph
          fix: capture it again with this argument among the example inputs
    """

    name: str
    structure: Structure
    __name__ = "check_structure"

    @classmethod
    def of(cls, name: str, value: object) -> StructureCheck:
        """The check of an argument as it was given at capture."""
        return cls(name, Structure.of(value))

    def __call__(self, value: object) -> None:
        found = Structure.of(value)
        if found != self.structure:
            at, recorded, given = _difference(self.structure, found, self.name)
            raise GuardError(
                f"the captured model was recorded with {at}={recorded}, not {given}",
                why="values that are no tensors are part of the graph",
                fix="capture it again with this argument among the example inputs",
                code="call/guard",
            )

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Structure:
    """A value without its tensors.

    Attributes:
        kind: its class; every tensor counts as a `torch.Tensor`.
        members: of a container, by key or index; None for everything else.
        value: the value itself where it is a plain one, as a tuple of one; else empty.
    """

    kind: type
    members: tuple[tuple[object, Structure], ...] | None = None
    value: tuple[object, ...] = ()

    @classmethod
    def of(cls, value: object) -> Structure:
        """The structure of a value."""
        if isinstance(value, torch.Tensor):
            return cls(torch.Tensor)
        if isinstance(value, (dict, tuple, list)):
            members = value.items() if isinstance(value, dict) else enumerate(value)
            return cls(type(value), tuple((k, cls.of(v)) for k, v in members))
        is_plain = isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device))
        return cls(type(value), None, (value,) if is_plain else ())

    def __str__(self) -> str:
        if self.kind is torch.Tensor:
            return "a tensor"
        if self.members is not None:
            return f"a {self.kind.__name__} of {', '.join(repr(k) for k, _ in self.members) or 'nothing'}"
        return repr(self.value[0]) if self.value else f"a {self.kind.__name__}"


def _difference(recorded: Structure, given: Structure, name: str) -> tuple[str, Structure, Structure]:
    """The first place where two structures differ."""
    mine, theirs = recorded.members or (), given.members or ()
    if recorded.kind is given.kind and [k for k, _ in mine] == [k for k, _ in theirs]:
        for (key, a), (_, b) in zip(mine, theirs, strict=True):
            if a != b:
                return _difference(a, b, f"{name}[{key!r}]")
    return name, recorded, given

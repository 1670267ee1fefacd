"""The table of operations as mappings from callables, methods and classes of torch to canonical operations."""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, reduce
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from utcompile.graph.affine_norm import affine_batch_norm
from utcompile.ops import ROWS

_HOMES: Mapping[str, object] = {"F": F, "nn": nn, "op": operator, "T": torch.Tensor, "py": builtins, "torch": torch}
# other names that torch also accepts, or that a module uses
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "input": ("self", "a", "x", "mat_a"),
    "mat2": ("mat_b",),
    "other": ("mat2", "vec2", "tensor", "tensor2", "x2"),
    "dim": ("axis",),
    "dims": ("axes", "axis", "dim"),
    "dim0": ("axis0",),
    "dim1": ("axis1",),
    "keepdim": ("keepdims",),
    "p": ("ord",),
    "indices_or_sections": ("indices", "sections"),
    "split_size_or_sections": ("split_size", "split_sizes"),
    "sizes": ("unflattened_size",),
    "pad": ("padding",),
    "shape": ("size", "dtype"),
    "size": ("shape",),
    "tensors": ("inputs",),
    "correction": ("ddof",),
}


@dataclass(frozen=True)
class Spelling:
    """How one callable's arguments map to a canonical operation's schema.

    Attributes:
        name: the canonical name.
        schema: argument names in order.
        defaults: the values of arguments that are left out.
        variadic: the argument that takes all the remaining positional ones: `x.permute(0, 2, 1)`.
        fixed: attributes that this spelling says by its own name: `avg_pool2d` says `kind=avg`.
        spatial: the number of spatial dimensions in its name, to which a single size applies.
    """

    name: str
    schema: tuple[str, ...]
    defaults: Mapping[str, object]
    variadic: str | None = None
    fixed: Mapping[str, object] = field(default_factory=dict)
    spatial: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def spoken(self) -> tuple[str, ...]:
        """The arguments that say something about what is computed, in order."""
        return tuple(name for name in self.schema if not self.silent(name))

    @cached_property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:
        """The other names of arguments, where there are some."""
        found: dict[str, tuple[str, ...]] = {}
        for alias, name in self.renamed.items():
            found[name] = (*found.get(name, ()), alias)
        return found

    def silent(self, argument: str) -> bool:
        """Whether an argument says nothing about what is computed."""
        return argument.startswith("_") or argument in ("inplace", "out")


def read_signature(name: str, text: str, spatial: int) -> Spelling:
    """A row's signature; raises SyntaxError or ValueError where it is none."""
    signature, _, stated = text.partition(";")
    arguments = ast.parse(f"def f({signature}): pass").body[0].args  # type: ignore[attr-defined]
    plain = [*arguments.posonlyargs, *arguments.args]
    pairs = list(zip(reversed(plain), reversed(arguments.defaults), strict=False))
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    schema = [a.arg for a in plain]
    variadic = arguments.vararg.arg if arguments.vararg else None
    schema += [variadic] if variadic else []
    schema += [a.arg for a in arguments.kwonlyargs]
    fixed = dict(part.strip().split("=", 1) for part in stated.split(", ") if part.strip())
    renamed = {alias: name for name in schema for alias in _ALIASES.get(name, ()) if alias not in schema}
    return Spelling(
        name,
        tuple(schema),
        {a.arg: ast.literal_eval(d) for a, d in pairs},
        variadic,
        {k: _literal(v) for k, v in fixed.items()},
        spatial,
        renamed,
    )


def _literal(text: str) -> object:
    dtype = getattr(torch, text, None)
    if isinstance(dtype, torch.dtype):
        return dtype
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def _homes(spelled: str) -> Iterator[tuple[object, str]]:
    """The namespaces that a spelling of the table speaks of, and the name in them."""
    first, _, rest = spelled.partition(".")
    if not rest:
        yield from ((torch, spelled), (torch.Tensor, spelled))
    elif first in _HOMES:
        path, _, last = rest.rpartition(".")
        yield reduce(getattr, path.split(".") if path else (), _HOMES[first]), last
    else:
        path, _, last = spelled.rpartition(".")
        yield reduce(getattr, path.split("."), torch), last


def spelled(word: str) -> list[tuple[str, object]]:
    """The callables behind a word of the table: `("function", f)`, `("method", name)` or `("module", class)`.

    Example:
        >>> [kind for kind, _ in spelled("relu")], spelled("T.float"), spelled("nn.ReLU")
        (['function', 'function', 'method', 'method'], [('method', 'float')], [('module', <class '...ReLU'>)])
    """
    found: list[tuple[str, object]] = []
    for home, name in _homes(word):
        for variant in (name, f"{name}_"):
            value = getattr(home, variant, None)
            if value is None or (home is operator and variant != name):
                continue
            if home is torch.Tensor:
                found.append(("method", variant))
            else:
                found.append(("module" if home is nn else "function", value))
    return found


def _digit(word: str) -> int:
    return next((n for n in (1, 2, 3) if word.endswith(f"{n}d")), 0)


def _tables() -> tuple[dict[Callable[..., object], Spelling], dict[str, Spelling], dict[type, Spelling]]:
    functions: dict[Callable[..., object], Spelling] = {}
    methods: dict[str, Spelling] = {}
    modules: dict[type, Spelling] = {}
    tables: dict[str, dict[Any, Spelling]] = {"function": functions, "method": methods, "module": modules}
    for row in ROWS.values():
        for signature, words in row.spellings:
            for word in words.split():
                spelling = read_signature(row.name, signature, _digit(word))
                for kind, value in spelled(word):
                    tables[kind].setdefault(value, spelling)
    functions[affine_batch_norm] = functions[F.batch_norm]  # ours, the same call
    return functions, methods, modules


functions, _methods, modules = _tables()  # registered operations are added to these
FUNCTIONS: Mapping[Callable[..., object], Spelling] = MappingProxyType(functions)
METHODS: Mapping[str, Spelling] = MappingProxyType(_methods)
MODULES: Mapping[type, Spelling] = MappingProxyType(modules)


@cache
def function_of(name: str) -> Callable[..., torch.Tensor]:
    """The function of torch that is an operation, of `torch.nn.functional` where there is one.

    >>> function_of("conv2d") is F.conv2d, function_of("einsum") is torch.einsum
    (True, True)
    """
    found = next(value for kind, value in _spelled_by(name) if kind == "function")
    return cast(Callable[..., torch.Tensor], found)


@cache
def module_of(name: str) -> type[nn.Module] | None:
    """The class of torch whose modules are an operation; None where there is none.

    >>> module_of("silu"), module_of("add")
    (<class 'torch.nn.modules.activation.SiLU'>, None)
    """
    found = (value for kind, value in _spelled_by(name) if kind == "module")
    return next((value for value in found if isinstance(value, type)), None)


def _spelled_by(name: str) -> Iterator[tuple[str, object]]:
    for _, words in ROWS[name].spellings:
        for word in words.split():
            yield from spelled(word)


def spelling_of_module(leaf: nn.Module) -> Spelling | None:
    """The spelling of a leaf module: its class's, or that of a class of torch whose `forward` it inherits."""
    for cls in type(leaf).__mro__:
        found = MODULES.get(cls)
        if found is not None:
            return found if type(leaf).forward is vars(cls).get("forward", type(leaf).forward) else None
    return None

"""A random model as data: trees of statements and expressions that print as Python source.

The printed source runs as a script of its own, so that a failure is one file; each statement has its own line.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

PREAMBLE = """\
import bisect
import functools
import math
import operator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

TABLE = [3, 1, 4, 1, 5, 9, 2, 6]
NAMED = {2: 3, 4: 1, 7: 2}


def rand(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def ids(*size, seed=0):
    return torch.randint(0, 20, size, generator=torch.Generator().manual_seed(seed))
"""


@dataclass(frozen=True)
class Expr:
    """Source with holes `{0}`, `{1}` for smaller expressions."""

    text: str
    parts: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return self.text.format(*self.parts)


@dataclass(frozen=True)
class Statement:
    """Lines with holes for expressions; a line `@0` is where a body goes."""

    text: str
    parts: tuple[Expr, ...] = ()
    bodies: tuple[tuple[Statement, ...], ...] = ()

    def lines(self) -> list[str]:
        found = []
        for line in self.text.format(*self.parts).splitlines():
            words = line.strip()
            if words.startswith("@"):
                pad = line[: len(line) - len(words)]
                body = [inner for s in self.bodies[int(words[1:])] for inner in s.lines()] or ["pass"]
                found += [pad + inner for inner in body]
            else:
                found.append(line)
        return found


@dataclass(frozen=True)
class Call:
    """Arguments as source, in the order of the model's inputs."""

    label: str
    arguments: tuple[str, ...]
    grad: bool = True

    def __str__(self) -> str:
        return f"({', '.join(self.arguments)},)"


@dataclass(frozen=True)
class Program:
    """A model, its example, and sequences of calls beyond it; each sequence starts with a fresh model."""

    seed: int
    inputs: tuple[str, ...]
    init: tuple[str, ...]
    body: tuple[Statement, ...]
    inner_init: tuple[str, ...]
    inner: tuple[Statement, ...]
    returns: str
    dynamic: str
    example: Call
    calls: tuple[tuple[Call, ...], ...]

    @property
    def source(self) -> str:
        """The model's module: the preamble and its classes."""
        parts = [PREAMBLE]
        if any("self.inner(" in line for s in self.body for line in s.lines()):
            parts.append(_class("Inner", "h, x", self.inner_init, self.inner, "h"))
        start = "h = x" if "self.embed" not in "".join(self.init) else "h = self.embed(x)"
        parts.append(_class("Model", ", ".join(self.inputs), self.init, (Statement(start), *self.body), self.returns))
        return "\n\n".join(parts)

    @property
    def script(self) -> str:
        """A file that shows how the capture differs from the model."""
        lines = [
            "",
            "",
            "import copy, utcompile as utc",
            "torch.manual_seed(0)",
            "model = Model().eval().requires_grad_(False)",
            f"captured = utc.capture(copy.deepcopy(model), {self.example}, dynamic={self.dynamic})",
        ]
        for sequence in self.calls:
            lines.append("m, c = copy.deepcopy(model), copy.deepcopy(captured)")
            for call in sequence:
                with_grad = "" if call.grad else "with torch.no_grad(): "
                lines += [f"{with_grad}print({call.label!r}, '\\n model  ', m(*{call}))"]
                lines += [f"{with_grad}print(' capture', c(*{call}))"]
        return self.source + "\n".join(lines) + "\n"


def _class(name: str, inputs: str, init: tuple[str, ...], body: tuple[Statement, ...], returns: str) -> str:
    lines = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in init]
    lines += ["", f"    def forward(self, {inputs}):"]
    text = "\n".join([line for s in body for line in s.lines()] + [f"return {returns}"])
    return "\n".join(lines) + "\n" + textwrap.indent(text, " " * 8) + "\n"

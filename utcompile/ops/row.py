"""One row of the table of operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from utcompile.ops.traits import Axes, Trait

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """An operation.

    Attributes:
        name: the word by which patterns and passes know it.
        gloss: its description, in one line; empty where no pattern can name it.
        traits: its properties.
        axes: how it carries the axes of what it reads.
        spellings: pairs of a signature and the callables that have it, in the notation of `spellings.py`.
        flops: the number of floating-point operations, from the shapes that it reads and the shape that it yields;
            None for one per element of its result, or what its traits say.
    """

    name: str
    gloss: str
    traits: Trait
    axes: Axes
    spellings: tuple[tuple[str, str], ...]
    flops: Callable[[list[Shape], Shape], int] | None = None


def op(name: str, gloss: str, traits: Trait, axes: Axes, *spellings: str) -> Row:
    """A row; its spellings are a signature, the callables that have it, another signature, and so on."""
    return Row(name, gloss, traits, axes, tuple(zip(spellings[::2], spellings[1::2], strict=True)))

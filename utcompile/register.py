"""`utc.register_operation`: teach the compiler a custom kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.graph.register import register
from utcompile.ops import Axes, Row, Trait
from utcompile.rules import library_patterns
from utcompile.rules.names import CLASSES, STRUCTURAL

# what the passes may believe of a kernel whose code they do not see; what a proof does not check is not offered
_TRAITS = {
    trait.name.lower(): trait
    for trait in (
        Trait.SAME, Trait.MOVES, Trait.VIEW, Trait.LAYOUT, Trait.COMMUTATIVE, Trait.ACTIVATION, Trait.NORM,
        Trait.HOMOGENEOUS, Trait.POSITIVE, Trait.SATURATES, Trait.IDENTITY_ABOVE_ZERO, Trait.ODD_PART, Trait.COUNTED,
    )
    if trait.name is not None
}  # fmt: skip
_AXES = {
    axes.value: axes
    for axes in (
        Axes.KEEP, Axes.TOGETHER, Axes.REDUCE, Axes.ALONG, Axes.LINEAR, Axes.CHANNEL_NORM, Axes.LAST_NORM, Axes.MATMUL,
        Axes.SDPA, Axes.UNKNOWN,
    )
}  # fmt: skip

Shape = tuple[int, ...]


def register_operation(
    name: str,
    gloss: str,
    signature: str,
    spellings: Iterable[object],
    *,
    traits: Iterable[str] = (),
    axes: str = "unknown",
    flops: Callable[[list[Shape], Shape], int] | None = None,
) -> None:
    """Teach the compiler a custom kernel, before models that call it are captured.

    Patterns may then call it by its name, channels are followed through it, and its cost is counted.

    Args:
        name: the word for patterns, such as `fused_gelu`.
        gloss: what it computes, in one line.
        signature: its arguments as in Python, as the kernel names them: `"x, scale=1.0"`.
        spellings: what is called: a `torch.library.custom_op`, an operator of `torch.ops` or its name
            `"torch.ops.mine.fused_gelu"`, or the class of a leaf module.
        traits: what is true of it: `same`, `moves`, `view`, `layout`, `commutative`, `activation`, `norm`,
            `homogeneous`, `positive`, `saturates`, `identity_above_zero`, `odd_part`, `counted`.
        axes: how it carries axes: `keep` (those of its first operand), `together` (of all operands, broadcast),
            `reduce` (without those in its argument `dim`), `along` (those in `dim` hold other places), `linear` (the
            last becomes new channels), `channel_norm`, `last_norm`, `matmul`, `sdpa`, or `unknown`.
        flops: the shapes that it reads and the shape that it yields -> floating-point operations; without it, one per
            element of its result.

    Raises:
        UtcError: the name or a spelling is taken, the signature is not the kernel's, or a trait is unknown.

    Example:
        >>> import torch, utcompile as utc
        >>> from utcompile.graph.register import forget
        >>> @torch.library.custom_op("readme::twice", mutates_args=())
        ... def twice(x: torch.Tensor) -> torch.Tensor:
        ...     return x * 2
        >>> utc.register_operation("twice", "two times x", "x", [twice], traits=["homogeneous"], axes="keep")
        >>> utc.register_operation("twice", "x + x", "x", [twice])
        Traceback (most recent call last):
        ...
        utcompile.errors.UtcError: the operation 'twice' exists already
          why: two times x
          fix: choose another name
        >>> forget("twice")
    """
    for value, argument in ((name, "name"), (gloss, "gloss"), (signature, "signature"), (axes, "axes")):
        check_type(value, str, argument, "a text")
    if not name.isidentifier() or not name.islower():
        raise UtcError(
            f"{name!r} cannot be the name of an operation",
            fix="use small letters, digits and _",
            code="extend/operation",
        )
    if not gloss or "\n" in gloss:
        raise UtcError(
            f"the operation {name!r} needs one line that says what it computes",
            fix="give it as `gloss`",
            code="extend/operation",
        )
    if name in library_patterns() or name in CLASSES or name in STRUCTURAL:
        why = "a named pattern has it" if name in library_patterns() else "it is a word of patterns"
        raise UtcError(f"the name {name!r} is taken", why=why, fix="choose another name", code="extend/operation")
    row = Row(name, gloss, _traits(traits), _axes(axes), (), flops)
    given = [spellings] if isinstance(spellings, str) or callable(spellings) else [*spellings]
    register(row, signature, given)


def _traits(words: Iterable[str]) -> Trait:
    found = Trait(0)
    for word in [words] if isinstance(words, str) else words:
        if word not in _TRAITS:
            raise UtcError(f"unknown trait {word!r}", fix=did_you_mean(word, _TRAITS), code="extend/operation")
        found |= _TRAITS[word]
    return found


def _axes(word: str) -> Axes:
    if word not in _AXES:
        raise UtcError(f"no operation carries axes as {word!r}", fix=did_you_mean(word, _AXES), code="extend/operation")
    return _AXES[word]

"""What activations make of one another, and of the negated number."""

from __future__ import annotations

from collections.abc import Mapping

from utcompile.folding.folding import Unfoldable
from utcompile.graph import Operation
from utcompile.ops import Trait, having

Function = tuple[str, Mapping[str, object]]  # its canonical name and attributes

IDENTITY: Function = ("identity", {})
_POSITIVE = having(Trait.POSITIVE)
_FIXING = having(Trait.IDENTITY_ABOVE_ZERO)
_ODD_PART = having(Trait.ODD_PART)


def activation(op: Operation) -> Function:
    """An operation as a function of one number.

    Raises:
        Unfoldable: it is one for each channel.
    """
    if op.name == "prelu":
        raise Unfoldable("PReLU has one parameter per channel")
    return op.name, {k: v for k, v in op.attributes.items() if k != "inplace"}


def composed(first: Function, second: Function) -> Function:
    """`z -> second(first(z))`, where it is one of the two.

    Raises:
        Unfoldable: it is neither.

    Example:
        >>> composed(("sigmoid", {}), ("relu", {})), composed(("relu", {}), ("relu6", {}))
        (('sigmoid', {}), ('relu6', {}))
    """
    if IDENTITY in (first, second):
        return first if second == IDENTITY else second
    if (first[0] in _POSITIVE and second[0] in _FIXING) or first == second == ("relu6", {}):
        return first
    if (first[0], second[0]) == ("relu", "relu6"):
        return second
    raise Unfoldable(
        f"{second[0]} after {first[0]} is not idempotent, so nothing passes the depthwise convolution unchanged"
    )


def combination(mine: Function, theirs: Function) -> tuple[float, float]:
    """α and β with `mine(z) = α theirs(z) + β theirs(−z)`.

    Raises:
        Unfoldable: there are none.

    Example:
        >>> combination(("identity", {}), ("gelu", {"approximate": "none"}))
        (1.0, -1.0)
        >>> combination(("leaky_relu", {"negative_slope": 0.1}), ("relu", {}))
        (1.0, -0.1)
    """
    if mine == theirs:
        return 1.0, 0.0
    if mine == IDENTITY and theirs[0] in _ODD_PART:
        return 1.0, -1.0
    a, b = _slope(mine), _slope(theirs)
    if a is not None and b is not None and abs(b) != 1:  # both are linear on each side of zero
        return (1 - a * b) / (1 - b * b), (b - a) / (1 - b * b)
    raise Unfoldable(f"its activation is {mine[0]}, that of the layers parallel to it is {theirs[0]}")


def _slope(function: Function) -> float | None:
    """Of a function that is z above zero and `slope · z` below."""
    name, attributes = function
    if name == "leaky_relu":
        slope = attributes.get("negative_slope", 0.01)
        return float(slope) if isinstance(slope, int | float) else None
    return {"identity": 1.0, "relu": 0.0}.get(name)

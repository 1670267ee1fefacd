"""How near an operation is to that of a pattern: it has its name, its family, or neither."""

from __future__ import annotations

from enum import IntEnum

from torch import fx

from utcompile.graph import ACTIVATIONS, GraphView
from utcompile.ops import Trait, having
from utcompile.rules import Call

FAMILIES = ("activation", "norm", "pool", "conv_transpose", "conv", "dropout", "resample")  # each read as one word
_CONVS = having(Trait.CONV)
_CONV_WORDS = ("pointwise", "depthwise_conv")  # classes of these


class Kin(IntEnum):
    """From near to far."""

    SAME = 0  # the operation, with other attributes
    FAMILY = 1  # another activation, norm, convolution …
    NONE = 2


def kin(call: Call, node: fx.Node, view: GraphView) -> Kin:
    """How near a node is to the operation of a call."""
    classes = view.classes[node]
    if any(head.name in classes for head in call.heads):
        return Kin.SAME
    families_of_call = {family for head in call.heads for family in families(head.name)}
    return Kin.FAMILY if families_of_call & classes else Kin.NONE


def families(name: str) -> frozenset[str]:
    """The families of a pattern's word.

    >>> sorted(families("gelu")), sorted(families("pointwise")), sorted(families("sdpa"))
    (['activation'], ['conv'], [])
    """
    found = {name} & set(FAMILIES)
    if name in ACTIVATIONS:
        found.add("activation")
    if name.endswith("_norm"):
        found.add("norm")
    if name.startswith("conv_transpose"):
        found.add("conv_transpose")
    return frozenset(found | ({"conv"} if name in _CONVS or name in _CONV_WORDS else set()))

"""The words that a pattern may use: operations, classes of operations, and structural words."""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType

from utcompile.ops import GLOSSES, GROUPS, words

OPERATIONS: Mapping[str, str] = GLOSSES
OPERATIONS_BY_GROUP: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {group: MappingProxyType({row.name: row.gloss for row in rows}) for group, rows in GROUPS.items()}
)

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "conv": "any convolution, grouped too",
        "depthwise_conv": "a convolution with as many groups as channels",
        "conv_transpose": "any transposed convolution",
        "spatial_conv": "a convolution over space that mixes channels: of a kernel above 1, not depthwise",
        "pointwise": "a linear, or an ungrouped convolution with a kernel of 1, over the channels",
        "tokenwise": "a linear, or an ungrouped convolution with a kernel of 1, along the tokens",
        "activation": "any elementwise nonlinearity",
        "norm": "any normalisation",
        "branch_norm": "a norm whose result is not itself the stream: a pre-norm, not BERT's post-norm",
        "dropout": "dropout of elements, channels or whole paths",
        "pool": "any pooling, maximum or average, adaptive too",
        "layout": "reshape, transpose, permute and the like: no arithmetic",
        "resample": "interpolation or a pixel shuffle",
    }
)

STRUCTURAL: Mapping[str, str] = MappingProxyType(
    {
        "branch_tail": "the way of a value until it is added to the residual stream: LayerScale, dropout, layout",
        "any_tail": "branch_tail where the value is added to the stream, otherwise the value itself",
        "output_tail": "the way of a value until it is the model's output: layout, dtype, softmax",
        "stem_tail": "the way of the first layer's result to the first block: norm, pooling, positions",
        "on_stream": "the value itself, where it is on the stream: not in a branch or the stem",
        "block_end": "the value itself, where no ffn follows it on the stream: the end of a repeated unit",
        "skip": "nothing: the last alternative of an optional step",
        "path": "a chain of operations: path(x, through=conv | norm, max=6, min=1)",
    }
)

# `skip` and `path` have their own syntax; the tails are called like operations.
CALLABLE: Set[str] = words({*CLASSES, *STRUCTURAL} - {"skip", "path"})
RESERVED: Set[str] = words({*CLASSES, *STRUCTURAL})

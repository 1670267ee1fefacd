"""The words that a pattern may use: operations, classes of operations, and structural words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_Group = Mapping[str, str]

OPERATIONS_BY_GROUP: Mapping[str, _Group] = MappingProxyType(
    {
        "layers with a weight": MappingProxyType(
            {
                "linear": "x @ W.T + b over the last axis",
                "conv1d": "1-d convolution, of any groups",
                "conv2d": "2-d convolution, of any groups",
                "conv3d": "3-d convolution, of any groups",
                "conv_transpose1d": "1-d transposed convolution",
                "conv_transpose2d": "2-d transposed convolution",
                "conv_transpose3d": "3-d transposed convolution",
                "embedding": "rows of a table, chosen by integers",
                "lstm": "long short-term memory; several outputs",
                "gru": "gated recurrent unit; several outputs",
            }
        ),
        "products": MappingProxyType(
            {
                "matmul": "matrix product, batched too",
                "einsum": "product and sum by a formula",
                "sdpa": "scaled dot-product attention of q, k, v, fused or spelled out",
                "softmax": "exponentials that sum to one along an axis",
            }
        ),
        "elementwise": MappingProxyType(
            {
                "add": "sum of two values, in either order",
                "sub": "difference of two values",
                "mul": "product of two values, in either order",
                "div": "quotient of two values",
                "pow": "a value to a constant power",
                "neg": "a value with its sign changed",
            }
        ),
        "joining and cutting": MappingProxyType(
            {
                "cat": "values joined along an axis",
                "split": "several outputs: split, chunk, unbind, or indexing",
                "getitem": "one part of a value: x[:, 0]",
                "pad": "a border added",
                "roll": "a cyclic shift along axes",
                "reshape": "another shape of the same elements: view, flatten, unsqueeze",
                "transpose": "two axes exchanged",
                "permute": "axes in another order",
                "expand": "axes of size 1 repeated without a copy",
                "repeat": "a value repeated along its axes",
            }
        ),
        "pooling and resizing": MappingProxyType(
            {
                "pool": "maximum or average over windows, adaptive too",
                "mean": "mean over axes",
                "sum": "sum over axes",
                "max": "maximum over axes",
                "interpolate": "resize by interpolation",
                "pixel_shuffle": "channels moved into space",
                "pixel_unshuffle": "space moved into channels",
            }
        ),
        "activations": MappingProxyType(
            {
                "relu": "max(x, 0)",
                "relu6": "min(max(x, 0), 6)",
                "gelu": "x Φ(x), exact or by tanh",
                "quick_gelu": "x sigmoid(1.702 x)",
                "silu": "x sigmoid(x), also called swish",
                "sigmoid": "1 / (1 + exp(-x))",
                "tanh": "hyperbolic tangent",
                "hardswish": "x relu6(x + 3) / 6",
                "hardsigmoid": "relu6(x + 3) / 6",
                "elu": "x, or alpha (exp(x) - 1) below zero",
                "leaky_relu": "x, or a small slope below zero",
                "selu": "scaled elu",
                "mish": "x tanh(softplus(x))",
                "softplus": "log(1 + exp(x))",
                "prelu": "leaky_relu with a learned slope",
                "hardtanh": "x between two bounds",
                "celu": "elu, continuous in its derivative",
                "softsign": "x / (1 + |x|)",
                "softshrink": "x moved towards zero by λ",
                "hardshrink": "x, or zero near zero",
                "logsigmoid": "log(sigmoid(x))",
            }
        ),
        "norms": MappingProxyType(
            {
                "batch_norm": "by running or batch statistics of a channel",
                "layer_norm": "by the statistics of the last axes",
                "group_norm": "by the statistics of groups of channels",
                "instance_norm": "by the statistics of a channel of one sample",
                "rms_norm": "by the root mean square of the last axes",
                "local_response_norm": "by the energy of neighbouring channels",
            }
        ),
    }
)

CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "conv": "any convolution, grouped too",
        "depthwise_conv": "a convolution with as many groups as channels",
        "conv_transpose": "any transposed convolution",
        "pointwise": "a linear, or an ungrouped convolution with a kernel of 1",
        "activation": "any elementwise nonlinearity",
        "norm": "any normalisation",
        "dropout": "dropout of elements, channels or whole paths",
        "pool": "any pooling, maximum or average, adaptive too",
        "layout": "reshape, transpose, permute and the like: no arithmetic",
        "resample": "interpolation or a pixel shuffle",
    }
)

STRUCTURAL: Mapping[str, str] = MappingProxyType(
    {
        "branch_tail": "what becomes of a value until it is added to the residual stream: LayerScale, dropout, layout",
        "output_tail": "what becomes of a value until it is the model's output: layout, dtype, softmax",
        "skip": "nothing: the last alternative of an optional step",
        "path": "a chain of operations: path(x, through=conv | norm, max=6, min=1)",
    }
)

OPERATIONS: Mapping[str, str] = MappingProxyType(
    {name: line for group in OPERATIONS_BY_GROUP.values() for name, line in group.items()}
)

# `skip` and `path` have a syntax of their own; the tails are called as an operation is.
CALLABLE: frozenset[str] = frozenset({*OPERATIONS, *CLASSES, "branch_tail", "output_tail"})
RESERVED: frozenset[str] = frozenset({*OPERATIONS, *CLASSES, *STRUCTURAL})

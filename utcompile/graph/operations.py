"""One name for every spelling of an operation: module, function, method and operator.

`operation(node)` reads a node as an `Operation`: its canonical name, the tensors it reads, its attributes by schema
name with their defaults, and the parameters it uses. A spelling is one row of a table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.graph.meta import value_of


@dataclass(frozen=True)
class Operation:
    """A node, read canonically.

    Attributes:
        name: the canonical name, e.g. `conv2d`.
        inputs: the tensors it reads, in schema order, parameters and other state aside.
        attributes: everything else by schema name.
        parameters: role (`weight`, `bias` …) to the qualified name of the state it reads.
    """

    name: str
    inputs: tuple[fx.Node, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spelling:
    """How one callable's arguments map to a canonical operation's schema."""

    name: str
    schema: tuple[str, ...] = ("input",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variadic: str | None = None  # the last name takes all the remaining positional arguments: x.permute(0, 2, 1)


def _spell(name: str, schema: str = "input", variadic: str | None = None, **defaults: Any) -> Spelling:
    return Spelling(name, tuple(schema.split()), defaults, variadic)


_CONV = "input weight bias stride padding dilation groups"
_CONV_T = "input weight bias stride padding output_padding groups dilation"
_POOL = "input kernel_size stride padding"
_conv_defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

_ACTIVATIONS = (
    "relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh elu leaky_relu selu celu mish softplus softsign "
    "softshrink hardshrink prelu logsigmoid"
).split()
ACTIVATIONS = frozenset({*_ACTIVATIONS, "quick_gelu"})
_activation_schemas = {
    "gelu": _spell("gelu", "input approximate", approximate="none"),
    "elu": _spell("elu", "input alpha", alpha=1.0),
    "leaky_relu": _spell("leaky_relu", "input negative_slope", negative_slope=0.01),
    "hardtanh": _spell("hardtanh", "input min_val max_val", min_val=-1.0, max_val=1.0),
    "softplus": _spell("softplus", "input beta threshold", beta=1, threshold=20),
    "prelu": _spell("prelu", "input weight"),
}


def _functions() -> dict[Callable[..., Any], Spelling]:
    table: dict[Callable[..., Any], Spelling] = {
        F.linear: _spell("linear", "input weight bias", bias=None),
        F.embedding: _spell("embedding", "input weight padding_idx", padding_idx=None),
        F.scaled_dot_product_attention: _spell(
            "sdpa",
            "query key value attn_mask dropout_p is_causal scale enable_gqa",
            attn_mask=None,
            dropout_p=0.0,
            is_causal=False,
            scale=None,
            enable_gqa=False,
        ),
        F.batch_norm: _spell(
            "batch_norm",
            "input running_mean running_var weight bias training momentum eps",
            weight=None,
            bias=None,
            training=False,
            momentum=0.1,
            eps=1e-5,
        ),
        F.layer_norm: _spell("layer_norm", "input normalized_shape weight bias eps", weight=None, bias=None, eps=1e-5),
        F.group_norm: _spell("group_norm", "input num_groups weight bias eps", weight=None, bias=None, eps=1e-5),
        F.rms_norm: _spell("rms_norm", "input normalized_shape weight eps", weight=None, eps=None),
        F.instance_norm: _spell("instance_norm", "input running_mean running_var weight bias"),
        F.local_response_norm: _spell("local_response_norm", "input size alpha beta k"),
        F.dropout: _spell("dropout", "input p training", p=0.5, training=True),
        F.dropout2d: _spell("dropout", "input p training", p=0.5, training=True),
        F.softmax: _spell("softmax", "input dim", dim=None),
        torch.softmax: _spell("softmax", "input dim", dim=None),
        F.interpolate: _spell(
            "interpolate", "input size scale_factor mode", size=None, scale_factor=None, mode="nearest"
        ),
        F.pad: _spell("pad", "input pad mode value", mode="constant", value=None),
        F.normalize: _spell("normalize", "input p dim", p=2.0, dim=1),
        F.unfold: _spell("unfold", "input kernel_size dilation padding stride"),
        F.pixel_shuffle: _spell("pixel_shuffle", "input upscale_factor"),
        F.pixel_unshuffle: _spell("pixel_unshuffle", "input downscale_factor"),
        torch.einsum: _spell("einsum", "equation operands", variadic="operands"),
        torch.cat: _spell("cat", "tensors dim", dim=0),
        torch.concat: _spell("cat", "tensors dim", dim=0),
        torch.stack: _spell("stack", "tensors dim", dim=0),
        torch.tensor_split: _spell("split", "input indices_or_sections dim", dim=0),
        operator.matmul: _spell("matmul", "input other"),
        operator.getitem: _spell("getitem", "input index"),
        operator.setitem: _spell("setitem", "input index value"),
        operator.pow: _spell("pow", "input exponent"),
        operator.neg: _spell("neg"),
        torch.mean: _spell("mean", "input dim keepdim", dim=None, keepdim=False),
    }
    for n in (1, 2, 3):
        table[getattr(F, f"conv{n}d")] = Spelling(f"conv{n}d", tuple(_CONV.split()), _conv_defaults)
        table[getattr(F, f"conv_transpose{n}d")] = Spelling(
            f"conv_transpose{n}d", tuple(_CONV_T.split()), {**_conv_defaults, "output_padding": 0}
        )
        for kind in ("max", "avg"):
            table[getattr(F, f"{kind}_pool{n}d")] = _spell("pool", _POOL, kind=kind, stride=None, padding=0)
            table[getattr(F, f"adaptive_{kind}_pool{n}d")] = _spell(
                "pool", "input output_size", kind=f"adaptive_{kind}"
            )
        table[getattr(torch, f"conv{n}d")] = table[getattr(F, f"conv{n}d")]
    for name in _ACTIVATIONS:
        spelling = _activation_schemas.get(name, _spell(name))
        for home in (F, torch):
            for spelled in (name, f"{name}_"):
                function = getattr(home, spelled, None)
                if function is not None:
                    table[function] = spelling
    for name, functions in {
        "add": (operator.add, operator.iadd, torch.add),
        "sub": (operator.sub, operator.isub, torch.sub),
        "mul": (operator.mul, operator.imul, torch.mul, torch.multiply),
        "div": (operator.truediv, operator.itruediv, torch.div),
    }.items():
        for function in functions:
            table[function] = _spell(name, "input other")
    for name, schema in _METHODS.items():
        function = getattr(torch, name, None)
        if function is not None:
            table.setdefault(function, schema)
    return table


# methods of Tensor; functions of the same name in `torch` share the row
_METHODS: dict[str, Spelling] = {
    "add": _spell("add", "input other"),
    "sub": _spell("sub", "input other"),
    "mul": _spell("mul", "input other"),
    "div": _spell("div", "input other"),
    "matmul": _spell("matmul", "input other"),
    "bmm": _spell("matmul", "input other"),
    "pow": _spell("pow", "input exponent"),
    "view": _spell("reshape", "input shape", variadic="shape"),
    "reshape": _spell("reshape", "input shape", variadic="shape"),
    "view_as": _spell("reshape", "input other"),
    "flatten": _spell("reshape", "input start_dim end_dim", start_dim=0, end_dim=-1),
    "unflatten": _spell("reshape", "input dim sizes"),
    "squeeze": _spell("reshape", "input dim", dim=None),
    "unsqueeze": _spell("reshape", "input dim"),
    "permute": _spell("permute", "input dims", variadic="dims"),
    "transpose": _spell("transpose", "input dim0 dim1"),
    "swapaxes": _spell("transpose", "input dim0 dim1"),
    "movedim": _spell("permute", "input source destination"),
    "t": _spell("transpose", "input", dim0=0, dim1=1),
    "contiguous": _spell("contiguous"),
    "clone": _spell("contiguous"),
    "detach": _spell("detach"),
    "to": _spell("to", "input target", variadic="target"),
    "type_as": _spell("to", "input other"),
    "float": _spell("to"),
    "roll": _spell("roll", "input shifts dims", dims=None),
    "expand": _spell("expand", "input size", variadic="size"),
    "repeat": _spell("repeat", "input repeats", variadic="repeats"),
    "chunk": _spell("split", "input chunks dim", dim=0),
    "split": _spell("split", "input split_size_or_sections dim", dim=0),
    "unbind": _spell("split", "input dim", dim=0),
    "mean": _spell("mean", "input dim keepdim", dim=None, keepdim=False),
    "sum": _spell("sum", "input dim keepdim", dim=None, keepdim=False),
    "amax": _spell("max", "input dim keepdim", dim=None, keepdim=False),
    "softmax": _spell("softmax", "input dim", dim=None),
    "norm": _spell("vector_norm", "input p dim keepdim", p="fro", dim=None, keepdim=False),
}

_POOLS = {
    f"{prefix}{kind}Pool{n}d": f"{prefix.lower() and 'adaptive_'}{kind.lower()}"
    for prefix in ("", "Adaptive")
    for kind in ("Max", "Avg")
    for n in (1, 2, 3)
}
# leaf modules: class -> canonical name and the attributes that are part of the operation
_MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Linear": ("linear", ("in_features", "out_features")),
    "NonDynamicallyQuantizableLinear": ("linear", ("in_features", "out_features")),
    "Embedding": ("embedding", ("num_embeddings", "embedding_dim", "padding_idx")),
    "LayerNorm": ("layer_norm", ("normalized_shape", "eps")),
    "RMSNorm": ("rms_norm", ("normalized_shape", "eps")),
    "GroupNorm": ("group_norm", ("num_groups", "eps")),
    "LocalResponseNorm": ("local_response_norm", ("size", "alpha", "beta", "k")),
    "Identity": ("identity", ()),
    "Softmax": ("softmax", ("dim",)),
    "Upsample": ("interpolate", ("size", "scale_factor", "mode")),
    "Flatten": ("reshape", ("start_dim", "end_dim")),
    "Unflatten": ("reshape", ("dim", "unflattened_size")),
    "PixelShuffle": ("pixel_shuffle", ("upscale_factor",)),
    "LSTM": ("lstm", ("hidden_size", "num_layers")),
    "GRU": ("gru", ("hidden_size", "num_layers")),
    **{f"BatchNorm{n}d": ("batch_norm", ("eps", "momentum")) for n in (1, 2, 3)},
    "SyncBatchNorm": ("batch_norm", ("eps", "momentum")),
    **{f"InstanceNorm{n}d": ("instance_norm", ("eps",)) for n in (1, 2, 3)},
    **{f"{k}Dropout{s}": ("dropout", ("p",)) for k, s in [("", ""), ("", "1d"), ("", "2d"), ("", "3d"), ("Alpha", "")]},
    **{f"Conv{n}d": (f"conv{n}d", ("stride", "padding", "dilation", "groups", "padding_mode")) for n in (1, 2, 3)},
    **{
        f"ConvTranspose{n}d": (f"conv_transpose{n}d", ("stride", "padding", "output_padding", "dilation", "groups"))
        for n in (1, 2, 3)
    },
    "ReLU": ("relu", ()),
    "ReLU6": ("relu6", ()),
    "GELU": ("gelu", ("approximate",)),
    "SiLU": ("silu", ()),
    "Sigmoid": ("sigmoid", ()),
    "Tanh": ("tanh", ()),
    "Hardswish": ("hardswish", ()),
    "Hardsigmoid": ("hardsigmoid", ()),
    "Hardtanh": ("hardtanh", ("min_val", "max_val")),
    "ELU": ("elu", ("alpha",)),
    "SELU": ("selu", ()),
    "CELU": ("celu", ("alpha",)),
    "LeakyReLU": ("leaky_relu", ("negative_slope",)),
    "Mish": ("mish", ()),
    "Softplus": ("softplus", ("beta", "threshold")),
    "PReLU": ("prelu", ()),
    "Softsign": ("softsign", ()),
    "LogSigmoid": ("logsigmoid", ()),
    **{f"{pad}Pad{n}d": ("pad", ("padding",)) for pad in ("Zero", "Reflection", "Replication") for n in (1, 2, 3)},
}
_FUNCTIONS = _functions()


def operation(node: fx.Node, module: nn.Module) -> Operation:
    """Read a node canonically; an unknown spelling keeps its own name and lists the tensors it reads.

    >>> from torch import nn, fx
    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)))
    >>> conv = operation(list(gm.graph.nodes)[1], gm)
    >>> conv.name, conv.attributes["stride"], conv.parameters["weight"]
    ('conv2d', (2, 2), '0.weight')
    """
    if node.op == "call_module":
        return _from_module(node, module.get_submodule(str(node.target)))
    if node.op == "call_function":
        spelling = _FUNCTIONS.get(node.target)  # type: ignore[arg-type]
        name = getattr(node.target, "__name__", str(node.target))
    elif node.op == "call_method":
        name = str(node.target)
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        functions: list[Any] = [getattr(F, plain, None), getattr(torch, plain, None)]
        spelling = _METHODS.get(plain) or next((_FUNCTIONS[f] for f in functions if f in _FUNCTIONS), None)
        name = plain
    else:
        return Operation(node.op)
    if spelling is None:
        return Operation(name, _data(node.all_input_nodes))
    return _bind(node, spelling)


def is_state(node: object) -> bool:
    """Whether a node is a parameter, a buffer, or computed from these alone."""
    if not isinstance(node, fx.Node):
        return False
    known = node.meta.get("state")
    if known is None:
        inputs = node.all_input_nodes
        known = node.op == "get_attr" or (
            node.op in ("call_function", "call_method") and bool(inputs) and all(is_state(n) for n in inputs)
        )
        node.meta["state"] = known
    return bool(known)


def state_name(node: fx.Node) -> str | None:
    """The qualified name of the one parameter or buffer that a state node is a view of."""
    while node.op != "get_attr":
        inputs = node.all_input_nodes
        if len(inputs) != 1 or not is_state(node):
            return None
        node = inputs[0]
    return str(node.target)


def module_operation(leaf: nn.Module) -> tuple[str, dict[str, Any]]:
    """The canonical name and attributes of a leaf module.

    >>> module_operation(nn.GELU(approximate="tanh"))
    ('gelu', {'approximate': 'tanh'})
    """
    for cls in type(leaf).__mro__:
        row = _MODULES.get(cls.__name__)
        if row and cls.__module__.startswith("torch.nn"):
            return row[0], {a: getattr(leaf, a, None) for a in row[1]}
        if cls.__name__ in _POOLS:
            names = ("kernel_size", "stride", "padding", "output_size")
            return "pool", {"kind": _POOLS[cls.__name__], **{a: getattr(leaf, a) for a in names if hasattr(leaf, a)}}
    return type(leaf).__name__.lower(), {}


def _data(nodes: Any) -> tuple[fx.Node, ...]:
    return tuple(n for n in nodes if isinstance(n, fx.Node) and value_of(n) is not None and not is_state(n))


def _from_module(node: fx.Node, leaf: nn.Module) -> Operation:
    inputs = _data(node.all_input_nodes)
    parameters = {n: f"{node.target}.{n}" for n, _ in leaf.named_parameters(recurse=False)}
    parameters |= {n: f"{node.target}.{n}" for n, _ in leaf.named_buffers(recurse=False)}
    name, attributes = module_operation(leaf)
    return Operation(name, inputs, attributes, parameters)


def _bind(node: fx.Node, spelling: Spelling) -> Operation:
    given: dict[str, Any] = dict(spelling.defaults)
    positional = list(node.args)
    for i, name in enumerate(spelling.schema):
        if i >= len(positional):
            break
        given[name] = tuple(positional[i:]) if name == spelling.variadic else positional[i]
    rest = given.get(spelling.variadic or "")
    if isinstance(rest, tuple) and len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        given[spelling.variadic] = tuple(rest[0])  # type: ignore[index]
    given.update(node.kwargs)
    inputs: list[fx.Node] = []
    attributes: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    for name, argument in given.items():
        nodes = argument if isinstance(argument, (tuple, list)) else (argument,)
        tensors = [n for n in nodes if isinstance(n, fx.Node) and value_of(n) is not None]
        inputs += [n for n in tensors if not is_state(n)]
        if isinstance(argument, fx.Node) and is_state(argument):
            parameters[name] = state_name(argument) or argument.name
        elif not tensors and name != "input":
            attributes[name] = argument
    return Operation(spelling.name, tuple(inputs), attributes, parameters)

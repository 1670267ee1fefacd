"""One name for every spelling of an operation: module, function, method and operator.

`operation(node)` reads a node as an `Operation`: its canonical name, the tensors it reads, its attributes by schema
name with their defaults, and the parameters it uses. The spellings are rows of `ops`. A call in no row keeps its
full name, with its dots: `mypackage.Scan`; so it never passes for another operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from utcompile.errors import UtcError
from utcompile.graph.meta import tensor as tensor_of
from utcompile.graph.meta import value_of
from utcompile.graph.node_info import info
from utcompile.graph.spellings import FUNCTIONS, METHODS, Spelling, spelling_of_module
from utcompile.ops import Trait, having

Attributes = Mapping[str, Any]  # of a call, by schema name
ACTIVATIONS = having(Trait.ACTIVATION)


@dataclass(frozen=True)
class Operation:
    """A node, read canonically.

    Attributes:
        name: the canonical name, e.g. `conv2d`.
        inputs: the tensors it reads, in schema order, parameters and other state aside.
        attributes: everything else by schema name. A size that applies to each spatial dimension is repeated for each;
            of a commutative operation with a number, the number is `other`.
        parameters: role (`weight`, `bias` …) to the qualified name of the state it reads.
        operands: role of the signature to the node that plays it, whatever the node yields; of a module call, without
            the module's own state.
    """

    name: str
    inputs: tuple[fx.Node, ...] = ()
    attributes: Attributes = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    operands: Mapping[str, fx.Node] = field(default_factory=dict, compare=False)


def operation(node: fx.Node, module: nn.Module) -> Operation:
    """Read a node canonically; an unknown spelling keeps its own dotted name and lists the tensors it reads.

    >>> from torch import nn, fx
    >>> gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)))
    >>> conv = operation(list(gm.graph.nodes)[1], gm)
    >>> conv.name, conv.attributes["stride"], conv.attributes["kernel_size"], conv.parameters["weight"]
    ('conv2d', (2, 2), (3, 3), '0.weight')
    """
    if node.op == "call_module":
        return _from_module(node, module.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return Operation(node.op)
    spelling = _spelling(node)
    if spelling is None:
        return Operation(_full_name(node.target), _data(node.all_input_nodes))
    return _from_call(node, spelling)


def is_state(node: object) -> bool:
    """Whether a node is a parameter, a buffer, or computed from these alone."""
    if not isinstance(node, fx.Node):
        return False
    known = info(node).state
    if known is None:
        inputs = node.all_input_nodes
        known = node.op == "get_attr" or (
            node.op in ("call_function", "call_method") and bool(inputs) and all(is_state(n) for n in inputs)
        )
        info(node).state = known
    return bool(known)


def state_name(node: fx.Node) -> str | None:
    """The qualified name of the one parameter or buffer that a state node is a view of."""
    while node.op != "get_attr":
        inputs = node.all_input_nodes
        if len(inputs) != 1 or not is_state(node):
            return None
        node = inputs[0]
    return str(node.target)


def module_operation(leaf: nn.Module) -> tuple[str, dict[str, Argument]]:
    """The canonical name and attributes of a leaf module.

    >>> module_operation(nn.GELU(approximate="tanh"))
    ('gelu', {'approximate': 'tanh'})
    """
    return _module_operation(leaf, spelling_of_module(leaf))


def _module_operation(leaf: nn.Module, spelling: Spelling | None) -> tuple[str, dict[str, Argument]]:
    if spelling is None:
        return _full_name(type(leaf)), {}
    attributes: dict[str, object] = {}
    for name in spelling.spoken:
        if name == spelling.schema[0]:
            continue
        value = getattr(leaf, name, spelling)  # which is no attribute of a module
        if isinstance(value, torch.Tensor):
            continue
        for alias in spelling.aliases.get(name, ()):
            if hasattr(leaf, alias):
                value = getattr(leaf, alias)
                break
        if value is not spelling:
            attributes[name] = value
        elif name in spelling.defaults:
            attributes[name] = spelling.defaults[name]
    if spelling.name == "instance_norm":
        attributes["use_input_stats"] = leaf.training or not leaf.track_running_stats
    weight = getattr(leaf, "weight", None)
    return spelling.name, _finished(spelling, attributes, tuple(getattr(weight, "shape", ())))


def _data(nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    return tuple(n for n in nodes if value_of(n) is not None and not is_state(n))


def _from_module(node: fx.Node, leaf: nn.Module) -> Operation:
    held = (n for kind in (leaf._parameters, leaf._buffers) for n, tensor in kind.items() if tensor is not None)
    parameters = {n: f"{node.target}.{n}" for n in held if n != "num_batches_tracked"}  # no output depends on it
    spelling = spelling_of_module(leaf)
    name, attributes = _module_operation(leaf, spelling)
    operands = {role: value for role, value in node.kwargs.items() if isinstance(value, fx.Node)}
    for role, value in zip(spelling.schema if spelling is not None else (), node.args, strict=False):
        if isinstance(value, fx.Node):
            operands[role] = value
    return Operation(name, _data(node.all_input_nodes), attributes, parameters, operands)


def _from_call(node: fx.Node, spelling: Spelling) -> Operation:
    given = _arguments(node, spelling)
    inputs: list[fx.Node] = []
    attributes: dict[str, object] = {}
    parameters: dict[str, str] = {}
    weight: tuple[object, ...] = ()
    operands: dict[str, fx.Node] = {}
    unknown = [n for n in given if n not in spelling.schema and not spelling.silent(n)] if node.kwargs else ()
    for name in (*spelling.spoken, *unknown):
        if name not in given:
            if name in spelling.defaults:
                attributes[name] = spelling.defaults[name]
            continue
        argument = given[name]
        if isinstance(argument, fx.Node):
            operands[name] = argument
        nodes = argument if isinstance(argument, (tuple, list)) else (argument,)
        tensors = [n for n in nodes if isinstance(n, fx.Node) and value_of(n) is not None]
        inputs += [n for n in tensors if not is_state(n)]
        if isinstance(argument, fx.Node) and is_state(argument):
            parameters[name] = state_name(argument) or argument.name
            if name == "weight" and tensors:
                weight = tensor_of(tensors[0]).shape
        elif not tensors:
            attributes[name] = tuple(argument) if isinstance(argument, list) else argument
    refine = _REFINED.get(spelling.name) or (_commutative if spelling.name in _COMMUTATIVE else None)
    name = (refine(_Read(attributes, parameters, operands, inputs)) if refine else None) or spelling.name
    return Operation(name, tuple(inputs), _finished(spelling, attributes, weight), parameters, operands)


def operand(node: fx.Node, role: str) -> Any:
    """The value of a call's argument, by its name in the operation's signature; None where it has none.

    >>> graph = fx.Graph()
    >>> x, w = graph.placeholder("x"), graph.placeholder("w")
    >>> operand(graph.call_function(torch.nn.functional.linear, (x,), {"weight": w}), "weight")
    w
    """
    spelling = _spelling(node)
    return _arguments(node, spelling).get(role) if spelling is not None else None


def set_operand(node: fx.Node, role: str, value: Argument) -> None:
    """Set a call's argument, by its name in the operation's signature: at its position, or by keyword.

    Args:
        node: a call of a function or a method of the table.
        role: the argument's name in the signature.
        value: a node, or what an argument of fx may be; of `*sizes`, all of them.

    >>> graph = fx.Graph()
    >>> conv = graph.call_function(torch.nn.functional.conv2d, (graph.placeholder("x"), graph.placeholder("w")))
    >>> set_operand(conv, "groups", 4), conv.args, conv.kwargs
    (None, (x, w), {'groups': 4})
    """
    spelling = _spelling(node)
    if spelling is None or role not in spelling.schema:
        raise UtcError(
            f"{node.name} has no argument {role!r}", why=f"it calls {_full_name(node.target)}", code="arguments/unknown"
        )
    place = spelling.schema.index(role)
    if place >= len(node.args):
        name = next((k for k in node.kwargs if spelling.renamed.get(k, k) == role), role)
        node.kwargs = {**node.kwargs, name: value}
    elif role == spelling.variadic and not isinstance(node.args[place], (tuple, list)):
        assert isinstance(value, (tuple, list))
        node.args = (*node.args[:place], *value)  # `x.view(2, 3)`
    else:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])


def _spelling(node: fx.Node) -> Spelling | None:
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    return METHODS.get(str(node.target)) if node.op == "call_method" else None


def _arguments(node: fx.Node, spelling: Spelling) -> dict[str, Argument]:
    """A call's arguments by schema name."""
    given: dict[str, Argument] = {}
    for i, name in enumerate(spelling.schema):
        if i >= len(node.args):
            break
        given[name] = node.args[i]
        if name == spelling.variadic:
            rest = node.args[i:]
            given[name] = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else tuple(rest)
            break
    given.update((spelling.renamed.get(name, name), value) for name, value in node.kwargs.items())
    return given


def _finished(spelling: Spelling, attributes: Attributes, weight: tuple[Any, ...]) -> dict[str, Any]:
    """Attributes as every spelling gives them."""
    result = {k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()} | dict(spelling.fixed)
    if spelling.spatial:
        if "kernel_size" in result and result.get("stride", 0) is None:
            result["stride"] = result["kernel_size"]
        for name in _SPATIAL & result.keys():
            if isinstance(result[name], int):
                result[name] = (result[name],) * spelling.spatial
    if weight and spelling.name == "linear":
        result["out_features"], result["in_features"] = weight
    elif weight and spelling.name == "embedding":
        result["num_embeddings"], result["embedding_dim"] = weight
    elif weight and spelling.name.startswith("conv"):
        sides = [weight[0], weight[1] * result["groups"]]
        if spelling.name.startswith("conv_transpose"):
            sides = [weight[1] * result["groups"], weight[0]]
        result["out_channels"], result["in_channels"] = sides
        result["kernel_size"] = tuple(weight[2:])
    return result


_SPATIAL = frozenset("stride padding dilation output_padding kernel_size output_size".split())


def _full_name(target: Target | type) -> str:
    """`package.module.Thing` of what is called, `Tensor.name` of a method."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    named = target if hasattr(target, "__qualname__") else type(target)  # an object that can be called
    if named in (getattr(torch, named.__name__, None),):
        return f"torch.{named.__name__}"
    return f"{(getattr(named, '__module__', None) or 'builtins').removeprefix('_')}.{named.__qualname__}"


# --- what an argument's kind decides ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A call as it is read so far; it is changed in place."""

    attributes: dict[str, Any]
    parameters: dict[str, str]
    operands: dict[str, fx.Node]
    inputs: list[fx.Node]


_Refine = Callable[[_Read], str | None]


def _commutative(read: _Read) -> None:
    """`2 * x` is `x * 2`: an operand that is no value of the graph is `other`."""
    for held in (read.attributes, read.parameters):
        given = {**read.attributes, **read.parameters}
        if "input" in held and "other" not in given and given.get("alpha", 1) == 1:
            held["other"] = held.pop("input")
            _exchange(read.operands, "input", "other")


def _exchange(operands: dict[str, fx.Node], one: str, other: str) -> None:
    found = {one: operands.pop(other, None), other: operands.pop(one, None)}
    operands.update((role, node) for role, node in found.items() if node is not None)


def _addmm(read: _Read) -> None:
    """`addmm(b, x, W)` is a linear: its weight and bias have these names too."""
    read.operands.update(
        (role, read.operands[known])
        for role, known in (("weight", "mat2"), ("bias", "input"))
        if known in read.operands
    )
    alike = read.attributes.get("alpha", 1) == read.attributes.get("beta", 1) == 1
    if {"input", "mat2"} <= read.parameters.keys() and alike:
        read.parameters.update(weight=read.parameters["mat2"], bias=read.parameters["input"])


def _extreme(name: str) -> _Refine:
    """`torch.max(x, y)` of two tensors is no reduction."""

    def refine(read: _Read) -> str | None:
        attributes, parameters = read.attributes, read.parameters
        if len(read.inputs) < 2 and "dim" not in parameters and "other" not in parameters:
            return None
        for role in ("dim", "keepdim"):
            attributes.pop(role, None)
        if "dim" in parameters:
            parameters["other"] = parameters.pop("dim")
        if "dim" in read.operands:
            read.operands["other"] = read.operands.pop("dim")
        _commutative(read)
        return name

    return refine


def _to(read: _Read) -> None:
    """`x.to(dtype)`, `x.to(device)` and `x.to(device, dtype)`, by the kinds of the arguments."""
    attributes = read.attributes
    target = attributes.pop("target", ())
    for part in target if isinstance(target, tuple) else (target,):
        attributes[_target_kind(part)] = part
    for name in ("device", "memory_format"):
        if attributes.get(name, 0) is None:
            del attributes[name]


def _target_kind(part: object) -> str:
    if isinstance(part, fx.Node) and part.target is getattr:
        return str(part.args[1])
    if isinstance(part, torch.dtype):
        return "dtype"
    return "device" if isinstance(part, (str, int, torch.device)) and not isinstance(part, bool) else "target"


def _reshape(read: _Read) -> str | None:
    """`x.view(torch.int32)` reads the same bits as another dtype."""
    shape = read.attributes.get("shape", ())
    return "bitcast" if isinstance(shape, torch.dtype) or (shape and isinstance(shape[0], torch.dtype)) else None


def _property(read: _Read) -> str | None:
    """`x.T`, `x.mT`, `x.real`."""
    attributes, inputs = read.attributes, read.inputs
    name = attributes.get("name")
    if name in ("T", "mT", "H", "mH"):
        value = value_of(inputs[0]) if inputs else None
        attributes.clear()
        if name == "T" and value is not None and value.rank != 2:
            attributes["dims"] = tuple(reversed(range(value.rank)))
            return "permute"
        attributes.update({"dim0": 0, "dim1": 1} if name == "T" else {"dim0": -2, "dim1": -1})
        return "transpose"
    if name in ("real", "imag", "data"):
        attributes.clear()
        return "detach" if name == "data" else str(name)
    return None


def _arange(read: _Read) -> None:
    attributes = read.attributes
    if attributes.get("end", 0) is None and "start" in attributes:  # else a node says where it ends
        attributes["start"], attributes["end"] = 0, attributes["start"]


_COMMUTATIVE = having(Trait.COMMUTATIVE)
_REFINED: Mapping[str, _Refine] = {
    "addmm": _addmm,
    "max": _extreme("maximum"),
    "min": _extreme("minimum"),
    "to": _to,
    "reshape": _reshape,
    "getattr": _property,
    "arange": _arange,
}

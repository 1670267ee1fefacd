"""The parameters that a `weight: h` insertion tunes, and the rows that `slices` name.

1. A leaf module: its parameters; a recurrent layer has several per role (`weight_ih_l0`, `weight_hh_l0` …).
2. A function or method: the parameters that it reads, directly or through operations of the model (slices, transposes,
   weight standardisation). Of a norm that is spelled out, the parameters that its nodes multiply by and add. Of
   matmul, einsum and all others, the one parameter among its operands.
3. A parameter itself (`match: {parameter: …}`): all its readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from utcompile.errors import UtcError, did_you_mean
from utcompile.graph import GraphView, Operation, ancestors, describe, info, is_state, run_node, tensor, value_of
from utcompile.graph.stored import is_stored
from utcompile.matching.engine import Bindings
from utcompile.matching.quantised import as_linear, quantised, quantised_module, quantised_operand
from utcompile.ops import Trait, having
from utcompile.tuners import RECURRENT

_LAYERS = having(Trait.LAYER)
_MOVES = having(Trait.MOVES | Trait.SAME | Trait.CUTS | Trait.JOINS)
# a product with the transpose of a parameter is a linear that has no place for another bias
_TRANSPOSED = Operation("linear", attributes={"spelled_out": True})
_PART = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")
_PROBED = 2  # the batch at which captures are traced back to rows


@dataclass(frozen=True)
class Unchangeable:
    """A weight to which no update can be added.

    Attributes:
        why: the reason, such as `0.weight is int8`.
        shape: its shape as a matrix of numbers.
    """

    why: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TunedWeight:
    """The parameters that a tuner changes at one operation.

    Attributes:
        node: the operation.
        operation: the operation as the tuner sees it.
        source: the input of the operation; the parameter itself where there is no operation.
        names: role to the name of the parameter; None where the operation has none.
        shapes: role to the shape of the parameter.
        direct: whether the operation reads the parameter itself.
        unchangeable: a weight to which no update can be added, and which is not in `names`; otherwise None.
    """

    node: fx.Node
    operation: Operation
    source: fx.Node
    names: Mapping[str, str | None]
    shapes: Mapping[str, tuple[int, ...] | None]
    direct: bool = True
    unchangeable: Unchangeable | None = None


def tuned_weight(node: fx.Node, roles: Sequence[str], capture: str, view: GraphView) -> TunedWeight:
    """Find the parameters that play some roles at an operation.

    Args:
        node: the value whose maker is tuned.
        roles: `weight`, `bias`.
        capture: its name in the rule, for messages.
        view: the graph.

    Raises:
        UtcError: the operation has none of them, or reads a tensor computed from several parameters.
    """
    op = view.operations[node]
    if op.name == "getitem" and node.args and isinstance(node.args[0], fx.Node):
        maker = view.operations[node.args[0]]
        if maker.name in RECURRENT:
            node, op = node.args[0], maker
    if node.op == "get_attr":
        found: dict[str, str | None] = {r: str(node.target) if r == "weight" else None for r in roles}
        op, source, direct = Operation("parameter"), node, True
    elif not op.inputs:
        raise _nothing(capture, op)
    else:
        source = op.inputs[0]
        branch = _quantised_branch(node, op, roles, view)
        if branch is not None:
            return branch
        if node.op == "call_module":
            found, direct = _of_module(node, op, roles, view, capture), True
        else:
            found, direct, op = _of_function(node, op, roles, view, capture)
    if not any(found.values()) and "weight" in roles:
        raise _nothing(capture, op)
    named = view.parameters
    shapes = {r: tuple(named[n].shape) if n is not None else None for r, n in found.items()}
    return TunedWeight(node, op, source, found, shapes, direct)


def _quantised_branch(node: fx.Node, op: Operation, roles: Sequence[str], view: GraphView) -> TunedWeight | None:
    """An operation with a quantised weight, as a branch sees it; None for other operations."""
    if "weight" not in roles or op.attributes.get("spelled_out"):
        return None
    if node.op == "call_module":
        leaf = view.module.get_submodule(str(node.target))
        weight = getattr(leaf, "weight", None) if op.name in _LAYERS else None
        reason = quantised(f"{node.target}.weight", weight) if isinstance(weight, torch.Tensor) else ""
        shape = tuple(weight.shape) if reason and isinstance(weight, torch.Tensor) else ()
    else:
        operand = operand_of(node, "weight", op)
        if op.name not in _LAYERS and op.name != "addmm":
            operand = next((n for n in node.all_input_nodes if is_stored(n)), None)
        reason = quantised_operand(operand, view) if operand is not None and is_stored(operand) else ""
        value = value_of(operand) if operand is not None else None
        shape = value.sizes(_PROBED) if reason and value is not None else ()
    if not reason:
        return None
    seen = Operation("matmul", op.inputs) if op.name == "addmm" else op
    if op.name not in _LAYERS and op.name not in ("addmm", "matmul"):
        found = as_linear(op.inputs[0], node, view)
        if found is None:
            return None
        seen, shape = found
    return TunedWeight(node, seen, op.inputs[0], {"weight": None}, {"weight": None}, True, Unchangeable(reason, shape))


def quantised_branch_of(path: str, source: fx.Node, target: fx.Node, view: GraphView) -> TunedWeight | None:
    """A module with quantised tensors, as a branch sees it: a linear from its input to its result."""
    reason, found = quantised_module(path, view), as_linear(source, target, view)
    if not reason or found is None:
        return None
    return TunedWeight(
        target, found[0], source, {"weight": None}, {"weight": None}, True, Unchangeable(reason, found[1])
    )


def _nothing(capture: str, op: Operation) -> UtcError:
    return UtcError(
        f"'{capture}' is the result of {op.name}, which has no weight",
        fix="name the capture of an operation with a weight: a linear, a convolution, a norm …",
    )


def _of_module(
    node: fx.Node, op: Operation, roles: Sequence[str], view: GraphView, capture: str
) -> dict[str, str | None]:
    leaf = view.module.get_submodule(str(node.target))
    mine = {n for n, p in leaf._parameters.items() if p is not None}
    if "weight" in roles and leaf._buffers.get("weight") is not None:
        raise UtcError(
            f"the weight of {node.target} is a buffer and not a parameter",
            why="the model has it as a buffer, or a parametrisation was removed while no parameter required a gradient",
            fix="make it a parameter before capture: layer.weight = torch.nn.Parameter(layer._buffers.pop('weight'))",
        )
    if op.name in RECURRENT:
        names = [n for r in roles for n in leaf._parameters if n.startswith(r) and n in mine]
        return {n: f"{node.target}.{n}" for n in names}
    if op.name not in _LAYERS:
        if not mine:
            raise _nothing(capture, op)
        raise UtcError(
            f"the weights of {type(leaf).__name__} cannot be tuned",
            why="the module is one node of the graph, and the capture does not see how its code uses them",
            fix="tune its result instead: `sequential:` or `parallel:`",
        )
    return {r: f"{node.target}.{r}" if r in mine else None for r in roles}


def _of_function(
    node: fx.Node, op: Operation, roles: Sequence[str], view: GraphView, capture: str
) -> tuple[dict[str, str | None], bool, Operation]:
    operands = [a for a in node.all_input_nodes if is_state(a) and _parameters_behind(a, view)]
    if op.attributes.get("spelled_out") and op.name in _LAYERS:  # a norm of several nodes, whose parameters are known
        return {r: op.parameters.get(r) for r in roles}, True, op
    if op.name in _LAYERS:
        found: dict[str, str | None] = {}
        direct = True
        for role in roles:
            operand = operand_of(node, role, op)
            found[role] = _behind(operand, view) if operand is not None else None
            if role == "weight" and operand is not None:
                direct = operand.op == "get_attr"
        return found, direct, op
    is_plain = op.attributes.get("alpha", 1) == op.attributes.get("beta", 1) == 1
    if op.name == "addmm" and len(op.inputs) == 1 and len(operands) == 2 and is_plain:
        at = {role: operand_of(node, role, op) for role in roles}  # x @ W + b, as GPT-2 writes its linears
        found = {r: _behind(o, view) if o is not None else None for r, o in at.items()}
        weight = operand_of(node, "weight", op)
        if weight is not None and _is_transposed(weight, view):
            return found, True, replace(_TRANSPOSED, inputs=op.inputs, parameters={"bias": op.parameters["input"]})
        return found, all(o is None or o.op == "get_attr" for o in at.values()), Operation("matmul", op.inputs)
    if "weight" not in roles:
        return dict.fromkeys(roles), True, op
    if len(operands) != 1:
        if not operands:
            raise _nothing(capture, op)
        raise UtcError(
            f"{op.name} reads {len(operands)} parameters: {', '.join(_behind(o, view) for o in operands)}",
            fix="match the parameter itself: {parameter: …}",
        )
    (operand,) = operands
    is_product = op.name == "matmul" and op.operands.get("other") is operand
    if is_product and _is_transposed(operand, view):  # x @ W.T, as Falcon writes its linears
        return (
            {r: _behind(operand, view) if r == "weight" else None for r in roles},
            True,
            replace(_TRANSPOSED, inputs=op.inputs),
        )
    kept = op if is_product else Operation("parameter", op.inputs)
    if op.name == "einsum":
        given = list(node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:])
        kept = replace(op, attributes={**op.attributes, "weight_at": given.index(operand)})
    found = {r: _behind(operand, view) if r == "weight" else None for r in roles}
    return found, operand.op == "get_attr", kept


def _is_transposed(operand: fx.Node, view: GraphView) -> bool:
    """Whether a weight `(in, out)` is the plain transpose of a parameter `(out, in)`."""
    if operand.op == "get_attr":
        return False
    inputs = operand.all_input_nodes
    value = value_of(operand)
    moves = view.operations[operand].name in ("transpose", "permute")
    return moves and value is not None and value.rank == 2 and len(inputs) == 1 and inputs[0].op == "get_attr"


def operand_of(node: fx.Node, role: str, op: Operation) -> fx.Node | None:
    """The argument of a function with a role; None where there is none."""
    if op.name in _LAYERS or op.name == "addmm":
        return op.operands.get(role)
    return next((a for a in node.all_input_nodes if is_state(a)), None)


def _parameters_behind(operand: fx.Node, view: GraphView) -> list[str]:
    """The parameters from which a state node is computed."""
    named = view.parameters
    return [str(n.target) for n in ancestors([operand]) if n.op == "get_attr" and str(n.target) in named]


def _behind(operand: fx.Node, view: GraphView) -> str:
    """The one parameter that an operand is, or from which it is computed."""
    found = _parameters_behind(operand, view)
    if not found:
        raise UtcError(
            f"its weight {operand.target} is a buffer and not a parameter",
            why="the model has it as a fixed transform",
            fix="exclude the place by `except:` or in `where:`",
        )
    if len(found) > 1:  # weight standardisation with a gain: the weight is the one of the operand's size
        value = value_of(operand)
        named = view.parameters
        size = torch.Size(value.sizes(_PROBED)).numel() if value is not None else 0
        alike = [n for n in found if named[n].numel() == size]
        if len(alike) != 1:
            raise UtcError(
                f"the weight is computed from several parameters: {', '.join(sorted(found))}",
                fix="match one of them: {parameter: …}; or remove the parametrisation that computes it, and capture "
                "again: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight', leave_parametrized=True)",
            )
        found = alike
    return found[0]


def rows_of(slices: Sequence[str], env: Bindings, tuned: TunedWeight, view: GraphView) -> tuple[tuple[int, ...], ...]:
    """The output channels of a packed weight that slices name: rows of a linear's weight, columns of `x @ W`.

    `3/3` is the third of three equal parts. A capture names the channels from which it is made: the channel numbers of
    the packed result are sent through the operations between it and the capture, which may only move numbers.

    Raises:
        UtcError: a name is not a capture, is not made by the operation, or is computed and not only moved.
    """
    shape = tuned.shapes.get("weight")
    value = value_of(tuned.node)
    axis = view.channel_axis.get(tuned.node)
    if (
        value is not None
        and view.operations[tuned.node].name == "matmul"
        and is_state(view.operations[tuned.node].operands.get("input"))
    ):
        axis = value.rank - 2  # W @ x
    count = shape[-1 if tuned.operation.name == "matmul" and len(shape) == 2 else 0] if shape else None
    if count is None or value is None or axis is None or value.shape[axis] != count or not tuned.direct:
        raise UtcError(
            f"{tuned.operation.name} has no output channels to slice",
            why="slices are rows of the weight of a linear or convolution, one per channel of its result",
            fix="leave out `slices:`",
        )
    result = tuple(_rows(text, env, tuned.node, count, axis, view) for text in slices)
    every = [r for part in result for r in part]
    if len(set(every)) != len(every):
        raise UtcError(f"slices {list(slices)} overlap", fix="name each part once")
    return result


def _rows(text: str, env: Bindings, packed: fx.Node, count: int, axis: int, view: GraphView) -> tuple[int, ...]:
    part = _PART.fullmatch(text)
    if part:
        i, n = int(part[1]), int(part[2])
        if not 1 <= i <= n or count % n:
            raise UtcError(
                f"slice '{text}' is not a whole part of {count} rows", fix="write 1/3 for the first of three"
            )
        return tuple(range((i - 1) * (count // n), i * (count // n)))
    if text not in env:
        fix = f"{did_you_mean(text, env)}; or state equal parts, such as [1/3, 3/3]"
        raise UtcError(f"the match offers no capture '{text}' for `slices`", fix=fix)
    numbers = _trace(packed, env[text], count, axis, view)
    rows = sorted(set(numbers.long().flatten().tolist()))
    if len(rows) == count and view.without_layout(env[text]) is not view.without_layout(packed):
        raise UtcError(f"'{text}' is made of all {count} rows", fix="leave out `slices:`")
    return tuple(rows)


def _trace(packed: fx.Node, capture: fx.Node, count: int, axis: int, view: GraphView) -> torch.Tensor:
    """The numbers of the packed channels, as the model moves them."""
    sizes = tensor(packed).sizes(_PROBED)
    shape = [-1 if a == axis else 1 for a in range(len(sizes))]
    known: dict[fx.Node, object] = {packed: torch.arange(float(count)).reshape(shape).expand(sizes).contiguous()}

    def compute(node: fx.Node) -> object:
        if node not in known:
            if (size := info(node).size) is not None:
                known[node] = size.at(_PROBED)
            elif view.operations[node].name in ("identity", "dropout") and view.position[node] > view.position[packed]:
                known[node] = compute(view.operations[node].inputs[0])
            elif view.position[node] < view.position[packed] or node.op not in ("call_function", "call_method"):
                raise UtcError(f"'{capture.name}' is not made of {packed.name}", fix="name captures of its parts")
            elif view.operations[node].name not in _MOVES and value_of(node) is not None:
                raise UtcError(
                    f"{describe(node)} computes between {packed.name} and '{capture.name}'",
                    why="the numbers of the capture are then not rows of the weight",
                    fix="name captures nearer to the projection, or state equal parts, such as [1/3, 3/3]",
                )
            else:
                known[node] = run_node(view.module, node, compute)
        return known[node]

    result = compute(capture)
    assert isinstance(result, torch.Tensor)
    return result

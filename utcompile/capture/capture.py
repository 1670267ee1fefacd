"""`capture`: an `nn.Module` becomes a `CapturedModule` with a dynamic batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.capture.captured import CapturedModule, CaptureReport
from utcompile.capture.functional import make_functional
from utcompile.capture.naming import rename_by_path
from utcompile.capture.recorder import record
from utcompile.capture.unify import unify
from utcompile.capture.verify import compare_outputs
from utcompile.errors import UtcError, did_you_mean
from utcompile.graph import UtcGraphModule, describe, is_state
from utcompile.graph.structure import named_state, structural_copy

_BATCHES = (2, 3, 5)
_RESERVED = frozenset(
    "graph code meta report batch_inputs sites trained ruleset base_graph tuners base_values shape_env".split()
)
Examples = torch.Tensor | Sequence[Any] | Mapping[str, Any]


def capture(
    model: nn.Module,
    example_inputs: Examples,
    dynamic: Sequence[str] | Mapping[str, Any] | None = None,
    base: Literal["frozen"] = "frozen",
    verify: Literal["values", "full", "shapes"] = "values",
) -> CapturedModule:
    """Record a model's `forward` as a torch.fx graph that runs at any batch size.

    The model's real code runs on fake tensors at three batch sizes; nothing of the model is changed, and the result
    shares its memory. Leaf modules keep their names, and so do parameters.

    Args:
        model: any `nn.Module`. It is recorded, and kept, in eval mode.
        example_inputs: a tuple (positional), a dict (keyword) or one tensor, as in `torch.export`.
        dynamic: names of the inputs whose dimension 0 is the batch; by default those whose dimension 0 equals the
            first tensor's. An empty one captures at the example's sizes only.
        base: "frozen": the backbone stays in eval, whatever `.train()` says.
        verify: "values" compares outputs with the model's on the example inputs, bit for bit; "full" also at other
            batch sizes; "shapes" computes nothing.

    Raises:
        UtcError: the inputs do not fit, Python code depends on tensor values or on the batch size, or outputs differ.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> captured = utc.capture(model, torch.randn(1, 4))
        >>> [n.name for n in captured.graph.nodes]
        ['input_1', '_0', '_1', '_2', 'output']
        >>> captured(torch.randn(7, 4)).shape
        torch.Size([7, 2])
    """
    if not isinstance(model, nn.Module):
        raise UtcError(f"capture takes an nn.Module, not {type(model).__name__}")
    if isinstance(model, UtcGraphModule):
        raise UtcError(f"this is a {type(model).__mro__[1].__name__} already", fix="capture the original model")
    if base != "frozen":
        raise UtcError(f"base must be 'frozen', not {base!r}")
    if verify not in ("values", "full", "shapes"):
        raise UtcError(f"verify must be 'values', 'full' or 'shapes', not {verify!r}")
    taken = _RESERVED & {*model._modules, *model._parameters, *model._buffers}
    if taken:
        raise UtcError(
            f"{type(model).__name__} has a part named '{min(taken)}', a name that a captured module uses itself",
            fix="wrap the model in a module that keeps it under another name",
        )
    copied = structural_copy(model)
    arguments = bind_inputs(copied, example_inputs)
    batched = _batched(arguments, dynamic)
    batches = _BATCHES if batched else (0,)
    recordings = [record(structural_copy(model), _resize(arguments, batched, b)) for b in batches]
    graph = recordings[0].graph
    unify([r.graph for r in recordings], batches, lambda: _batch_node(graph, batched))
    for node in graph.nodes:
        is_state(node)  # once in graph order, so that later questions need no recursion
    for name, tensor in recordings[0].constants.items():
        _keep_constant(copied, name, tensor)
    writes = make_functional(graph, copied)
    rename_by_path(graph)
    graph.lint()
    captured = CapturedModule(copied, graph, type(model).__name__)
    captured.requires_grad_(False)
    captured.batch_inputs = batched
    captured.eval()
    captured.report = CaptureReport(
        len(graph.nodes),
        _unreachable(copied, graph),
        tuple(describe(n) for n in writes),
        _check(copied, captured, arguments, batched, verify),
    )
    return captured


def bind_inputs(model: nn.Module, example_inputs: Examples) -> dict[str, Any]:
    """The example inputs by parameter name of `forward`."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    if isinstance(example_inputs, torch.Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        kwargs = example_inputs
    elif isinstance(example_inputs, (tuple, list)):
        args = example_inputs
    else:
        raise UtcError(f"example_inputs must be a tuple, a dict or a tensor, not {type(example_inputs).__name__}")
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UtcError(
            "the example inputs do not fit the model's forward",
            why=f"{error}",
            fix=f"{type(model).__name__}.forward takes {signature}",
        ) from error
    result: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise UtcError(
                f"{type(model).__name__}.forward takes *{name}, which cannot be captured by name",
                fix="wrap the model in a module whose forward names its inputs",
            )
        result.update(value) if kind is inspect.Parameter.VAR_KEYWORD else result.update({name: value})
    if not any(isinstance(t, torch.Tensor) for t in pytree.tree_leaves(result)):
        raise UtcError(
            "the example inputs hold no tensor", fix="give at least one tensor, e.g. torch.randn(2, 3, 224, 224)"
        )
    return result


def _batched(arguments: dict[str, Any], dynamic: Sequence[str] | Mapping[str, Any] | None) -> tuple[str, ...]:
    if dynamic is not None:
        names = (dynamic,) if isinstance(dynamic, str) else tuple(dynamic)
        for name in names:
            if name not in arguments:
                raise UtcError(f"dynamic names {name!r}, which is no input", fix=did_you_mean(name, arguments))
        return names
    first = next((t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.dim()), None)
    if first is None:
        return ()
    return tuple(
        name
        for name, value in arguments.items()
        if any(
            isinstance(t, torch.Tensor) and t.dim() and t.shape[0] == first.shape[0] for t in pytree.tree_leaves(value)
        )
    )


def _resize(arguments: dict[str, Any], batched: tuple[str, ...], batch: int) -> dict[str, Any]:
    """The arguments at another batch size; only sizes matter to a recording."""

    def resize(t: Any) -> Any:
        return t[:1].expand(batch, *t.shape[1:]) if isinstance(t, torch.Tensor) and t.dim() else t

    return {k: pytree.tree_map(resize, v) if k in batched else v for k, v in arguments.items()}


def _batch_node(graph: fx.Graph, batched: tuple[str, ...]) -> fx.Node:
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    source = next((n for n in inputs if n.target == batched[0]), inputs[0])
    position = inputs[-1]
    if "value" not in source.meta and "seen" not in source.meta:  # a nested input: read the first tensor in it
        source = next(u for u in graph.nodes if u.op == "call_function" and source in u.all_input_nodes)
        position = source
    with graph.inserting_after(position):
        return graph.call_method("size", (source, 0))


def _keep_constant(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner = root.get_submodule(path)
    owner.__dict__.pop(attribute, None)
    owner.register_buffer(attribute, tensor.detach(), persistent=False)


def _unreachable(root: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    read = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    tied = {id(t) for name, t in named_state(root).items() if name in read or name.rpartition(".")[0] in read}
    return tuple(
        name
        for name, t in named_state(root).items()
        if id(t) not in tied
        and not any(name.startswith(f"{r}.") for r in read)
        and not name.endswith("num_batches_tracked")
    )


def _check(
    copied: nn.Module, captured: CapturedModule, arguments: dict[str, Any], batched: tuple[str, ...], verify: str
) -> str:
    if verify == "shapes":
        return "shapes"
    compare_outputs(copied, captured, arguments, "at the example inputs")
    if verify == "full" and batched:
        for batch in _BATCHES:
            compare_outputs(copied, captured, _resize(arguments, batched, batch), f"at batch {batch}")
        return f"values at the example inputs and at batch {', '.join(map(str, _BATCHES))}"
    return "values at the example inputs"

"""`capture`: an `nn.Module` becomes a `CapturedModule` with a dynamic batch."""

from __future__ import annotations

from itertools import chain
from typing import Literal

import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, describe, info, is_state, owner_of, owner_path, set_inplace
from utcompile.graph.calls import Signature
from utcompile.graph.nested import tensors
from utcompile.graph.statistics import own_statistics
from utcompile.graph.structure import aliased_modules, named_state, structural_copy
from utcompile.graph.ties import ties_of
from utcompile.recording.attempts import Recorded, record_dynamically
from utcompile.recording.attention import settle_attention
from utcompile.recording.captured import CapturedModule, CaptureReport
from utcompile.recording.clock import clock_reads
from utcompile.recording.derived import by_mode, captured_as, same_values
from utcompile.recording.example import Example
from utcompile.recording.fixed import FixedSizes, fix_sizes
from utcompile.recording.functional import make_functional
from utcompile.recording.guards import StructureCheck
from utcompile.recording.inputs import Dynamic, Examples, Inputs, read_inputs
from utcompile.recording.layers import check_layers, drop_backward_hooks, notes_on
from utcompile.recording.naming import rename_by_path
from utcompile.recording.patches import patched
from utcompile.recording.rebinding import look_anew
from utcompile.recording.value_checks import join_value_checks
from utcompile.recording.verify import check
from utcompile.recording.watch import Watch

_UNWRITABLE = frozenset('"\\\n\r')
_RESERVED = frozenset(
    "graph code meta report batch_inputs follows_mode aliased guards model_attributes sites trained ruleset base_graph "
    "signature tuners base_values shape_env dtype fixed_dtype device example_inputs proven ties part_path nested "
    "as_one_graph task tasks set_task add_task tuner memory plan_memory originals prepare_base trainable_parameters "
    "print_trainable_parameters activation_checkpointing_enable gradient_checkpointing_enable inherit inherited "
    "kept_attributes recompile to_folder add_submodule delete_submodule delete_all_unused_submodules print_readable "
    "_flat _moved _switch _originals _base_forward base_module _compiled_forward _tuned_forward _rebuild".split()
)
# attributes that users read: transformers' config, timm's, and similar ones
_PASSED = "config generation_config pretrained_cfg default_cfg num_classes num_features main_input_name".split()

_MODE_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def capture(
    model: nn.Module,
    example_inputs: Examples,
    dynamic: Dynamic | None = None,
    base: Literal["frozen", "follow"] = "frozen",
    verify: Literal["values", "full", "shapes"] = "values",
) -> CapturedModule:
    """Record a model's `forward` as a torch.fx graph that runs at any batch size, dtype and device.

    The model's real code runs on fake tensors, at several sizes; nothing of the model is changed, and the result
    shares its memory. Layers keep their names, and so do parameters. A module whose Python code depends on the values
    of tensors stays one node, which `captured.report.opaque` names.

    Args:
        model: any `nn.Module`. It is recorded, and kept, in eval mode.
        example_inputs: a tuple (positional), a dict (keyword; `*args` under its name, as a tuple) or one tensor.
        dynamic: the sizes that vary between calls: names of inputs (their dimension 0 is the batch), or a dict from
            name to `{dimension: label}`, e.g. `{"x": {0: "B", 2: "H", 3: "W"}}`. By default the batch is dimension 0 of
            the inputs whose dimension 0 equals the first tensor's, and integer inputs `(B, L)` have a length; a length
            that the model pins is named in the report. An empty one captures at the example's sizes only.
        base: "frozen": the backbone stays in eval, whatever `.train()` says. "follow": its dropout, stochastic depth
            and batch norm obey `.train()` and `.eval()`.
        verify: "values" compares outputs with the model's on the example inputs, bit for bit; "full" also at other
            sizes, in train mode under one seed where it follows, and the inputs' gradients; "shapes" computes nothing.

    Raises:
        UtcError: the inputs do not fit, the model cannot be recorded, what must vary cannot, or outputs differ.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> captured = utc.capture(model, torch.randn(1, 4))
        >>> [n.name for n in captured.graph.nodes]
        ['input_1', 'check_fixed_sizes', '_0', '_1', '_2', 'output']
        >>> captured(torch.randn(7, 4)).shape
        torch.Size([7, 2])
    """
    model = _checked(model, base, verify)
    look_anew()
    copied = structural_copy(model)
    drop_backward_hooks(copied)
    inputs = read_inputs(copied, example_inputs, dynamic)
    watch = Watch.of(model)
    with patched():
        recorded = record_dynamically(model, inputs, watch, asked=dynamic is not None, follow=base == "follow")
    watch.check()
    writes = _finish(recorded, inputs, copied)
    captured = CapturedModule(copied, recorded.graph, type(model).__name__)
    _set_attributes(captured, model, recorded, follows_mode=base == "follow", compared=verify != "shapes")
    captured.report = CaptureReport(
        operations=sum(not isinstance(n.target, FixedSizes) for n in recorded.graph.nodes),
        unreachable=_unreachable(copied, recorded.graph),
        barriers=tuple(describe(n) for n in writes),
        verified=check(model, captured, recorded.inputs, verify, watch),
        opaque=recorded.opaque,
        pinned=recorded.pinned,
        guards=recorded.guards,
        notes=(*notes_on(model), *recorded.notes),
        by_mode=tuple(describe(n) for n in recorded.graph.nodes if _obeys_mode(n)) if base == "follow" else (),
        state=watch.state,
        random=(*watch.drawn, *clock_reads(model)),
    )
    return captured


def _checked(model: nn.Module, base: str, verify: str) -> nn.Module:
    """The module to record.

    Raises:
        UtcError: the arguments of `capture` are wrong, or the model has a part that no graph can have.
    """
    if not isinstance(model, nn.Module):
        raise UtcError(f"capture takes an nn.Module, not {type(model).__name__}", code="arguments/type")
    model = _unwrapped(model)
    if isinstance(model, UtcGraphModule):
        raise UtcError(
            f"this is a {type(model).__mro__[1].__name__} already, a recorded graph",
            fix="give it to utc.match or utc.compile as it is, or capture the original model",
            code="arguments/type",
        )
    if base not in ("frozen", "follow"):
        raise UtcError(f"base must be 'frozen' or 'follow', not {base!r}", code="arguments/value")
    if verify not in ("values", "full", "shapes"):
        raise UtcError(f"verify must be 'values', 'full' or 'shapes', not {verify!r}", code="arguments/value")
    taken = _RESERVED & {*model._modules, *model._parameters, *model._buffers}
    if taken:
        raise UtcError(
            f"{type(model).__name__} has a part named '{min(taken)}', a name that a captured module uses itself",
            fix="wrap the model in a module that keeps it under another name",
            code="capture/unsupported",
        )
    _check_names(model)
    check_layers(model)
    return model


def _check_names(model: nn.Module) -> None:
    """Refuse a name that torch.fx cannot write into a graph's code."""
    modules = (name for name, _ in model.named_modules(remove_duplicate=False))
    parameters = (name for name, _ in model.named_parameters(remove_duplicate=False))
    for whole in chain(modules, parameters, (name for name, _ in model.named_buffers(remove_duplicate=False))):
        if any(character in _UNWRITABLE for character in whole):
            path, _, name = whole.rpartition(".")
            raise UtcError(
                f"a part of the model has the name {name!r}, which the code of a graph cannot have",
                where=path or type(model).__name__,
                fix="give it a name without quotation marks, backslashes and line ends",
                code="capture/unsupported",
            )


def _finish(recorded: Recorded, asked: Inputs, root: nn.Module) -> tuple[fx.Node, ...]:
    """Complete a recorded graph in place; returns the writes that stay in it."""
    graph, arguments = recorded.graph, recorded.inputs.arguments
    for node in graph.nodes:
        is_state(node)  # once in graph order, so that later questions need no recursion
    for name, tensor in recorded.constants.items():
        _keep_constant(root, name, tensor)
    writes = make_functional(graph, root)
    settle_attention(graph, root)
    _guard_sizes(recorded, asked)
    fix_sizes(graph, recorded.nodes, recorded.inputs, recorded.fixed)
    _guard_containers(graph, arguments)
    _guard_constants(graph, arguments)
    _guard_values(graph, root, {n: v for n in recorded.fixed if isinstance(v := arguments[n], torch.Tensor)})
    join_value_checks(graph)
    rename_by_path(graph)
    set_inplace(graph, root)
    graph.lint()
    return writes


def _set_attributes(
    captured: CapturedModule, model: nn.Module, recorded: Recorded, *, follows_mode: bool, compared: bool
) -> None:
    """Give a captured module the attributes that later steps read."""
    captured.requires_grad_(False)
    captured.batch_inputs, captured.follows_mode = recorded.inputs.batch_inputs, follows_mode
    if follows_mode:
        own_statistics(captured, recorded.graph)
    captured.aliased = aliased_modules(model)
    captured.model_attributes = {k: getattr(model, k) for k in _PASSED if _is_plain(getattr(model, k, None))}
    captured.guards = recorded.guards
    captured.fixed_dtype = next((why for why in recorded.pinned if why.startswith("dtype")), "")
    arguments = recorded.inputs.arguments
    captured.signature = Signature.of(model, arguments)
    captured.example_inputs = Example.of(arguments, compared=compared, dtype=captured.dtype, device=captured.device)
    captured.ties = ties_of(captured)
    captured.eval()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside a `torch.compile`d one; scripted ones have no Python code to record."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UtcError(
            f"{type(model).__name__} is scripted: its Python code is gone",
            fix="capture the model as it was before torch.jit.script or torch.jit.trace",
            code="capture/unsupported",
        )
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, (torch.Tensor, nn.Module)) and not callable(value)


def _guard_constants(graph: fx.Graph, arguments: dict[str, object]) -> None:
    """Make arguments that are no tensors part of the graph: calls may leave them out, and may not change them."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    given = [(n, arguments[str(n.target)]) for n in inputs]
    fixed = {n: value for n, value in given if isinstance(value, (bool, int, float, str, type(None)))}
    with graph.inserting_after(inputs[-1]):
        for node, value in reversed(fixed.items()):
            info(graph.call_function(captured_as, (node, value, str(node.target)))).check = True
    for node in reversed(inputs):
        if node not in fixed:
            break
        node.args = (fixed[node],)


def _guard_containers(graph: fx.Graph, arguments: dict[str, object]) -> None:
    """Make the structure of containers, and the values in them that are no tensors, part of the graph."""
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        value = arguments[str(node.target)]
        if isinstance(value, (dict, tuple, list)):
            with graph.inserting_after(node):  # before its members are read
                info(graph.call_function(StructureCheck.of(str(node.target), value), (node,))).check = True


def _guard_sizes(recorded: Recorded, asked: Inputs) -> None:
    """Make sizes that could not vary part of the graph."""
    last = [n for n in recorded.graph.nodes if n.op == "placeholder" or n in recorded.nodes][-1]
    names = [name for name, value in asked.arguments.items() for _ in tensors(value)]
    examples = tensors(asked.arguments)
    for i, (wanted, got) in enumerate(zip(asked.varying, recorded.inputs.varying, strict=True)):
        for dim in wanted.keys() - got.keys() if names[i] not in recorded.fixed else ():
            with recorded.graph.inserting_after(last):
                size = recorded.graph.call_method("size", (recorded.nodes[i], dim))
            with recorded.graph.inserting_after(size):
                recorded.graph.call_function(captured_as, (size, examples[i].shape[dim], f"{names[i]}.shape[{dim}]"))


def _guard_values(graph: fx.Graph, root: nn.Module, fixed: dict[str, torch.Tensor]) -> None:
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in inputs:
        name = str(node.target)
        if name in fixed:
            root.register_buffer(f"_recorded_{name}", fixed[name], persistent=False)
            with graph.inserting_after(inputs[-1]):
                recorded = graph.get_attr(f"_recorded_{name}")
            with graph.inserting_after(recorded):
                info(graph.call_function(same_values, (node, recorded, name))).check = True


def _obeys_mode(node: fx.Node) -> bool:
    module = node.graph.owning_module
    if node.op != "call_module" or module is None:
        return node.target is by_mode or (node.op == "get_attr" and node.target == "training")
    layer = module.get_submodule(str(node.target))
    return isinstance(layer, _MODE_LAYERS)


def _keep_constant(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, attribute = owner_of(root, name)
    owner.__dict__.pop(attribute, None)
    owner.register_buffer(attribute, tensor.detach(), persistent=False)


def _unreachable(root: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    read = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    tied = {id(t) for name, t in named_state(root).items() if name in read or owner_path(name) in read}
    return tuple(
        name
        for name, t in named_state(root).items()
        if id(t) not in tied
        and not any(name.startswith(f"{r}.") for r in read)
        and not name.endswith("num_batches_tracked")
    )

"""PyTorch to an ONNX program in memory by `torch.onnx.export(dynamo=True)`: names kept, quiet, with plain errors."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from utcompile.deploy.call import Call
from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, clear_inplace
from utcompile.graph.structure import structural_copy
from utcompile.rewrite import TunedModule

CHATTY = ("torch", "onnxscript", "onnx_ir")


def translate(
    model: nn.Module,
    call: Call,
    output_names: Sequence[str],
    opset: int | None,
    sizes: Mapping[str, int] | None = None,
    *,
    half: bool = False,
    optimize: bool = True,
) -> torch.onnx.ONNXProgram:
    """Export `model`, called as in `call`, with its axes dynamic.

    Args:
        sizes: of the axes in the trace. None: a batch of two and the example's others. torch takes 0 and 1 for
            constants.
        half: the model is in float16, and the file takes and gives float32.
        optimize: let the exporter optimise; else all values keep their names, and nothing is merged.

    Raises:
        UtcError: the model cannot be traced, or an operation has no ONNX form; with the innermost reason.
    """
    axes = tuple(dict(shape) or None for shape in call.axes)
    exported = _writing_nothing_in_place(model)
    try:
        with _quiet(), _guards_unasked(exported):
            program = torch.onnx.export(
                _Flat(exported, call, half).eval(),
                call.at(2 if sizes is None else sizes),
                dynamo=True,
                input_names=list(call.names),
                output_names=list(output_names),
                dynamic_shapes=(axes,),
                opset_version=opset,
                optimize=optimize,
                verbose=False,
            )
    except Exception as error:  # the exporter's own classes are private, and a forward may raise anything
        why = _innermost(error)
        fixed = re.search(r"user-specified ranges|specialized it to be a constant|Constraints violated", why)
        raise UtcError(
            f"the model fixes a size: {', '.join(call.sizes)}"
            if fixed and len(call.sizes) > 1
            else "the model fixes its batch size"
            if fixed
            else "the model cannot be exported to ONNX",
            where=type(model).__name__,
            why=why,
            fix="in forward, take sizes from x.shape; or name the inputs that carry the batch in `batch_inputs`"
            if fixed
            else "rewrite the operation that is named, or take it out of the exported model",
            code="export/unsupported",
        ) from error
    assert program is not None  # None is what the TorchScript exporter returns
    if opset is not None and program.model.opset_imports[""] != opset:
        raise UtcError(
            f"the model cannot be exported at opset {opset}",
            why=f"the exporter gives opset {program.model.opset_imports['']} for it",
            fix="leave `opset` out, or choose 18 or later",
            code="export/unsupported",
        )
    _strip_prefix(program)
    return program


def _writing_nothing_in_place(model: nn.Module) -> nn.Module:
    """A copy of a graph that shares its tensors, with the same operations out of place.

    The exporter has no form for most writes in place: it traces Python that makes other operations of them, which took
    two fifths of an EfficientNet's export. A tuned module is exported as it is: its tuners may be off in this context.
    """
    if not isinstance(model, UtcGraphModule) or isinstance(model, TunedModule):
        return model
    copied = structural_copy(model)
    assert isinstance(copied, UtcGraphModule)
    clear_inplace(copied.graph, copied)
    copied.recompile()
    return copied


@contextmanager
def _guards_unasked(model: nn.Module) -> Iterator[None]:
    """Guards on sizes are no part of a file: the exporter would make them limits of its symbolic sizes."""
    graphs = [m.graph for m in model.modules() if isinstance(m, fx.GraphModule)]
    checks: list[Any] = [n.target for graph in graphs for n in graph.nodes if hasattr(n.target, "asked")]
    for check in checks:
        check.asked = False
    try:
        yield
    finally:
        for check in checks:
            check.asked = True


class _Flat(nn.Module):
    """The model as a function of tensors to a tuple of tensors; all its parameters lie under `model.`."""

    def __init__(self, model: nn.Module, call: Call, half: bool = False) -> None:
        super().__init__()
        self.model = model
        self._call, self._half = call, half

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._half:
            tensors = tuple(_cast(t, torch.float32, torch.float16) for t in tensors)
        results = tuple(self._call.run(self.model, tensors).values())
        return tuple(_cast(t, torch.float16, torch.float32) for t in results) if self._half else results


def _cast(tensor: Tensor, source: torch.dtype, target: torch.dtype) -> Tensor:
    return tensor.to(target) if tensor.dtype is source else tensor


def _strip_prefix(program: torch.onnx.ONNXProgram) -> None:
    """Give the weights the names they have in the user's model."""
    graph = program.model.graph
    taken = {value.name for value in graph.inputs} | {out.name for node in graph.all_nodes() for out in node.outputs}
    for name in list(graph.initializers):
        plain = name.removeprefix("model.")
        # A parameter that is named as an input would make that input optional.
        if plain != name and plain not in taken and plain not in graph.initializers:
            value = graph.initializers[name]
            value.name = plain
            if value.const_value is not None:
                value.const_value.name = plain


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, prints or log lines of the exporter and its libraries; what fails still raises."""
    import onnxscript  # noqa: F401  its loggers must exist before they can be silenced
    import torch.onnx._internal.exporter._core  # noqa: F401

    disabled: list[tuple[logging.Logger, bool]] = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.split(".")[0] in CHATTY:
            disabled.append((logger, logger.disabled))
            logger.disabled = True
    try:
        # torch.export prints the graph of every failed attempt, whatever `verbose` says.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in disabled:
            logger.disabled = was


def _innermost(error: BaseException) -> str:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    # The deepest link is often a bare KeyError of the exporter; the deepest one with a sentence says why.
    spoken = [link for link in chain if len(str(link).split()) > 2] or chain
    text = _plain(str(spoken[-1])) or "no reason given"
    return f"{type(spoken[-1]).__name__}: {text}"


def _plain(message: Any) -> str:
    """The first lines of a message without colours, and without advice on debugging torch."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", message).splitlines() if line.strip()]
    kept: list[str] = []
    for line in lines[:6]:
        if line.startswith(("For more information", "The following call raised", "To fix the error", "Caused by")):
            break
        kept.append(line)
    return " ".join(kept)[:600]

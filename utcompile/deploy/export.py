"""A PyTorch module to one ONNX file, which is proven equal in ONNX Runtime before it appears under its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

import onnx
import torch
from torch import Tensor, nn

from utcompile.deploy.call import Call, ExampleInputs, as_shipped
from utcompile.deploy.parity import Expected, ParityReport, check_batch_sizes, check_tolerance, compare_once, references
from utcompile.deploy.runtime import session
from utcompile.deploy.translate import BATCH, translate
from utcompile.errors import UtcError, check_type
from utcompile.files import draft, path_of, reported

GUARDS = "utcompile.guards"  # the key in a file's metadata


@dataclass(frozen=True)
class ExportResult:
    """The written file, and how well it was proven.

    Attributes:
        path: the ONNX file.
        max_error: the largest absolute difference between ONNX Runtime and PyTorch, over all outputs and sizes.
        opset: the version of the ONNX operator set the file uses.
        bytes: its size, external data included.
        input_names, output_names: as a session takes and gives them.
        batch_sizes: the batch sizes that were compared.
        parity: every comparison.
        guards: what must hold of the inputs, or the file computes something else than the model: nothing in the file
            checks them. They are in its metadata too, under `utcompile.guards`.
    """

    path: Path
    max_error: float
    opset: int
    bytes: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    parity: ParityReport
    guards: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB, opset {self.opset}, "
            f"({', '.join(self.input_names)}) -> ({', '.join(self.output_names)})\n"
            f"  equal in ONNX Runtime at batch sizes {sizes}: largest difference {self.max_error:.1e}"
            + "".join(f"\n  right only for {guard}" for guard in self.guards)
        )


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: ExampleInputs,
    *,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float | None = None,
    opset: int | None = None,
    batch_inputs: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    check_inputs: object = None,
) -> ExportResult:
    """Export a model to one ONNX file with a dynamic axis `batch`, and prove it in ONNX Runtime.

    The model is exported in eval mode and left as it was. Inputs keep the names of the arguments and weights the names
    of the parameters, as far as the exporter does not fuse or transpose them. The file is written next to `path` and
    moved there last: when anything fails, a file that was at `path` is still there, and none is if there was none.

    Args:
        path: where the file goes; its folder exists. Above 1.5 GB, the weights go to `path` with `.data` appended.
        example_inputs: a tuple (positional), a mapping (keyword) or one tensor, at any batch size; `(B, C, H, W)` for
            an image model. Numbers, flags and `None` among them are baked in.
        batch_sizes: at which random inputs of the example's shapes and ranges are compared, next to the example
            itself. None: 1, 3 and 8, without those that a guard of the captured model refuses.
        tolerance: `|onnx - torch| ≤ tolerance · max(1, max|torch|)` per output. None: 1e-4, and 1e-2 in float16.
        opset: the ONNX operator set. None: the exporter's default (20 in torch 2.15). From 23 on attention is one node.
        batch_inputs: the inputs whose dimension 0 is the batch. None: `model.batch_inputs` where there is one, else
            all whose dimension 0 equals that of the first tensor.
        check_inputs: real samples to compare on as well: one, or a list of them, each as `example_inputs`.
        metadata: written to the file's metadata, e.g. `{"task": "digits"}`.

    Raises:
        UtcError: the folder is missing, the exporter fails, the batch is not dynamic, or the outputs differ.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = export_onnx(nn.Linear(4, 2), f"{folder}/linear.onnx", torch.ones(1, 4))
        >>> result.input_names, result.output_names, result.batch_sizes
        (('input',), ('output',), (1, 3, 8))
    """
    path, sizes = path_of(path, "path"), check_batch_sizes(batch_sizes)
    check_type(model, nn.Module, "model", "a torch.nn.Module")
    check_type(opset, (int, NoneType), "opset", "a whole number, or None")
    check_tolerance(tolerance)
    with reported("the ONNX file cannot be written", path):
        _check_target(path)
    _check_dtype(model)
    _check_metadata(metadata)
    _check_recurrent(model)
    call = Call.of(model, example_inputs, batch_inputs)
    guards = tuple(map(str, getattr(model, "guards", ())))
    with reported("the ONNX file cannot be written", path), draft(path.parent) as beside:
        with as_shipped(model):
            # PyTorch first: a model that fills a cache when it runs must fill it with real tensors, not traced ones.
            expected = references(model, call, sizes, check_inputs)
            program = translate(model, call, tuple(expected[0][3]), opset)
            program.model.metadata_props.update(_guards_written(guards) | dict(metadata or {}))
            program.save(beside / path.name)
        written = _check_file(beside / path.name, call, [(batch, outputs) for _, batch, _, outputs in expected])
        parity = _prove(model, beside / path.name, path, call, expected, tolerance)
        parity.require()
        size = sum(file.stat().st_size for file in beside.iterdir())
        # External data first, so that the graph is never there before its weights.
        for file in sorted(beside.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
    return ExportResult(
        path=path,
        max_error=parity.max_error,
        opset=next(entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")),
        bytes=size,
        input_names=tuple(entry.name for entry in written.graph.input),
        output_names=tuple(entry.name for entry in written.graph.output),
        batch_sizes=parity.batch_sizes,
        parity=parity,
        guards=guards,
    )


def _guards_written(guards: tuple[str, ...]) -> dict[str, str]:
    """What the file's metadata says of the calls for which it is right."""
    return {GUARDS: "\n".join(guards)} if guards else {}


def _prove(
    model: nn.Module, draft: Path, path: Path, call: Call, expected: list[Expected], tolerance: float | None
) -> ParityReport:
    opened = session(draft)
    entries = []
    for source, batch, tensors, outputs in expected:
        entries += compare_once(
            model, opened, call, tensors, batch=batch, source=source, tolerance=tolerance, expected=outputs
        )
    return ParityReport(path, tuple(entries))


def _check_target(path: Path) -> None:
    if not path.parent.is_dir():
        raise UtcError(
            "the folder to write to does not exist", where=str(path.parent), fix="create it first", code="path/invalid"
        )
    if path.is_dir():
        raise UtcError(
            "the path to write to is a folder",
            where=str(path),
            fix=f"name a file: {path / 'model.onnx'}",
            code="path/invalid",
        )
    if not os.access(path.parent, os.W_OK):
        raise UtcError("the folder is not writable", where=str(path.parent), code="path/invalid")


def _check_dtype(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype is torch.bfloat16:
            raise UtcError(
                "a bfloat16 model cannot be proven: ONNX Runtime has no bfloat16 kernels on the CPU",
                where=name,
                fix="export model.float() or model.half()",
                code="export/unsupported",
            )


def _check_recurrent(model: nn.Module) -> None:
    """ONNX's LSTM has no projections, and a file that leaves them out is wrong."""
    for name, _ in model.named_parameters(
        remove_duplicate=False
    ):  # where it is tuned, it is no nn.LSTM's call any more
        path, _, attribute = name.rpartition(".")
        if attribute.startswith("weight_hr_l"):
            raise UtcError(
                "an LSTM with projections (proj_size) has no ONNX operator",
                where=path or "the root module",
                fix="deploy it with torch.export, or train an nn.LSTM without proj_size and a linear after it",
                code="export/unsupported",
            )


def _check_metadata(metadata: Mapping[str, str] | None) -> None:
    check_type(metadata, (Mapping, NoneType), "metadata", "a mapping from texts to texts")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UtcError(
                f"metadata {key!r} is a {type(value).__name__}",
                fix="ONNX metadata is text: use json.dumps",
                code="arguments/value",
            )


def _check_file(draft: Path, call: Call, outputs: list[tuple[int, dict[str, Tensor]]]) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(str(draft), full_check=True)
    except Exception as error:  # ValidationError or InferenceError, by version
        raise UtcError(
            "the exported file is not valid ONNX", why=str(error).strip().splitlines()[0], code="export/unsupported"
        ) from error
    written = onnx.load(str(draft), load_external_data=False)
    inputs = {entry.name: _axes(entry) for entry in written.graph.input}
    for name, batched in zip(call.names, call.batched, strict=True):
        if name not in inputs:
            raise UtcError(
                f"the exporter dropped the input {name!r}",
                why=f"the file has {', '.join(inputs)}",
                code="export/disagrees",
            )
        if batched and inputs[name][0] != BATCH:
            raise _fixed_batch("input", name, inputs[name])
    axes = {entry.name: _axes(entry) for entry in written.graph.output}
    for name, shapes in _shapes(outputs).items():
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1 and isinstance(axes[name][axis], int):
                raise _fixed_batch("output", name, axes[name])
    return written


def _shapes(outputs: list[tuple[int, dict[str, Tensor]]]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(found[name].shape) for _, found in outputs] for name in outputs[0][1]}


def _axes(entry: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]


def _fixed_batch(kind: str, name: str, axes: list[str | int]) -> UtcError:
    return UtcError(
        f"the batch of {kind} {name!r} became fixed in the ONNX graph: ({', '.join(map(str, axes))})",
        why="the model's forward turns the batch size into a constant",
        fix="in forward, take sizes from x.shape; or name the inputs that carry the batch in `batch_inputs`",
        code="export/fixed-size",
    )

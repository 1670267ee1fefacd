"""A PyTorch module to one ONNX file, which is proven equal in ONNX Runtime before it appears under its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType

from torch import nn

from utcompile.deploy.axes import BATCH, bounded, guards_in_words
from utcompile.deploy.call import Call, ExampleInputs, as_shipped
from utcompile.deploy.checks import check_dtype, check_recurrent
from utcompile.deploy.clean import clean
from utcompile.deploy.half import DTYPES, operations_in_float32, store_in_half
from utcompile.deploy.metadata import check_described, check_labels, check_metadata, facts_of, written
from utcompile.deploy.parity import ParityReport, check_batch_sizes, check_tolerance, compare_expected
from utcompile.deploy.publishing import publish
from utcompile.deploy.references import Expected, references, refined, trace_sizes
from utcompile.deploy.runtime import session
from utcompile.deploy.tasks import export_tasks
from utcompile.deploy.translate import translate
from utcompile.deploy.written import ExportResult, Options, check_file, finish, fixed_sizes
from utcompile.errors import UtcError, check_type
from utcompile.files import check_target, draft, path_of, reported


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: ExampleInputs,
    *,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float | None = None,
    opset: int | None = None,
    batch_inputs: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
    preprocessing: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
    check_inputs: object = None,
    tasks: Mapping[str, str | Path] | None = None,
    routing: str = "call",
) -> ExportResult:
    """Export a model to one ONNX file with dynamic sizes, and prove it in ONNX Runtime.

    All sizes vary that a captured model has dynamic: the batch, the length of texts, and what `utc.capture(dynamic=…)`
    names. Of a model that is not captured, the batch varies.

    The model is exported in eval mode and left as it was. Inputs keep the names of the arguments and weights the names
    of the parameters, as far as the exporter does not fuse them. The file is written next to `path` and moved there
    last: when anything fails, a file that was at `path` is still there, and none is if there was none.

    Args:
        path: where the file goes; its folder exists. Above 1.5 GB, the weights go to `path` with `.data` appended.
        example_inputs: a tuple (positional), a mapping (keyword) or one tensor, at any batch size; `(B, C, H, W)` for
            an image model. Numbers, flags and `None` among them are baked in.
        batch_sizes: at which random inputs of the example's shapes and ranges are compared, next to the example
            itself. None: 1, 3 and 8, without those that a guard of the captured model refuses. Of every other axis,
            the smallest and the largest size that runs are compared.
        tolerance: `|onnx - torch| ≤ tolerance · max(1, max|torch|)` per output. None: 1e-4, and 1e-2 in float16.
        opset: the ONNX operator set. None: the exporter's default (20 in torch 2.15). From 23 on attention is one node.
        batch_inputs: the inputs whose dimension 0 is the batch. None: `model.batch_inputs` where there is one, else
            all whose dimension 0 equals that of the first tensor.
        dynamic: the sizes that vary, as `{"x": {0: "batch", 2: "height"}}`, instead of what the capture has. Without
            it, a size that the exporter fixes becomes fixed in the file, and the result has a note; with it, it is an
            error.
        dtype: `float16-weights` stores weights in float16 and computes in float32: half the size, at equal speed.
            `float16` computes in float16 too, for GPUs, with float32 inputs and outputs. None: as the model is.
        labels: the names of the classes, for the metadata.
        preprocessing: plain data for the metadata: size, mean, std, interpolation, crop_pct.
        check_inputs: real samples to compare on as well: one, or a list of them, each as `example_inputs`.
        metadata: written to the file's metadata, e.g. `{"task": "digits"}`.
        facts: entries of the metadata under `utcompile.`, as JSON, instead of what the model says: `base`, `rules`.
        tasks: runs by the names of tasks, `{"cats": "run1/"}`: one file has the backbone, and each task's tuners and
            head are values that a call chooses. The model is a tuned one, compiled with the rules of the runs; without
            a task, the file computes what it computes.
        routing: `call`: a call has one task, from the file `NAME.TASK.onnx_adapter` that ONNX Runtime loads. `row`:
            each row of a batch has its own, by an int64 input, and the tasks are in the file.

    Raises:
        UtcError: the folder is missing, the exporter fails, a size is not dynamic, or the outputs differ.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = export_onnx(torch.nn.Linear(4, 2), f"{folder}/linear.onnx", torch.ones(1, 4))
        >>> result.input_names, result.output_names, result.batch_sizes
        (('input',), ('output',), (1, 3, 8))
    """
    path = path_of(path, "path")
    check_type(model, nn.Module, "model", "a torch.nn.Module")
    described = {**(facts or {}), "labels": labels, "preprocessing": preprocessing}
    options = checked_options(batch_sizes, tolerance, opset, dtype, check_inputs, described, metadata)
    with reported("the ONNX file cannot be written", path):
        check_target(path)
    check_dtype(model)
    check_recurrent(model)
    call = Call.of(model, example_inputs, batch_inputs, dynamic)
    with reported("the ONNX file cannot be written", path), draft(path.parent) as beside:

        def written(call: Call) -> ExportResult:
            if tasks is not None:
                return export_tasks(model, call, tasks, routing, path, beside, options)
            return write(model, call, path, beside / path.name, options)

        result = _with_fallback(call, beside, written, asked=dynamic is not None)
        publish(beside, path, last=path.name)
    return result


def checked_options(
    batch_sizes: Sequence[int] | None,
    tolerance: float | None,
    opset: int | None,
    dtype: str | None,
    check_inputs: object,
    facts: Mapping[str, object],
    metadata: Mapping[str, str] | None,
) -> Options:
    """The options of an export, or a `UtcError` where one is malformed."""
    sizes = check_batch_sizes(batch_sizes)
    check_type(opset, (int, NoneType), "opset", "a whole number, or None")
    check_tolerance(tolerance)
    check_described(facts.get("labels"), facts.get("preprocessing"))
    check_metadata(metadata)
    name = str(dtype).removeprefix("torch.") if dtype is not None else None
    if name == "bfloat16":
        raise UtcError(
            "a bfloat16 file cannot be proven: ONNX Runtime has no bfloat16 kernels on the CPU",
            fix="export with dtype='float16-weights', or 'float16' for a GPU",
            code="export/unsupported",
        )
    if name is not None and name not in DTYPES:
        raise UtcError(f"dtype is {dtype!r}", fix=f"choose one of {', '.join(DTYPES)}", code="arguments/value")
    return Options(sizes, tolerance, opset, name, check_inputs, dict(facts), dict(metadata or {}))


def _with_fallback(call: Call, drafts: Path, written: Callable[[Call], ExportResult], *, asked: bool) -> ExportResult:
    """Write with all axes dynamic; where the exporter fixes one that `dynamic=` does not name, with the batch alone."""
    try:
        return written(call)
    except UtcError as error:
        others = [name for name in call.sizes if name != BATCH]
        is_size = error.code in ("export/fixed-size", "export/unsupported", "export/disagrees")
        if asked or not others or BATCH not in call.sizes or not is_size:
            raise
        for file in drafts.iterdir():
            file.unlink()
        note = f"{', '.join(others)} became fixed: {error.what}" + (f" ({error.why})" if error.why else "")
        try:
            result = written(call.only(BATCH))
        except UtcError:
            raise error from None
        return replace(result, notes=(note[:600], *result.notes))


def write(model: nn.Module, call: Call, path: Path, beside: Path, options: Options) -> ExportResult:
    """Write one file and prove it; `path` is where it will be, `beside` where it is written."""
    axes, guards = bounded(model, call.sizes), guards_in_words(model)
    shipped = _in_half(model) if options.dtype == "float16" else model
    with as_shipped(model), as_shipped(shipped):
        # PyTorch first: a model that fills a cache when it runs must fill it with real tensors, not traced ones.
        expected = references(model, call, options.batch_sizes, options.check_inputs)
        check_labels(options.facts.get("labels"), expected[0].outputs)
        program = translate(
            shipped,
            call,
            tuple(expected[0].outputs),
            options.opset,
            trace_sizes(model, call),
            half=options.dtype == "float16",
        )
    notes = operations_in_float32(program.model) if options.dtype == "float16" else ()
    clean(program.model, shipped.state_dict())
    if options.dtype == "float16-weights":
        notes += store_in_half(program.model)
    fixed = fixed_sizes(call)
    with as_shipped(model):
        axes = tuple(axis if axis.name == BATCH else refined(model, call, axis, expected) for axis in axes)
    facts = {
        **facts_of(model),
        "axes": [axis.to_dict() for axis in axes],
        "fixed": list(fixed),
        "guards": list(guards),
        "dtype": options.dtype or "float32",
        **options.facts,
    }
    program.model.metadata_props.update(written(facts) | dict(options.metadata))
    program.save(beside)
    finish(beside, {})
    proto = check_file(beside, call, expected)
    parity = _prove(beside, path, call, expected, options)
    parity.require()
    finish(beside, written({"parity": parity.to_dict()}))
    return ExportResult(
        path=path,
        max_error=parity.max_error,
        opset=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        bytes=sum(file.stat().st_size for file in beside.parent.iterdir()),
        input_names=tuple(entry.name for entry in proto.graph.input),
        output_names=tuple(entry.name for entry in proto.graph.output),
        batch_sizes=parity.batch_sizes,
        parity=parity,
        guards=guards,
        axes=axes,
        fixed=fixed,
        notes=notes,
    )


def _in_half(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).half()


def _prove(beside: Path, path: Path, call: Call, expected: list[Expected], options: Options) -> ParityReport:
    opened = session(beside)
    entries = [entry for one in expected for entry in compare_expected(opened, call, one, options.bound)]
    return ParityReport(path, tuple(entries))

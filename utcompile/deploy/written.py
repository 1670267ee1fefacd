"""What every export of an ONNX file needs: its options and result, the check of a written file, its last touches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from utcompile.deploy.axes import BATCH, Axis
from utcompile.deploy.call import Call
from utcompile.deploy.parity import ParityReport
from utcompile.deploy.references import Expected
from utcompile.errors import UtcError

HALF_TOLERANCE = 1e-2  # float16 has 11 bits, and a deep network rounds often


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
        guards: relations between sizes; where one is not met, the file computes something else than the model.
            `OnnxModel` checks them. They are in the metadata too, under `utcompile.guards`.
        axes: the sizes that vary, with their bounds.
        fixed: the other sizes of the inputs, as `x[1]=3`.
        notes: what a reader should know: sizes that became fixed, operations that stay in float32.
        tasks: the names of the tasks.
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
    axes: tuple[Axis, ...] = ()
    fixed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return "\n".join(
            [
                f"{self.path}: {self.bytes / 1e6:.1f} MB, opset {self.opset}, "
                f"({', '.join(self.input_names)}) -> ({', '.join(self.output_names)})",
                f"  equal in ONNX Runtime at batch sizes {sizes}: largest difference {self.max_error:.1e}",
                f"  sizes that vary: {'; '.join(map(str, self.axes))}",
                *([f"  fixed: {', '.join(self.fixed)}"] if self.fixed else []),
                *([f"  tasks: {', '.join(self.tasks)}"] if self.tasks else []),
                *(f"  right only for {guard}" for guard in self.guards),
                *(f"  note: {note}" for note in self.notes),
            ]
        )


@dataclass(frozen=True)
class Options:
    """How a file is written; the arguments of `export_onnx` that are not the model's.

    Attributes:
        dtype: one of `DTYPES`; None: the model's own.
        facts: entries of the metadata under `utcompile.`.
        metadata: further entries.
    """

    batch_sizes: tuple[int, ...] | None = None
    tolerance: float | None = None
    opset: int | None = None
    dtype: str | None = None
    check_inputs: object = None
    facts: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def bound(self) -> float | None:
        """The tolerance of comparisons."""
        is_half = self.dtype in ("float16", "float16-weights")
        return HALF_TOLERANCE if self.tolerance is None and is_half else self.tolerance


def finish(path: Path, entries: Mapping[str, str]) -> None:
    """Add entries to a written file's metadata, and drop shapes of inner values; its external data stays as it is."""
    proto = onnx.load(str(path), load_external_data=False)
    # the quantisers of ONNX Runtime take wrong ones for true; what needs them infers them
    del proto.graph.value_info[:]
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def fixed_sizes(call: Call) -> tuple[str, ...]:
    """The sizes of the inputs that do not vary, as `x[1]=3`."""
    return tuple(
        f"{name}[{dim}]={size}"
        for name, shape, tensor in zip(call.names, call.axes, call.tensors, strict=True)
        for dim, size in enumerate(tensor.shape)
        if dim not in shape
    )


def check_file(written: Path, call: Call, expected: Sequence[Expected]) -> onnx.ModelProto:
    """Raise where a file is not valid, or a size that varies is fixed in it."""
    try:
        onnx.checker.check_model(str(written), full_check=True)
    except Exception as error:  # ValidationError or InferenceError, by version
        raise UtcError(
            "the exported file is not valid ONNX", why=str(error).strip().splitlines()[0], code="export/unsupported"
        ) from error
    proto = onnx.load(str(written), load_external_data=False)
    inputs = {entry.name: _axes(entry) for entry in proto.graph.input}
    for name, shape in zip(call.names, call.axes, strict=True):
        if name not in inputs:
            raise UtcError(
                f"the exporter dropped the input {name!r}",
                why=f"the file has {', '.join(inputs)}",
                code="export/disagrees",
            )
        if any(inputs[name][dim] != axis for dim, axis in shape.items()):
            raise _fixed(set(shape.values()), "input", name, inputs[name])
    axes = {entry.name: _axes(entry) for entry in proto.graph.output}
    for name, shapes in _shapes(expected).items():
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1 and isinstance(axes[name][axis], int):
                raise _fixed(set(call.sizes), "output", name, axes[name])
    return proto


def _shapes(expected: Sequence[Expected]) -> dict[str, list[tuple[int, ...]]]:
    names = expected[0].outputs
    return {name: [tuple(one.outputs[name].shape) for one in expected if name in one.outputs] for name in names}


def _axes(entry: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]


def _fixed(sizes: Collection[object], kind: str, name: str, axes: list[str | int]) -> UtcError:
    what = "the batch" if set(sizes) <= {BATCH} else "a size"
    return UtcError(
        f"{what} of {kind} {name!r} became fixed in the ONNX graph: ({', '.join(map(str, axes))})",
        why="the model's forward turns the size into a constant, or sets it equal to another",
        fix="in forward, take sizes from x.shape; or name the inputs that carry the batch in `batch_inputs`",
        code="export/fixed-size",
    )

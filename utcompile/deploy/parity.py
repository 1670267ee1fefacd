"""Does an ONNX file compute what its PyTorch model computes? Compared output by output, at several batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from utcompile.deploy.call import Call, ExampleInputs, as_shipped
from utcompile.deploy.references import Expected, reference, references
from utcompile.deploy.runtime import SECONDS, run, session
from utcompile.errors import UtcError, check_type, did_you_mean

# float32: both sides round every sum differently; 1e-4 is some 800 units in the last place, seen only in deep
# networks, and far below what a wrong operation or a lost weight causes (1e-2 and more). float16 has 11 bits.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_FLOAT32 = 1e-4


@dataclass(frozen=True)
class OutputParity:
    """One output at one batch size.

    Attributes:
        output: its name in the ONNX file.
        batch: the batch size; `source` tells whether the inputs were the example's or random.
        sizes: the sizes of the other axes that vary, as `length=7`.
        max_error: the largest `|onnx - torch|`.
        bound: the largest difference allowed.
    """

    output: str
    batch: int
    source: str
    max_error: float
    bound: float
    sizes: str = ""

    @property
    def passed(self) -> bool:
        return self.max_error <= self.bound  # false for nan too

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "DIFFERS"
        sizes = f", {self.sizes}" if self.sizes else ""
        error = f"difference {self.max_error:.2e} (allowed {self.bound:.2e})"
        return f"{self.output} at batch {self.batch}{sizes} ({self.source}): {error}, {verdict}"


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of one file with its model."""

    path: Path
    outputs: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison is within its bound."""
        return all(entry.passed for entry in self.outputs)

    @property
    def worst(self) -> OutputParity:
        """The comparison nearest to, or furthest beyond, its bound."""
        return max(
            self.outputs, key=lambda e: (not e.passed, np.nan_to_num(e.max_error, nan=np.inf) / (e.bound or 1e-30))
        )

    @property
    def max_error(self) -> float:
        """The largest absolute difference of all."""
        return max(entry.max_error for entry in self.outputs)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were compared."""
        return tuple(sorted({entry.batch for entry in self.outputs}))

    def to_dict(self) -> dict[str, object]:
        """For a file's metadata."""
        sizes = dict.fromkeys(f"batch={e.batch}" + (f", {e.sizes}" if e.sizes else "") for e in self.outputs)
        return {"max_error": self.max_error, "allowed": self.worst.bound, "sizes": list(sizes)}

    def require(self) -> None:
        """Raise a `UtcError` with the values where anything differs."""
        if self.passed:
            return
        worst, failed = self.worst, [entry for entry in self.outputs if not entry.passed]
        raise UtcError(
            f"ONNX Runtime and PyTorch disagree on {worst.output!r} at batch size {worst.batch}: "
            f"|difference| {worst.max_error:.3g}, allowed {worst.bound:.3g}",
            where=str(self.path),
            why=f"{len(failed)} of {len(self.outputs)} comparisons differ:\n    " + "\n    ".join(map(str, failed[:8])),
            fix="see that the model is deterministic in eval mode; raise `tolerance` only where the reason is known",
            code="export/disagrees",
        )

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT EQUAL"
        head = f"{self.path.name}: {verdict} in ONNX Runtime and PyTorch, largest difference {self.max_error:.2e}"
        return "\n  ".join([head, *map(str, self.outputs)])


def verify_onnx(
    path: str | Path,
    model: nn.Module,
    example_inputs: ExampleInputs,
    batch_sizes: Sequence[int] | None = None,
    tolerance: float | None = None,
    *,
    batch_inputs: Sequence[str] | None = None,
    threads: int | None = None,
    check_inputs: object = None,
    seconds: float = SECONDS,
    provider: str = "CPUExecutionProvider",
) -> ParityReport:
    """Compare an ONNX file with its model on the example and on random inputs at several batch sizes.

    Args:
        path: the ONNX file.
        model: the module it was exported from; run in eval mode on its own device, its modes are restored.
        example_inputs: a tuple (positional), a mapping (keyword) or one tensor.
        batch_sizes: at which random inputs of the example's shapes and ranges are compared. None: 1, 3 and 8, without
            those that a guard of the captured model refuses.
        tolerance: see `compare_expected`. None: 1e-4, and 1e-2 for a float16 output.
        batch_inputs: the inputs that carry the batch; see `export_onnx`.
        check_inputs: real samples to compare on as well: one, or a list of them.
        seconds: after which one run of the file is stopped.
        provider: ONNX Runtime's execution provider.

    Returns:
        The report; it does not raise where values differ. Call its `require()` for that.

    Raises:
        UtcError: the file is missing or not ONNX; its inputs or outputs have other names, shapes or types.
    """
    sizes = check_batch_sizes(batch_sizes)
    check_tolerance(tolerance)
    opened = session(path, threads, providers=(provider,))
    call = Call.of(model, example_inputs, batch_inputs).within(opened)
    entries = []
    with as_shipped(model):
        for one in references(model, call, sizes, check_inputs):
            entries += compare_expected(opened, call, one, tolerance, seconds)
    return ParityReport(Path(path), tuple(entries))


def compare(
    model: nn.Module,
    path: str | Path,
    inputs: ExampleInputs,
    tolerance: float | None = None,
    *,
    threads: int | None = None,
) -> ParityReport:
    """Compare an ONNX file with its model on the given inputs alone; arguments and errors as in `verify_onnx`."""
    opened = session(path, threads)
    call = Call.of(model, inputs)
    with as_shipped(model):
        given = Expected("given", call.sizes, call.tensors, reference(model, call, call.tensors, call.batch))
        entries = compare_expected(opened, call, given, tolerance)
    return ParityReport(Path(path), tuple(entries))


def compare_expected(
    opened: ort.InferenceSession,
    call: Call,
    expected: Expected,
    tolerance: float | None = None,
    seconds: float = SECONDS,
) -> list[OutputParity]:
    """Run a session on the inputs of which a model's outputs are known, and compare every output.

    An output passes where `|onnx - torch| ≤ tolerance · max(1, max|torch|)`. The bound grows with the largest value of
    the output and not with each element, because an element near zero is the difference of terms of that size: its
    rounding error is theirs. It is at most a tenth of the output's largest value. Integers and booleans must be equal.
    `nan` and infinities must stand in the same places.

    Raises:
        UtcError: outputs differ in name or shape, or an output contains no finite value to compare.
    """
    actual = run(opened, dict(zip(call.names, expected.tensors, strict=True)), seconds)
    wanted = expected.outputs
    if missing := [name for name in wanted if name not in actual]:
        raise UtcError(
            f"the ONNX file has no output {missing[0]!r}",
            why=f"the model returns {', '.join(wanted)}; the file {', '.join(actual)}",
            fix=did_you_mean(missing[0], actual),
            code="export/disagrees",
        )
    return [
        OutputParity(
            name, expected.batch, expected.source, *difference(name, value, actual[name], tolerance), expected.shown
        )
        for name, value in wanted.items()
    ]


def check_batch_sizes(batch_sizes: Sequence[int] | None) -> tuple[int, ...] | None:
    """The batch sizes, or a `UtcError` where one is not a positive integer; None stays None."""
    if batch_sizes is None:
        return None
    check_type(batch_sizes, Sequence, "batch_sizes", "a list of positive integers")
    sizes = tuple(batch_sizes)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise UtcError(f"batch_sizes is {sizes}", fix="name at least one positive integer", code="arguments/value")
    return sizes


def check_tolerance(tolerance: float | None) -> None:
    """Raise where a tolerance is no number."""
    if tolerance is not None:
        check_type(tolerance, (int, float), "tolerance", "a number, or None")


def difference(name: str, value: Tensor, actual: np.ndarray, tolerance: float | None) -> tuple[float, float]:
    if tuple(value.shape) != actual.shape:
        raise UtcError(
            f"output {name!r} is of shape {tuple(value.shape)} in PyTorch and {actual.shape} in ONNX Runtime",
            code="export/disagrees",
        )
    if not value.numel():
        return 0.0, 0.0
    if not value.is_floating_point():
        wrong = value.cpu().to(torch.float64).numpy() - actual.astype(np.float64)
        return float(np.abs(wrong).max()), 0.0
    if tolerance is None:
        tolerance = TOLERANCE.get(value.dtype, TOLERANCE_FLOAT32)
    ours, theirs = value.detach().cpu().to(torch.float64).numpy(), actual.astype(np.float64)
    finite = np.isfinite(ours)
    if not finite.any():
        raise UtcError(
            f"output {name!r} contains no finite value, so nothing can be proven",
            why="PyTorch itself returns nan or infinity on these inputs",
            fix="pass example inputs in the range the model expects; in float16, see whether it overflows",
            code="export/disagrees",
        )
    scale = float(np.abs(ours[finite]).max())
    # At most a tenth of the output itself (unless the caller allows a larger share), or zeros would pass for an output
    # below the tolerance; and at least the rounding of one term of size one.
    bound = max(min(tolerance * max(1.0, scale), max(tolerance, 0.1) * scale), torch.finfo(value.dtype).eps)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True) or not np.isfinite(theirs[finite]).all():
        return float("nan"), bound
    return float(np.abs(ours[finite] - theirs[finite]).max()), bound

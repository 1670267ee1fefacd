"""The proof of the whole model: tuned and folded on the same calls, in the model's own dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utcompile.errors import UtcError
from utcompile.folding.inputs import Call, ProofInputs, evaluated, outputs_of
from utcompile.graph import UtcGraphModule
from utcompile.graph.difference import relative_error

# rounding of the folded weights, amplified through the layers
_STEPS = 64  # of a dtype's rounding, in an operation that adds up many numbers
_SHRINKS = 1e-6  # float64 has rounding 1e-9 of float32's, which two models need not share
_MODEL_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Difference:
    """Where the outputs of the two models differ most.

    Attributes:
        error: relative to the output's largest value; infinite where one of the two alone is not finite.
        size: the same, absolute.
        call: on which inputs.
        output: its number among the floating-point outputs.
        alone: what one model yields alone (`nan`), in words; empty where that is nothing.
        compared: whether any finite number was compared.
    """

    error: float = 0.0
    size: float = 0.0
    call: str = ""
    output: int = 0
    alone: str = ""
    compared: bool = False


def compare(
    tuned: UtcGraphModule, folded: UtcGraphModule, inputs: ProofInputs, *, as_rounding: bool = False
) -> Difference:
    """Run both on every call, in eval and in full precision; both are left as they were.

    Args:
        as_rounding: differences are known to be rounding. They are measured by the values that an output's operation
            reads, where those are larger: an output that cancels out (the mean of a layer norm) is rounding alone.

    Raises:
        UtcError: the tuned model does not run on its example or on a user's sample, or yields no finite number.
    """
    worst, compared = Difference(), False
    with evaluated(tuned, folded):
        for call, must_run in inputs.calls():
            expected = _expected(tuned, call, must_run)
            if expected is None:
                continue
            least = _least(tuned, inputs, call) if as_rounding else [0.0] * len(expected)
            for i, (a, b) in enumerate(zip(outputs_of(folded, call), expected, strict=True)):
                compared |= bool(b.isfinite().any())
                error = relative_error(a, b, least[i])
                if error > worst.error:
                    worst = Difference(error, _largest(a, b), call[0], i, _alone(a, b))
    if not compared and worst.error == 0.0 and expected:
        raise UtcError(
            "no output of the tuned model has a finite number, so nothing can be proven",
            why="on the example inputs and on inputs drawn like them",
            fix="give samples on which the model works: utc.fold(tuned, check_inputs=[…])",
            code="fold/not-proven",
        )
    return worst


def _least(tuned: UtcGraphModule, inputs: ProofInputs, call: Call) -> list[float]:
    """The size by which each output's rounding is measured at least: that of some steps on what it is made of."""
    steps = _STEPS * torch.finfo(tuned.dtype).eps / _MODEL_TOLERANCE.get(tuned.dtype, 1e-3)
    return [size * steps for size in inputs.sizes_read(call)]


def _largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest finite difference, absolute."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found - expected).abs()
    finite = difference[difference.isfinite()]
    return finite.max().item() if finite.numel() else 0.0


def is_rounding(difference: Difference, in_float64: Difference) -> bool:
    """Whether a difference shrinks with the dtype's rounding: one by a wrong fold is as large in float64."""
    if difference.alone or in_float64.alone:
        return False
    return is_proven(in_float64, torch.float64) or in_float64.size <= _SHRINKS * difference.size


def _expected(tuned: UtcGraphModule, call: Call, must_run: bool) -> list[torch.Tensor] | None:
    try:
        return outputs_of(tuned, call)
    except Exception as error:  # whatever a model raises
        if not must_run:
            return None
        raise UtcError(
            f"the tuned model does not run {call[0]}",
            why=f"{type(error).__name__}: {error}".partition("\n")[0],
            fix="give samples on which it runs: utc.fold(tuned, check_inputs=[…])",
            code="fold/not-proven",
        ) from error


def _alone(found: torch.Tensor, expected: torch.Tensor) -> str:
    if found.shape != expected.shape:
        return f"its shape is {list(found.shape)} in the folded model and {list(expected.shape)} in the tuned one"
    for name, test in (("nan", torch.isnan), ("infinite", torch.isinf)):
        for who, a, b in (("folded", found, expected), ("tuned", expected, found)):
            if count := int((test(a) & ~test(b)).sum()):
                return f"{count} of its {a.numel()} numbers are {name} in the {who} model alone"
    return ""


def is_proven(difference: Difference, dtype: torch.dtype) -> bool:
    """Whether rounding to a dtype explains a difference."""
    return difference.error <= _MODEL_TOLERANCE.get(dtype, 1e-3)


def refusal(difference: Difference, dtype: torch.dtype, in_float64: Difference | None) -> UtcError:
    """The error for outputs that differ, with all that is known.

    Args:
        difference: in the model's own dtype.
        dtype: that.
        in_float64: what the same fold gives of the same model in float64; None where it does not run there.
    """
    what = f"the folded model's outputs differ by {difference.error:.1e} of their largest value"
    where = f"output {difference.output}, {difference.call}"
    name = str(dtype).removeprefix("torch.")
    if in_float64 is None:
        why = "the model was not compared in float64, where it does not run"
        fix = "give other samples by `check_inputs=`, or fold a copy in another dtype"
    elif is_rounding(difference, in_float64):
        why = f"in float64 they differ by {in_float64.error:.0e} on the same inputs: it is the rounding of {name}"
        fix = "fold in float64: utc.fold(tuned.double())"
    else:
        why = f"in float64 they differ by {in_float64.error:.1e} too, so this is not rounding: a fold is wrong here"
        fix = (
            "exclude the sites in question by `except:` or `where:` and report the model: this is a fault of utcompile"
        )
    return UtcError(
        what, where=where, why="; ".join(filter(None, (difference.alone, why))), fix=fix, code="fold/not-proven"
    )

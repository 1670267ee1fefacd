"""The equality of two results: bit for bit on a CPU, elsewhere within the rounding of the dtype."""

from __future__ import annotations

import torch

from utcompile.recording.layouts import comparable

T = torch.Tensor


def equal(expected: T, found: T, *, gradient: bool = False) -> bool:
    """Whether shapes, dtypes and values agree; NaN equals NaN, in the same places.

    Gradients add up in an order that autograd chooses, so they have a bound on a CPU too.

    >>> equal(torch.ones(2), torch.ones(2)), equal(torch.ones(2), torch.ones(2) + 1e-6)
    (True, False)
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    expected, found = comparable(expected), comparable(found)
    inexact = expected.is_floating_point() or expected.is_complex()
    if not inexact or (expected.device.type == "cpu" and not gradient):
        same = torch.equal(expected, found)
        return same or (inexact and bool(((expected == found) | (expected.isnan() & found.isnan())).all()))
    relative = bound(expected.dtype) * (10 if gradient else 1)
    finite = expected[expected.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    return torch.allclose(expected, found, rtol=relative, atol=relative * largest, equal_nan=True)


def bound(dtype: torch.dtype) -> float:
    """The largest difference between two runs of the same kernels, relative to the largest value.

    Kernels that add with atomic operations choose another order in each run, which costs some roundings each time, more
    of them in a deep model. Half precision has few digits to spare: ten roundings are allowed, a hundred elsewhere.

    >>> f"{bound(torch.float32):.0e} {bound(torch.bfloat16):.0e}"
    '1e-05 8e-02'
    """
    eps = torch.finfo(dtype).eps
    return eps * (10 if eps > 1e-4 else 100)


def why_not(expected: T, why: str) -> str:
    """The likely reason for a difference; on a GPU with the reasons that are typical there."""
    if expected.device.type != "cuda":
        return why
    tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    reasons = [
        *(
            ["TF32 is on, with a unit roundoff of 1e-3 (torch.backends.cudnn.allow_tf32, .cuda.matmul.allow_tf32)"]
            if tf32
            else []
        ),
        *(["cudnn.benchmark chooses other kernels in other calls"] if torch.backends.cudnn.benchmark else []),
        "scatter and index_add are not deterministic on a GPU (torch.use_deterministic_algorithms)",
    ]
    return f"{why}; on a GPU also: {'; '.join(reasons)}"

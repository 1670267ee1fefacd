"""How far two results are apart."""

from __future__ import annotations

import torch


def relative_error(found: torch.Tensor, expected: torch.Tensor, least: float = 0.0) -> float:
    """The largest difference, relative to the largest finite value, or to `least` where that is more.

    What is not finite is equal where both have the same; it is infinite where they have not, or shapes differ.
    """
    if found.shape != expected.shape:
        return float("inf")
    if expected.is_complex() and found.is_complex():
        found, expected = torch.view_as_real(found.resolve_conj()), torch.view_as_real(expected.resolve_conj())
    finite = found.isfinite() & expected.isfinite()
    if not finite.all():
        if not torch.equal(found[~finite].nan_to_num(nan=0.5), expected[~finite].nan_to_num(nan=0.5)):
            return float("inf")
        found, expected = found[finite], expected[finite]
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=max(least, 1e-30))).item()

"""What rounding leaves of an update of a weight."""

from __future__ import annotations

import torch

from utcompile.folding.execute import as_real

_PIECE = 1 << 16


def share_retained(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> float:
    """`<round(W + Δ) − W, Δ> / <Δ, Δ>`: 1 where rounding loses nothing of the update.

    Args:
        before, after: W and W + Δ in float64.
        dtype: what W + Δ is rounded to.
    """
    energy = kept = 0.0
    before, after, dtype = as_real(before), as_real(after), dtype.to_real()
    # in pieces that stay in a processor's cache: large temporaries cost more than the arithmetic
    for old, new in zip(before.reshape(-1).split(_PIECE), after.reshape(-1).split(_PIECE), strict=True):
        delta = new - old
        energy += torch.dot(delta, delta).item()
        kept += torch.dot(new.to(dtype).double() - old, delta).item()
    return kept / energy if energy else 1.0

"""Tensors like an example's: values without a meaning are drawn, and the others are those of the example.

1. Floating-point and complex numbers are drawn with the example's mean and deviation, inside its range.
2. Whole numbers in them (a batch index in a box, a mask of 0 and -inf) mean something, and so do integers and booleans:
   lengths, grids, masks, positions. Their rows are those of the example, in an order that is drawn.
3. Ids, which index a table of known size, are drawn from the whole table.
"""

from __future__ import annotations

import torch

_COLUMNS = 16  # up to this many numbers in the last axis are looked at one by one: a box, not an image's row


def draw_like(
    example: torch.Tensor, generator: torch.Generator, rows: torch.Tensor | None = None, table: int | None = None
) -> torch.Tensor:
    """A tensor of an example's dtype, on the CPU.

    Args:
        example: the example, with at least one row where there are rows.
        generator: a CPU generator; no global random state is touched.
        rows: the row of the example that each new row is like; None where dimension 0 is no batch.
        table: the number of rows of the table that it indexes.

    Example:
        >>> boxes = torch.tensor([[0.0, 1.5, 2.5], [1.0, 0.5, 3.5]])  # a batch index, and two coordinates
        >>> drawn = draw_like(boxes, torch.Generator().manual_seed(0))
        >>> drawn[:, 0], bool((drawn[:, 1:] != boxes[:, 1:]).any())
        (tensor([0., 1.]), True)
    """
    kept = example.detach().cpu()
    kept = kept if rows is None else kept[rows]
    if table is not None:
        return torch.randint(0, table, kept.shape, generator=generator).to(kept.dtype)
    if not kept.numel() or not (kept.is_floating_point() or kept.is_complex()):
        return kept
    if kept.is_complex():
        parts = torch.view_as_real(kept.resolve_conj())
        return torch.view_as_complex(_numbers(parts, parts, generator).contiguous())
    return _numbers(kept, example.detach().cpu(), generator)


def _numbers(kept: torch.Tensor, example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = example.double()
    drawn = torch.randn(kept.shape, generator=generator, dtype=torch.float64)
    finite = values[values.isfinite()]
    if not finite.numel():
        return kept
    low, high = finite.min().item(), finite.max().item()
    if low == high:  # zeros or ones as a placeholder: they say nothing of the range
        return drawn.to(kept.dtype) if finite.numel() == values.numel() else kept
    drawn = (drawn * finite.std().item() + finite.mean().item()).clamp(low, high).to(kept.dtype)
    whole = (values == values.round()) | ~values.isfinite()
    if values.dim() > 1 and values.shape[-1] <= _COLUMNS:
        return torch.where(whole.flatten(0, -2).all(0), kept, drawn)
    return kept if whole.all() else drawn

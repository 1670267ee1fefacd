"""An example input for a run, of the shapes and dtypes that its manifest has."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

_MOST = 2**28  # numbers of one input: 1 GiB in float32


def example_of(inputs: JsonObject, seed: int, where: str) -> dict[str, Tensor]:
    """Random inputs by name, the same for the same seed. Token ids are 0 and 1, masks are all ones.

    Raises:
        UtcError: an input is too large, or of no dtype that torch has.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _input(name, entry, generator, where) for name, entry in inputs.items()}


def _input(name: str, entry: JsonObject, generator: torch.Generator, where: str) -> Tensor:
    shape, dtype = entry["shape"], getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise UtcError(
            f"input {name!r} has the dtype {entry['dtype']!r:.40}, which torch lacks",
            where=where,
            code="checkpoint/damaged",
        )
    if prod(shape) > _MOST:
        raise UtcError(
            f"input {name!r} of shape {shape} is too large",
            where=where,
            why=f"at most {_MOST:,} numbers are made for an example",
            fix="save the checkpoint from a model that was compiled with a smaller example",
            code="checkpoint/damaged",
        )
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex64).to(dtype)
    if dtype is torch.bool or "mask" in name:
        return torch.ones(shape, dtype=dtype)
    if "type" in name or "position" in name:
        return torch.zeros(shape, dtype=dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def image_size(inputs: JsonObject | None) -> tuple[int, ...] | None:
    """(C, H, W) where the one input is images; None otherwise."""
    shapes = [entry["shape"] for entry in (inputs or {}).values()]
    return tuple(shapes[0][1:]) if len(shapes) == 1 and len(shapes[0]) == 4 else None

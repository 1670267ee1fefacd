"""`slices:` of a packed weight: the config's field, and where each row's own numbers stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Slices = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_as_tuple),
    Field(min_length=1, description="of a packed weight: captures such as [q, v], or parts such as [1/3, 3/3]"),
]


def places(rows: Sequence[Sequence[int]], count: int) -> torch.Tensor:
    """For each of `count` rows its number among those of the slices, in their order; those of no slice get the next.

    >>> places([[4, 5], [0, 1]], 6)
    tensor([2, 3, 4, 4, 0, 1])
    """
    flat = [row for part in rows for row in part]
    place = torch.full((count,), len(flat))
    place[torch.tensor(flat)] = torch.arange(len(flat))
    return place

"""`slices:` of a packed weight: the field of a config, and the place of each row among the slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Slices = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_as_tuple),
    Field(
        min_length=1,
        description="the tuned slices of a packed weight: captures such as [q, v], or parts such as [1/3, 3/3]",
    ),
]


def places(rows: Sequence[Sequence[int]], count: int) -> torch.Tensor:
    """For each of `count` rows its number among the rows of the slices; a row in no slice gets the next number.

    >>> places([[4, 5], [0, 1]], 6)
    tensor([2, 3, 4, 4, 0, 1])
    """
    flat = [row for part in rows for row in part]
    place = torch.full((count,), len(flat))
    place[torch.tensor(flat)] = torch.arange(len(flat))
    return place

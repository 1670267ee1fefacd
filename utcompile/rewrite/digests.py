"""Digests of a tensor's content: as it is, and as it would be in other dtypes, in one pass over its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from utcompile.errors import UtcError
from utcompile.graph.shared import read_only

if TYPE_CHECKING:
    from hashlib import _Hash

_DIGITS = 32
_PIECE = 1 << 18  # numbers at a time, so that what is cast stays in a processor's cache


def digests(name: str, value: torch.Tensor, dtypes: Sequence[torch.dtype]) -> list[str]:
    """The digests of a tensor in some dtypes, as `digest_of` gives them one by one.

    >>> digests("w", torch.ones(3), [torch.float16]) == [digest_of("w", torch.ones(3).half(), torch.float16)]
    True
    """
    found = [hashlib.sha256() for _ in dtypes]
    for piece in pieces(name, value):
        for digest, dtype in zip(found, dtypes, strict=True):
            update(digest, piece if is_quantised(value) else piece.to(dtype))
    return [digest.hexdigest()[:_DIGITS] for digest in found]


def digest_of(name: str, value: torch.Tensor, dtype: torch.dtype) -> str:
    """The digest of a tensor's content as it is in a dtype."""
    return digests(name, value, [dtype])[0]


def is_quantised(value: torch.Tensor) -> bool:
    """Whether a tensor is of a quantiser's class, which keeps its numbers in tensors of other dtypes."""
    return is_traceable_wrapper_subclass(value) and not hasattr(value, "full_tensor")


def pieces(name: str, value: torch.Tensor) -> Iterator[torch.Tensor]:
    """The numbers of a tensor on the CPU, some at a time; of a quantiser's class, those of the tensors inside.

    Raises:
        UtcError: it has none.
    """
    if value.is_meta:
        raise UtcError(
            "the base has no values",
            where=name,
            fix="load the weights before the tuners are saved",
            code="tune/not-tunable",
        )
    value = whole(value).detach()
    if is_quantised(value):
        inside, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
        for part in inside:
            yield from pieces(f"{name}.{part}", getattr(value, part))
    else:
        yield from value.cpu().contiguous().flatten().split(_PIECE)


def update(digest: _Hash, piece: torch.Tensor) -> None:
    """Add numbers to a digest."""
    if piece.is_complex():
        piece = torch.view_as_real(piece.resolve_conj())
    piece = read_only(piece)
    digest.update(piece.contiguous().flatten().view(torch.uint8).numpy().data)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is distributed over processes, gathered; every process must call it."""
    gather = getattr(value, "full_tensor", None)
    return gather() if callable(gather) else value

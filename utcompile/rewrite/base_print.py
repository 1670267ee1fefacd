"""The fingerprint of a frozen base: a digest of every tensor, also as it would be in a narrower dtype.

What `train:` saves is left out: a checkpoint brings it along, so the base may have any head in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from utcompile.errors import UtcError
from utcompile.graph.statistics import statistics
from utcompile.rewrite.tuned import TunedModule, state_of_base
from utcompile.rewrite.wiring import wiring

_NARROWER = {
    torch.float64: (torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float16, torch.bfloat16),
}
_DIGITS = 32


@dataclass(frozen=True)
class TensorPrint:
    """A tensor of the base.

    Attributes:
        digests: its content by dtype: its own dtype first, then narrower ones.
    """

    dtype: str
    shape: tuple[int, ...]
    digests: Mapping[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain data for a manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape), "digests": dict(self.digests)}


def statistics_of(tuned: TunedModule) -> tuple[str, ...]:
    """The buffers of the base that training moves, where it follows the mode; none where it is frozen."""
    return statistics(tuned, tuned.base_graph) if tuned.follows_mode else ()


def tensors_of_base(tuned: TunedModule, without: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the base that a checkpoint does not bring along, by name.

    Args:
        without: paths of modules that are left out.
    """
    prefixes = tuple(f"{path}." for path in without)
    moved = statistics_of(tuned)
    trained = {id(tuned.get_parameter(name)) for name in tuned.trained}
    named = dict(tuned.named_parameters(remove_duplicate=False))
    return {
        name: value
        for name, value in sorted(state_of_base(tuned).items())
        if name not in tuned.trained
        and name not in moved
        and id(named.get(name)) not in trained
        and not name.startswith(prefixes)
    }


def print_of(tuned: TunedModule) -> dict[str, TensorPrint]:
    """The prints of a base's tensors, with those of narrower dtypes.

    A run saves the same base in every epoch: what a content is in narrower dtypes is remembered by its digest.
    """
    known = tuned.__dict__.setdefault("_narrower_digests", {})
    return {name: _print(name, value, known) for name, value in tensors_of_base(tuned).items()}


def fingerprint(
    tuned: TunedModule, prints: Mapping[str, TensorPrint] | None = None, without: Sequence[str] = ()
) -> str:
    """SHA-256 over the frozen base: names, dtypes, shapes and contents of its tensors, and its operations.

    Args:
        prints: what `print_of` found.
        without: paths of modules that are left out, where `prints` are not given.
    """
    digest = hashlib.sha256()
    found = prints or {n: _print(n, v) for n, v in tensors_of_base(tuned, without).items()}
    for name, one in found.items():
        digest.update(f"{name} {one.dtype} {one.shape} {one.digests[one.dtype]}\n".encode())
    digest.update("\n".join(wiring(tuned).lines).encode())
    return digest.hexdigest()


def fingerprint_of_format_1(tuned: TunedModule) -> str:
    """What manifests of format 1 have: the tensors alone, those that `train:` names as they were before training."""
    digest = hashlib.sha256()
    for name, value in sorted(state_of_base(tuned).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(name, value))
    return digest.hexdigest()


def _print(name: str, value: torch.Tensor, narrower: dict[str, dict[str, str]] | None = None) -> TensorPrint:
    """A tensor's print; with `narrower`, which is added to, also in narrower dtypes."""
    value = whole(value).detach()
    own = digest_of(name, value, value.dtype)
    digests = {text_of(value.dtype): own}
    if narrower is not None and value.dtype in _NARROWER:
        if own not in narrower:
            narrower[own] = {text_of(dtype): digest_of(name, value, dtype) for dtype in _NARROWER[value.dtype]}
        digests |= narrower[own]
    return TensorPrint(text_of(value.dtype), tuple(value.shape), digests)


def digest_of(name: str, value: torch.Tensor, dtype: torch.dtype) -> str:
    """The digest of a tensor's content as it is in a dtype."""
    return hashlib.sha256(_bytes(name, whole(value).to(dtype))).hexdigest()[:_DIGITS]


def text_of(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is distributed over processes, gathered; every process must ask for it."""
    gather = getattr(value, "full_tensor", None)
    return gather() if callable(gather) else value


def _bytes(name: str, value: torch.Tensor) -> memoryview:
    if value.is_meta:
        raise UtcError("the base has no values", where=name, fix="load the weights before the tuners are saved")
    value = whole(value).detach().cpu()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    data: memoryview = value.contiguous().flatten().view(torch.uint8).numpy().data
    return data

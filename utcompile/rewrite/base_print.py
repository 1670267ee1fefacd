"""The fingerprint of a frozen base: a digest of every tensor, also as it would be in a narrower dtype.

What `train:` saves is left out: a checkpoint brings it along, so the base may have any head in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from utcompile.graph.statistics import statistics
from utcompile.rewrite.digests import digest_of, digests, is_quantised, pieces, update, whole
from utcompile.rewrite.shares import Shares, same_everywhere, shares_of
from utcompile.rewrite.tuned import TunedModule, state_of_base
from utcompile.rewrite.wiring import wiring

_NARROWER = {
    torch.float64: (torch.float32, torch.float16, torch.bfloat16),
    torch.float32: (torch.float16, torch.bfloat16),
}


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

    A run saves the same base in every epoch: what a tensor is in narrower dtypes is remembered with its digest. Weights
    that are distributed over processes are gathered once, one by one; until something writes into them their prints
    are remembered, and what is gathered in a save is what trains.
    """
    tensors = tensors_of_base(tuned)
    shares = shares_of(tensors)
    before: Shares | None
    remembered: dict[str, TensorPrint]
    before, remembered = tuned.__dict__.get("_prints_of_shares", (None, {}))
    if shares is not None and same_everywhere(shares, before, next(iter(tensors.values())).device):
        return remembered
    known = tuned.__dict__.setdefault("_known_digests", {})
    prints = {name: _print(name, value, known) for name, value in tensors.items()}
    if shares is not None:
        tuned.__dict__["_prints_of_shares"] = shares, prints
    return prints


def prints_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorPrint]:
    """The prints of some tensors, with those of narrower dtypes."""
    return {name: _print(name, value, {}) for name, value in tensors.items()}


def fingerprint(
    tuned: TunedModule, prints: Mapping[str, TensorPrint] | None = None, without: Sequence[str] = ()
) -> str:
    """SHA-256 over the frozen base: names, dtypes, shapes and contents of its tensors, and its operations.

    Args:
        prints: what `print_of` found.
        without: paths of modules that are left out, where `prints` are not given.
    """
    found = prints or {n: _print(n, v) for n, v in tensors_of_base(tuned, without).items()}
    return digest_of_prints(found, wiring(tuned).lines)


def digest_of_prints(prints: Mapping[str, TensorPrint], lines: Sequence[str]) -> str:
    """SHA-256 over tensors and lines."""
    digest = hashlib.sha256()
    for name, one in prints.items():
        digest.update(f"{name} {one.dtype} {one.shape} {one.digests[one.dtype]}\n".encode())
    digest.update("\n".join(lines).encode())
    return digest.hexdigest()


def fingerprint_of_format_1(tuned: TunedModule) -> str:
    """What manifests of format 1 have: the tensors alone, those that `train:` names as they were before training."""
    digest = hashlib.sha256()
    for name, value in sorted(state_of_base(tuned).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        for piece in pieces(name, value):
            update(digest, piece)
    return digest.hexdigest()


def _print(name: str, value: torch.Tensor, known: dict[str, tuple[str, list[str]]] | None = None) -> TensorPrint:
    """A tensor's print; with `known`, which is added to, also in narrower dtypes."""
    value = whole(value).detach()
    dtypes = [value.dtype]
    if known is not None and not is_quantised(value):
        dtypes += _NARROWER.get(value.dtype, ())
    before = known.get(name) if known is not None else None
    own = digest_of(name, value, value.dtype) if before is not None else None
    found = before[1] if before is not None and before[0] == own else digests(name, value, dtypes)
    if known is not None:
        known[name] = found[0], found
    return TensorPrint(text_of(value.dtype), tuple(value.shape), dict(zip(map(text_of, dtypes), found, strict=True)))


def text_of(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")

"""Which samples a run held out, where they were drawn: its manifest has them, so that no other split is measured."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.arrays import Images
from utcompile.train.dataset import Data
from utcompile.train.folders import ImageFiles
from utcompile.train.masks import MaskedImages
from utcompile.train.own_data import Arrays
from utcompile.train.texts import Texts

KEY = "held_out"  # of a manifest


def held_out(data: Data, seed: int) -> dict[str, object]:
    """An entry of a manifest: the seed of the split, how many samples it holds out, and which; empty without a split.

    Two copies of the same data in other folders have the same entry.
    """
    if not data.drawn:
        return {}
    digest = sha256()
    for part in (data.train, data.validation):
        for text in _told(part):
            digest.update(text)
        digest.update(b"\0\0")
    return {KEY: {"seed": seed, "samples": len(data.validation), "digest": digest.hexdigest()[:32]}}  # type: ignore[arg-type]


def seed_of_split(manifest: Mapping[str, object]) -> int:
    """With which seed the split of a run was drawn; 0 where the run does not say it.

    Raises:
        UtcError: what the run says is no seed.
    """
    for key in (KEY, "training"):
        entry = manifest.get(key)
        if entry is None or (isinstance(entry, Mapping) and "seed" not in entry):
            continue
        found = entry["seed"] if isinstance(entry, Mapping) else None
        if type(found) is int and found >= 0:
            return found
        raise UtcError(
            "the manifest does not have the seed of the run",
            where=f"manifest.json, {key}",
            why=f"it has {found!r}, and the samples that the run held out are drawn with it",
            fix="restore the manifest, or name data that were not trained on with -d",
            code="checkpoint/damaged",
        )
    return 0


def check_held_out(data: Data, manifest: Mapping[str, object], where: str) -> None:
    """Raise where the samples that are held out now are not those that the run held out.

    Runs of earlier versions do not say which they were.

    Raises:
        UtcError: the data changed since the training, so the split would hold out samples that were trained on.
    """
    recorded = manifest.get(KEY)
    if not data.drawn or not isinstance(recorded, Mapping):
        return
    now = held_out(data, seed_of_split(manifest))[KEY]
    if recorded != now:
        raise UtcError(
            "the data are not those that the run was trained on",
            where=where,
            why=f"the run held out {recorded.get('samples')} samples of them; a split that is drawn from the data as "
            "they are now has other samples, which may have been trained on",
            fix="name data that were not trained on with -d, or bring the data back to what they were",
            code="data/changed",
        )


def _told(part: Dataset[object]) -> Iterable[bytes]:
    """What tells the samples of a dataset apart, in their order."""
    if isinstance(part, ImageFiles):
        return (
            f"{_name(source)}\0{_label(target)}".encode(errors="surrogateescape") for source, target in part.samples
        )
    if isinstance(part, MaskedImages):
        return (f"{_name(pair.image)}\0{_name(pair.mask)}\0".encode(errors="surrogateescape") for pair in part.samples)
    if isinstance(part, Texts):
        return (repr(pair).encode() for pair in zip(part.texts, part.labels, strict=True))
    if isinstance(part, Images):
        return _arrays([part.x, part.y])
    if isinstance(part, Arrays):
        inputs = list(part.inputs.values()) if isinstance(part.inputs, Mapping) else [part.inputs]
        return _arrays([*inputs, part.targets.numpy()])
    return [str(len(part)).encode()]  # type: ignore[arg-type]


def _name(source: object) -> str:
    """A file by its name and its folder's, so that the data may lie elsewhere; what opens itself has no name."""
    return "/".join(source.parts[-2:]) if isinstance(source, Path) else ""


def _label(target: object) -> str:
    return str(target.tolist()) if hasattr(target, "tolist") else str(target)


def _arrays(arrays: Sequence[np.ndarray]) -> Iterable[bytes]:
    return (f"{a.shape}{a.dtype}{zlib.crc32(np.ascontiguousarray(a).data)}".encode() for a in arrays)

"""A file of tensors and one of text that belong together: one identity is in both, and a folder has a whole pair.

    tuners.safetensors                the tensors; their identity is in the file's metadata
    manifest.json                     the text, with the same identity
    .tuners.IDENTITY.safetensors      the tensors of the newest text, for the moment between two renames

The text is what counts: it is renamed into place when its tensors are in the folder already, under the third name. So
a reader finds the old pair or the new one at every moment, also after a process was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from utcompile.errors import UtcError
from utcompile.files import draft, one_writer, reported, sync_folder, write_new

IDENTITY = "utcompile.identity"
_ATTEMPTS = 1000  # a reader that finds another pair's tensors looks again while the folder changes
_TICK = 0.02  # seconds: longer than file systems take for one step of the time of a change


def write_pair(
    folder: Path,
    tensors_name: str,
    tensors: Mapping[str, torch.Tensor],
    text_name: str,
    text: str,
    metadata: Mapping[str, str],
) -> Path:
    """Write both files, or neither; the folder is made if it does not exist.

    Args:
        metadata: of the tensors; their identity is its entry `IDENTITY`, where they have one.

    Raises:
        UtcError: the folder cannot be written to; what was in it is as it was.
    """
    with reported("the checkpoint cannot be written", folder):
        if folder.exists() and not folder.is_dir():
            raise UtcError(
                "a checkpoint is a folder, and this is a file", where=str(folder), code="checkpoint/not-found"
            )
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with draft(folder) as beside:
                write_new(beside / tensors_name, save(dict(tensors), dict(metadata)))
                write_new(beside / text_name, f"{text}\n".encode())
                move_pair(beside, folder, tensors_name, text_name, metadata.get(IDENTITY, ""))
        except OSError:
            if not existed:
                _remove_if_empty(folder)
            raise
    return folder


def move_pair(source: Path, folder: Path, tensors_name: str, text_name: str, identity: str) -> None:
    """Rename a pair from another folder of the same disk into place.

    Args:
        identity: of the pair; empty where its text has none, and then readers may see one file of each pair.
    """
    with one_writer(folder):
        settle(folder, tensors_name, text_name)
        staged = folder / (_staged(tensors_name, identity) if identity else tensors_name)
        os.replace(source / tensors_name, staged)  # noqa: PTH105
        sync_folder(folder)
        os.replace(source / text_name, folder / text_name)  # noqa: PTH105 - from here on the new pair is the folder's
        if identity:
            os.replace(staged, folder / tensors_name)  # noqa: PTH105
        sync_folder(folder)


def settle(folder: Path, tensors_name: str, text_name: str) -> None:
    """Finish or undo what a killed process began; called by the one writer.

    Tensors under the third name are renamed when they are those of the text. Others belong to a text that was never
    written.
    """
    for path in folder.glob(_staged(tensors_name, "*")):
        identity = path.name.split(".")[2]
        if (folder / text_name).is_file() and identity.encode() in (folder / text_name).read_bytes():
            os.replace(path, folder / tensors_name)  # noqa: PTH105
        else:
            os.unlink(path)  # noqa: PTH108


def read_pair(
    folder: Path, tensors_name: str, read_identity: Callable[[], str | None]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that belong to the text of a folder, and their metadata.

    Args:
        read_identity: reads the text, and returns its identity; None where it has none. The text that it read last is
            that of the tensors.

    Raises:
        UtcError: they cannot be read, or have another identity.
    """
    identity, still, found, read = read_identity(), False, "", False
    for _ in range(_ATTEMPTS):
        changed = folder.stat().st_mtime_ns
        failure: UtcError | None = None
        names = [tensors_name] + ([_staged(tensors_name, identity)] if identity else [])
        for name in names:
            try:
                tensors, metadata = _read(folder / name)
            except UtcError as error:
                failure = failure or error
                continue
            if metadata.get(IDENTITY) == identity:
                return tensors, metadata
            found, read = metadata.get(IDENTITY, ""), True
        before, identity = identity, read_identity()
        was_still, still = still, before == identity and changed == folder.stat().st_mtime_ns
        if still and was_still:  # twice, more than one step of time apart: nothing was renamed while we looked
            break
        if still:
            time.sleep(_TICK)
    if failure is not None and not read:
        raise failure
    raise UtcError(
        "tensors and manifest of this checkpoint do not belong together",
        where=str(folder / tensors_name),
        why=f"the tensors have the identity {found[:12] or '(none)'}, the manifest {(identity or '(none)')[:12]}",
        fix="take both files from the same save",
        code="checkpoint/damaged",
    )


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if path.exists() and not path.is_file():
        raise UtcError(
            "the checkpoint's tensors cannot be read", where=str(path), why="it is no file", code="checkpoint/damaged"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 - no dict
    # RuntimeError: safetensors opens the file a second time through torch, and a writer may have renamed it meanwhile
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise UtcError(
            "the checkpoint's tensors cannot be read", where=str(path), why=str(error), code="checkpoint/damaged"
        ) from error


def _staged(tensors_name: str, identity: str) -> str:
    stem, _, suffix = tensors_name.rpartition(".")
    return f".{stem}.{identity}.{suffix}"


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return

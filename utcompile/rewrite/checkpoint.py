"""Checkpoints of tuners: `tuners.safetensors` beside `manifest.json`, loaded strictly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from utcompile.errors import UtcError
from utcompile.rewrite.tuned import TunedModule, state_of_base

TENSORS, MANIFEST = "tuners.safetensors", "manifest.json"
_FORMAT = 1


def save_tuners(tuned: TunedModule, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Write the tuners and `train:` parts of a model, nothing else.

    Both files are written beside their names and then renamed, so a folder never holds half a checkpoint.

    Args:
        tuned: the model.
        folder: made if it does not exist.
        extra: more for the manifest, plain data under its own keys (the command line keeps the model's name there).

    Returns:
        The folder.
    """
    if not isinstance(tuned, TunedModule):
        raise UtcError(f"save_tuners takes a TunedModule, not {type(tuned).__name__}")
    tensors = {k: v.detach().contiguous().cpu().clone() for k, v in _tensors(tuned).items()}
    manifest = {
        "format": _FORMAT,
        "utcompile": _version(),
        "torch": str(torch.__version__),
        "rules": {
            "name": tuned.ruleset.name,
            "vars": dict(tuned.ruleset.vars),
            "text": tuned.ruleset.text,
            "included": dict(tuned.ruleset.included),
            "train": tuned.ruleset.trains_instead,
        },
        "base": fingerprint(tuned),
        "sites": [{"id": s.id, "tuner": s.tuner, "config": s.config.model_dump()} for s in tuned.sites],
        "tensors": {
            k: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for k, v in tensors.items()
        },
        **(extra or {}),
    }
    text = json.dumps(manifest, indent=2, default=str)
    return write_checkpoint(folder, TENSORS, tensors, MANIFEST, text)


def write_checkpoint(
    folder: str | Path,
    tensors_name: str,
    tensors: dict[str, torch.Tensor],
    text_name: str,
    text: str,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a file of tensors and one of text, both or neither; the folder is made if it does not exist."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UtcError("a checkpoint is a folder, and this is a file", where=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    names = (tensors_name, text_name)
    beside = [folder / f".{name}.{os.getpid()}" for name in names]
    try:
        save_file(tensors, beside[0], metadata)
        beside[1].write_text(f"{text}\n", encoding="utf-8")
        for temporary, name in zip(beside, names, strict=True):
            temporary.replace(folder / name)
    finally:
        for temporary in beside:
            temporary.unlink(missing_ok=True)
    return folder


def load_tuners(tuned: TunedModule, folder: str | Path) -> TunedModule:
    """Load a checkpoint into a model that was compiled from the same base with the same rules.

    Raises:
        UtcError: files are missing or broken, the base differs, or sites or shapes differ; the model is then unchanged.
    """
    if not isinstance(tuned, TunedModule):
        raise UtcError(f"load_tuners takes a TunedModule, not {type(tuned).__name__}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    mine = fingerprint(tuned)
    if manifest["base"] != mine:
        raise UtcError(
            "this checkpoint was trained on another base",
            where=str(folder / MANIFEST),
            why=f"its base has the fingerprint {manifest['base'][:12]}…, this model {mine[:12]}…",
            fix="build the model with the same architecture and weights as in training",
        )
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UtcError(
            "the checkpoint's tensors cannot be read", where=str(folder / TENSORS), why=str(error)
        ) from error
    wanted = _tensors(tuned)
    _check_same(tensors, wanted, str(folder / TENSORS))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return tuned


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        UtcError: the folder or file is missing, is no JSON, or has a format of a later version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UtcError(
            "there is no checkpoint here",
            where=str(path),
            why=error.strerror,
            fix="name the folder that `utcompile train -o` or `save_tuners` wrote",
        ) from error
    except ValueError as error:
        raise UtcError("the manifest is no JSON", where=str(path), why=str(error)) from error
    if not isinstance(manifest, dict) or not {"format", "base", "rules", "sites", "tensors"} <= manifest.keys():
        raise UtcError("this is no manifest of utcompile", where=str(path))
    if manifest["format"] != _FORMAT:
        raise UtcError(
            f"the manifest has format {manifest['format']}, this version reads {_FORMAT}",
            where=str(path),
            fix="upgrade utcompile",
        )
    return manifest


def fingerprint(tuned: TunedModule) -> str:
    """SHA-256 over the frozen base: names, dtypes, shapes and contents of its parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(state_of_base(tuned).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(tuned: TunedModule) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for site in tuned.sites:
        module = tuned.get_submodule(site.name)
        for name, value in module.state_dict(keep_vars=True).items():
            found[f"{site.id}:{name}"] = value
    return found | {f"train:{n}": tuned.get_parameter(n) for n in tuned.trained}


def _check_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        raise UtcError(
            "the checkpoint's sites are not this model's",
            where=where,
            why="; ".join(
                f"{word}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                for word, names in (("missing", missing), ("unknown", surplus))
                if names
            ),
            fix="compile with the rules and vars of the manifest",
        )
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise UtcError(
                f"{name} has the shape {list(found[name].shape)} in the checkpoint, {list(value.shape)} here",
                where=where,
                fix="compile with the rules and vars of the manifest",
            )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("utcompile")
    except PackageNotFoundError:
        return "0"

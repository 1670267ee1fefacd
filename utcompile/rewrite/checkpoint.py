"""Checkpoints of tuners: `tuners.safetensors` next to `manifest.json`, loaded strictly."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch

from utcompile.errors import UtcError
from utcompile.files import path_of, sync_folder
from utcompile.graph import Size, value_of
from utcompile.rewrite.base_print import digest_of_prints, fingerprint, print_of, prints_of, text_of
from utcompile.rewrite.digests import whole as gathered
from utcompile.rewrite.fits import check_base, check_names, check_places, check_sites, check_tensors, note_forms
from utcompile.rewrite.fits_parts import check_outside, parts_in
from utcompile.rewrite.manifest import (
    FORMAT,
    MANIFEST,
    Format1,
    Manifest,
    load_manifest,
    version_of_utcompile,
    versions,
)
from utcompile.rewrite.pair import IDENTITY, move_pair, read_pair, write_pair
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite
from utcompile.rewrite.whole import Whole, site_in
from utcompile.rewrite.widths import free_dims
from utcompile.rewrite.wiring import place_of_site, wiring

TENSORS = "tuners.safetensors"
_M = TypeVar("_M", bound=torch.nn.Module)


def save_tuners(tuned: torch.nn.Module, folder: str | Path, extra: Mapping[str, object] | None = None) -> Path:
    """Write the tuners and `train:` parts of a model, and under `base="follow"` the statistics of norms, nothing else.

    Both files carry one identity. A reader of the folder finds the old pair or the new one at every moment, also after
    a process was killed or the power failed.

    Args:
        tuned: the model, whole or with tuned parts, or what DDP, FSDP2, `torch.compile` or an EMA made of it.
        folder: made if it does not exist.
        extra: more for the manifest, plain data under its own keys (the command line keeps the model's name there).

    Returns:
        The folder.

    Raises:
        UtcError: the folder cannot be written to, and what was in it is as it was; or `extra` is no plain data.
    """
    whole, folder = Whole.of(tuned, "save_tuners"), path_of(folder, "folder")
    live = whole.tensors()
    tensors = {k: gathered(v).detach().contiguous().cpu().clone() for k, v in live.items()}
    manifest = {**_manifest(whole, tensors), **_extra(extra)}
    identity = _identity(manifest, tensors)
    text = json.dumps({"format": FORMAT, "identity": identity, **manifest}, indent=2, default=str)
    if not any(hasattr(v, "full_tensor") for v in whole.module.parameters()):
        return write_pair(folder, TENSORS, tensors, MANIFEST, text, {IDENTITY: identity})
    if torch.distributed.get_rank() == 0:  # all have the same
        write_pair(folder, TENSORS, tensors, MANIFEST, text, {IDENTITY: identity})
    torch.distributed.barrier()
    return folder


def load_tuners(tuned: _M, folder: str | Path) -> _M:
    """Load a checkpoint into a model that was compiled from the same base with the same rules.

    What `train:` names comes from the checkpoint, so the base may have another head in its place. Where only the
    floating-point type differs, the values are cast, with a warning.

    Returns:
        The model itself, without what wraps it.

    Raises:
        UtcError: files are missing or broken or do not belong together, or the base, sites, configs, shapes or kinds of
            dtype differ; the model is then unchanged.
    """
    whole = Whole.of(tuned, "load_tuners")
    wanted = whole.tensors()
    tensors = read_tensors(whole.module, folder, wanted)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(_like(tensors[name], parameter))
    return cast(_M, whole.module)


def read_tensors(
    model: torch.nn.Module,
    folder: str | Path,
    wanted: Mapping[str, torch.Tensor],
    *,
    new_head: bool = False,
    new_widths: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, checked against a tuned model.

    Args:
        wanted: the model's, by their names in a checkpoint.
        new_head: whether what `train:` names may have another number of rows.
        new_widths: whether tuners may have another rank or width (`Tuner.inner`), and other fields that are free then.
    """
    folder, whole = path_of(folder, "folder"), Whole.of(model, "load_tuners")
    manifest: Manifest | Format1

    def identity() -> str | None:
        nonlocal manifest
        manifest = load_manifest(folder)
        return manifest.identity if isinstance(manifest, Manifest) else None

    tensors, _ = read_pair(folder, TENSORS, identity)
    where = str(folder / MANIFEST)
    parts = parts_in(whole, manifest, where)
    for tuned, saved in parts:
        check_sites(tuned, saved, where, new_widths=new_widths)
    check_names(tensors, wanted, str(folder / TENSORS))
    notes = check_outside(whole, manifest, where)
    for tuned, saved in parts:
        notes += check_base(tuned, saved, where)
        check_places(tuned, saved, where)
    free = free_dims(whole) if new_widths else None
    notes += check_tensors(tensors, wanted, str(folder / TENSORS), new_head=new_head, free=free)
    notes += note_forms(whole, manifest, str(folder))
    for note in notes:
        warnings.warn(f"{folder}: {note}", stacklevel=3)
    return tensors


def move_checkpoint(source: Path, folder: Path) -> None:
    """Rename what a run saved from a draft folder into place: a checkpoint as one pair, other files one by one."""
    if (source / MANIFEST).is_file() and (source / TENSORS).is_file():
        manifest = load_manifest(source)
        move_pair(source, folder, TENSORS, MANIFEST, manifest.identity if isinstance(manifest, Manifest) else "")
    for path in sorted(source.iterdir()):
        if path.is_file():
            os.replace(path, folder / path.name)  # noqa: PTH105
    sync_folder(folder)


def tuned_module(model: object, verb: str) -> TunedModule:
    """A tuned module, out of what wraps it.

    Raises:
        UtcError: it is none, or a model of which parts are tuned.
    """
    whole = Whole.of(model, verb)
    if not whole.is_one_graph:
        raise UtcError(
            f"{verb} takes one TunedModule, and in this {type(whole.module).__name__} parts are tuned",
            fix=f"pass a part: {', '.join(f'model.{path}' for path in list(whole.parts)[:3])}",
            code="checkpoint/write",
        )
    return whole.parts[""]


def _manifest(whole: Whole, tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    rules = whole.ruleset
    return {
        "utcompile": version_of_utcompile(),
        "torch": str(torch.__version__),
        "versions": versions(),
        "rules": {
            "name": rules.name,
            "vars": dict(rules.vars),
            "text": rules.text,
            "included": dict(rules.included),
            "train": rules.trains_instead,
            **({"measured": {k: found.to_dict() for k, found in rules.measured.items()}} if rules.measured else {}),
        },
        **(_body(whole.parts[""]) if whole.is_one_graph else _body_of_parts(whole)),
        "tensors": {k: {"shape": list(v.shape), "dtype": text_of(v.dtype)} for k, v in tensors.items()},
    }


def _body(tuned: TunedModule) -> dict[str, object]:
    prints = print_of(tuned)
    return {
        "base": {
            "fingerprint": fingerprint(tuned, prints),
            "tensors": {name: one.to_dict() for name, one in prints.items()},
            "operations": wiring(tuned).lines,
        },
        "inputs": _inputs(tuned),
        "sites": [_saved(tuned, s) for s in tuned.sites],
    }


def _body_of_parts(whole: Whole) -> dict[str, object]:
    """The rest of the model as a base without operations; then each part as if it were a model."""
    prints = prints_of(whole.frozen_outside())
    parts = {path: _body(tuned) for path, tuned in whole.parts.items()}
    return {
        "base": {
            "fingerprint": digest_of_prints(prints, [str(part["base"]) for part in parts.values()]),
            "tensors": {name: one.to_dict() for name, one in prints.items()},
            "operations": [],
        },
        "inputs": _inputs_of_whole(whole),
        "sites": [_saved(t, s, path) for path, t in whole.parts.items() for s in t.sites],
        "parts": parts,
    }


def _saved(tuned: TunedModule, site: TunedSite, path: str = "") -> dict[str, object]:
    config = site.config.model_dump(mode="json")
    return {
        "id": site_in(path, site).id,
        "tuner": site.tuner,
        "config": config,
        "place": place_of_site(tuned, site),
    }


def _inputs(tuned: TunedModule) -> dict[str, object] | None:
    """Shapes and dtypes of the example, by name; None where an input is no tensor."""
    found: dict[str, object] = {}
    for node in tuned.base_graph.nodes:
        if node.op == "placeholder":
            value = value_of(node)
            if value is None:
                return None
            shape = [size.of({}) if isinstance(size, Size) else size for size in value.shape]
            found[str(node.target)] = {"shape": shape, "dtype": text_of(value.dtype)}
    return found


def _inputs_of_whole(whole: Whole) -> dict[str, object] | None:
    """The same for the call of a model of which parts are tuned."""
    assert whole.kept is not None
    call = whole.kept.example.arguments(whole.kept.example.dtype, torch.device("cpu"))
    given = inspect.signature(whole.module.forward).bind(*call["args"], **call["kwargs"]).arguments
    if not all(isinstance(value, torch.Tensor) for value in given.values()):
        return None
    return {name: {"shape": list(v.shape), "dtype": text_of(v.dtype)} for name, v in given.items()}


def _extra(extra: Mapping[str, object] | None) -> dict[str, object]:
    own = {"format", "identity", *Manifest.model_fields, "utcompile", "torch"}
    if not isinstance(extra, Mapping | None) or not all(isinstance(key, str) for key in extra or ()):
        raise UtcError(f"extra must be a mapping from names to plain data, not {extra!r:.80}", code="arguments/type")
    if taken := sorted(own & set(extra or ())):
        raise UtcError(
            f"extra has the key {taken[0]!r}, which the manifest has itself",
            fix="give it another name",
            code="checkpoint/write",
        )
    try:
        found: dict[str, object] = json.loads(json.dumps(dict(extra or {}), default=str))
    except (TypeError, ValueError, RecursionError) as error:
        raise UtcError(
            "extra is no plain data", why=str(error), fix="give what json.dumps takes", code="arguments/type"
        ) from error
    return found


def _identity(manifest: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, distributed as a parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.dtype), parameter.device_mesh, parameter.placements)

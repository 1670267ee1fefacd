"""`manifest.json` of a checkpoint: what it must say, and reading one that anybody may have written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utcompile.errors import UtcError
from utcompile.files import path_of
from utcompile.plain_data import JsonObject

MANIFEST = "manifest.json"
FORMAT = 2
_OTHERS = ("torchvision", "timm", "transformers")  # whose code a base may come from
_MOST_BYTES = 256 * 2**20
_MOST_ELEMENTS = 2**31  # of an example's input: 8 GiB in float32

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shape = Annotated[list[Annotated[int, Field(ge=0, le=_MOST_ELEMENTS)]], Field(max_length=64)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Rules(_Part):
    name: str
    text: str
    vars: dict[str, object]
    included: dict[str, str] = {}
    train: list[str] | None = None
    measured: dict[str, object] = {}


class _Tensor(_Part):
    shape: Shape
    dtype: str


class BaseTensor(_Tensor):
    """A frozen tensor, by its digests in several dtypes."""

    digests: dict[str, str]


class Base(_Part):
    """The frozen base."""

    fingerprint: Hex
    tensors: dict[str, BaseTensor]
    operations: list[str]


class SavedSite(_Part):
    """A site: its tuner, and in terms of the base's operations what it reads or tunes."""

    id: str
    tuner: str
    config: dict[str, object]
    place: list[str] | None = None


class SavedPart(_Part):
    """A tuned part of a model, as if it were a model."""

    base: Base
    inputs: dict[str, _Tensor] | None
    sites: list[SavedSite]


class Manifest(_Part):
    """What a manifest says. Where parts of a model are tuned, `base` is the rest of it."""

    format: int
    identity: Hex
    rules: _Rules
    base: Base
    inputs: dict[str, _Tensor] | None
    sites: list[SavedSite]
    tensors: dict[str, _Tensor]
    versions: dict[str, str]
    parts: dict[str, SavedPart] = {}


class Format1(_Part):
    """What a manifest of format 1 says: the base is its fingerprint alone."""

    base: Hex
    rules: _Rules
    sites: list[SavedSite]
    tensors: dict[str, _Tensor]


def read_manifest(folder: str | Path) -> JsonObject:
    """A checkpoint's manifest, as the plain data that it is.

    Raises:
        UtcError: as `load_manifest`.
    """
    return _read(folder)[0]


def load_manifest(folder: str | Path) -> Manifest | Format1:
    """A checkpoint's manifest.

    Raises:
        UtcError: the folder or file is missing, is no JSON or no manifest, or has a format of a later version.
    """
    return _read(folder)[1]


def _read(folder: str | Path) -> tuple[dict[str, object], Manifest | Format1]:
    path = path_of(folder, "folder") / MANIFEST
    manifest = read_json(
        path, "there is no checkpoint here", "name the folder that `utcompile train -o` or `save_tuners` wrote"
    )
    if not isinstance(manifest, dict) or not {"format", "base", "rules", "sites", "tensors"} <= manifest.keys():
        raise UtcError("this is no manifest of utcompile", where=str(path), code="checkpoint/damaged")
    version = manifest["format"]
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise UtcError(
            f"the manifest has format {version!r:.40}, this version reads 1 to {FORMAT}",
            where=str(path),
            fix="upgrade utcompile",
            code="checkpoint/format",
        )
    try:
        kind: type[Manifest | Format1] = Manifest if version == FORMAT else Format1
        return manifest, kind.model_validate(manifest)
    except (ValidationError, RecursionError) as error:
        raise UtcError(
            "the manifest is damaged",
            where=str(path),
            why=_first(error),
            fix="save it again",
            code="checkpoint/damaged",
        ) from error


def read_json(path: Path, missing: str, fix: str) -> object:
    """The content of a JSON file that anybody may have written.

    Raises:
        UtcError: with `missing` and `fix` where there is no such file; or it is too large, or no JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise UtcError(missing, where=str(path), why="it is no file", fix=fix, code="checkpoint/damaged")
        if path.stat().st_size > _MOST_BYTES:
            raise UtcError(
                "the file is too large",
                where=str(path),
                why=f"more than {_MOST_BYTES >> 20} MiB",
                fix=fix,
                code="checkpoint/damaged",
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UtcError(missing, where=str(path), why=error.strerror, fix=fix, code="checkpoint/damaged") from error
    except (ValueError, RecursionError) as error:
        what = "the manifest is no JSON" if path.name == MANIFEST else "the file is no JSON"
        raise UtcError(what, where=str(path), why=str(error).partition("\n")[0], code="checkpoint/damaged") from error


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def versions() -> dict[str, str]:
    """The versions of what decides a base's operations."""
    loaded = {name: sys.modules.get(name) for name in _OTHERS}
    found = {name: str(getattr(module, "__version__", "?")) for name, module in loaded.items() if module is not None}
    return {"utcompile": version_of_utcompile(), "torch": str(torch.__version__), **found}


def version_of_utcompile() -> str:
    """Our own version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("utcompile")
    except PackageNotFoundError:
        return "0"

"""PEFT's two files, read and checked: what a LoRA checkpoint says of each module, whatever model it is for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from utcompile.errors import UtcError
from utcompile.files import path_of
from utcompile.rewrite.manifest import read_json
from utcompile.rewrite.peft_layout import BASE, CONFIG, PREFIX, TENSORS
from utcompile.tuners import Dora, Lora

_TENSOR = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector)")
# what a LoRA checkpoint says that changes nothing here: which modules are tuned is read off the tensors
_HARMLESS = frozenset(
    """peft_type task_type auto_mapping base_model_name_or_path revision peft_version inference_mode runtime_config
    target_modules exclude_modules layers_to_transform layers_pattern r rank_pattern lora_alpha alpha_pattern
    lora_dropout use_rslora use_dora fan_in_fan_out modules_to_save megatron_core qalora_group_size
    eva_config""".split()
)
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


@dataclass(frozen=True)
class PeftTuner:
    """What a checkpoint says of one module."""

    tensors: Mapping[str, torch.Tensor]
    r: int
    alpha: float
    rslora: bool
    dropout: float

    @property
    def kind(self) -> str:
        """Ours: lora or dora."""
        return Dora.kind if "lora_magnitude_vector" in self.tensors else Lora.kind

    @property
    def scaling(self) -> float:
        """What `B·A` is multiplied by."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


@dataclass(frozen=True)
class PeftCheckpoint:
    """PEFT's two files.

    Attributes:
        modules: by path.
        rest: all other tensors, by the names that the model has for them.
        saved: the paths of `modules_to_save`.
        base: the fingerprint of the base, where `save_peft` wrote the file.
    """

    where: str
    modules: Mapping[str, PeftTuner]
    rest: Mapping[str, torch.Tensor]
    saved: tuple[str, ...]
    base: str | None


def read_peft(folder: str | Path) -> PeftCheckpoint:
    """Read a folder that PEFT wrote.

    Raises:
        UtcError: a file is missing or broken, or says something that is no plain LoRA or DoRA.
    """
    folder = path_of(folder, "folder")
    config = _config(folder / CONFIG)
    tensors, base = _tensors(folder / TENSORS)
    where, modules, rest = str(folder / TENSORS), dict[str, dict[str, torch.Tensor]](), dict[str, torch.Tensor]()
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        tuned = _TENSOR.fullmatch(name)
        if tuned and ".base_layer." not in tuned[1]:
            modules.setdefault(tuned[1], {})[tuned[2]] = value
        elif ".lora_" in name:
            raise UtcError(
                "this is no tensor of a plain LoRA or DoRA",
                where=where,
                why=f"its name is {key}",
                fix="tuners inside tuners, as on nn.MultiheadAttention, are not read" if tuned else None,
            )
        else:
            rest[name.replace(".base_layer.", ".")] = value
    if not modules:
        raise UtcError("the checkpoint has no tensors of LoRA", where=where)
    complete = {path: _tuner(path, found, config, where) for path, found in modules.items()}
    return PeftCheckpoint(where, complete, rest, _saved(config, rest), base)


def _tuner(path: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str) -> PeftTuner:
    pairs = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
    wanted = {"lora_magnitude_vector"} if config.get("use_dora") else set[str]()
    if not any(tensors.keys() == pair | wanted for pair in pairs):
        raise UtcError(f"the tensors of {path} are not a whole tuner", where=where, why=f"{', '.join(sorted(tensors))}")
    first = tensors.get("lora_A.weight", tensors.get("lora_embedding_A"))
    assert first is not None
    try:
        # as PEFT looks it up
        key = next((k for k in config.get("alpha_pattern") or {} if re.match(rf"(.*\.)?({k})$", path)), None)
    except re.error as error:
        raise UtcError("a key of alpha_pattern is no regular expression", where=where, why=str(error)) from error
    alpha = config["alpha_pattern"][key] if key is not None else config.get("lora_alpha", 8)
    dropout = config.get("lora_dropout") or 0.0
    if not all(isinstance(number, int | float) for number in (alpha, dropout)):
        raise UtcError(f"alpha {alpha!r} or dropout {dropout!r} of {path} is no number", where=where)
    return PeftTuner(tensors, first.shape[0], alpha, bool(config.get("use_rslora")), dropout)


def _saved(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """The paths of `modules_to_save`: PEFT compares their endings."""
    ends = tuple(config.get("modules_to_save") or ())
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:i]) for i in range(1, len(parts)))
        if (path := next((p for p in paths if ends and p.endswith(ends)), None)) is not None:
            found[path] = None
    return tuple(found)


def _config(path: Path) -> dict[str, Any]:
    fix = "name a local folder that peft's save_pretrained wrote"
    config = read_json(path, "there is no PEFT checkpoint here", fix)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise UtcError("this is no configuration of PEFT", where=str(path))
    if config["peft_type"] != "LORA":
        raise UtcError(f"{config['peft_type']} is not read", where=str(path), fix="LoRA and DoRA are")
    odd = {k: v for k, v in config.items() if k in _PLAIN and v not in _PLAIN[k]}
    odd |= {k: v for k, v in config.items() if v and k not in _HARMLESS and k not in _PLAIN}
    if odd:
        raise UtcError(
            "this is no plain LoRA or DoRA",
            where=str(path),
            why=", ".join(f"{k}: {json.dumps(v)}" for k, v in odd.items()),
            fix="train it without, or let PEFT merge it into the model first (merge_and_unload)",
        )
    return config


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get(BASE)  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        fix = None
        if path.with_suffix(".bin").exists():
            fix = "adapter_model.bin is a pickle, which can run code: save it again with save_pretrained of peft >= 0.5"
        raise UtcError("the checkpoint's tensors cannot be read", where=str(path), why=str(error), fix=fix) from error

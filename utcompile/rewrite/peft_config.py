"""PEFT's `adapter_config.json`, read and checked: which methods are read, and which fields of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.rewrite.manifest import read_json

LORA, IA3, LN_TUNING, PREFIX_TUNING = "LORA", "IA3", "LN_TUNING", "PREFIX_TUNING"
# what any checkpoint says that changes nothing here: which modules are tuned is read off the tensors
_COMMON = frozenset(
    """peft_type task_type auto_mapping base_model_name_or_path revision peft_version inference_mode runtime_config
    target_modules exclude_modules modules_to_save""".split()
)
_HARMLESS: Mapping[str, frozenset[str]] = {
    LORA: frozenset(
        """layers_to_transform layers_pattern r rank_pattern lora_alpha alpha_pattern lora_dropout use_rslora use_dora
        fan_in_fan_out megatron_core qalora_group_size eva_config lora_bias target_parameters""".split()
    ),
    IA3: frozenset(["feedforward_modules", "fan_in_fan_out", "init_ia3_weights"]),
    LN_TUNING: frozenset(),
    PREFIX_TUNING: frozenset(
        """num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers encoder_hidden_size
        prefix_projection init_weights""".split()
    ),
}
_PLAIN: Mapping[str, tuple[str | bool, ...]] = {
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def read_config(path: Path, where: str) -> PeftConfig:
    """Read the file.

    Args:
        path: of the file.
        where: the checkpoint, for errors that come later.

    Raises:
        UtcError: it is missing or broken, or says something that is not read here.
    """
    fix = "name a local folder that peft's save_pretrained wrote"
    config = read_json(path, "there is no PEFT checkpoint here", fix)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise UtcError("this is no configuration of PEFT", where=str(path))
    kind = config["peft_type"]
    if kind not in _HARMLESS:
        raise UtcError(
            f"{kind} is not read", where=str(path), fix="LoRA and DoRA, IA3, LayerNorm tuning and prefix tuning are"
        )
    harmless = _COMMON | _HARMLESS[kind]
    odd = {k: v for k, v in config.items() if k in _PLAIN and v not in _PLAIN[k]}
    odd |= {k: v for k, v in config.items() if v and k not in harmless and k not in _PLAIN}
    if odd:
        raise UtcError(
            f"this is no plain {'LoRA or DoRA' if kind == LORA else kind}",
            where=str(path),
            why=", ".join(f"{k}: {json.dumps(v)}" for k, v in odd.items()),
            fix="train it without, or let PEFT merge it into the model first (merge_and_unload)",
        )
    return PeftConfig(config, where)


@dataclass(frozen=True)
class PeftConfig:
    """What `adapter_config.json` says.

    Attributes:
        values: the file's fields.
        where: the checkpoint, for errors.
    """

    values: Mapping[str, object]
    where: str

    @property
    def kind(self) -> str:
        """`LORA`, `IA3`, …"""
        return str(self.values["peft_type"])

    def get(self, field: str, otherwise: object = None) -> object:
        """What a field says."""
        return self.values.get(field, otherwise)

    def number(self, patterns: str, name: str, otherwise: object) -> object:
        """What `rank_pattern` or `alpha_pattern` says of a name, as PEFT looks it up.

        Raises:
            UtcError: a key is no regular expression.
        """
        table = self.values.get(patterns) or {}
        if not isinstance(table, dict):
            raise UtcError(f"{patterns} is no table", where=self.where)
        try:
            key = next((k for k in table if re.match(rf"(.*\.)?({k})$", name)), None)
        except re.error as error:
            raise UtcError(f"a key of {patterns} is no regular expression", where=self.where, why=str(error)) from error
        return otherwise if key is None else table[key]

    def names(self, field: str) -> tuple[str, ...]:
        """A list of names; empty where the field has none.

        Raises:
            UtcError: it is no list of texts.
        """
        value = self.values.get(field) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise UtcError(f"{field} is no list of names", where=self.where, why=json.dumps(value)[:200])
        return tuple(value)

    def is_feedforward(self, path: str) -> bool:
        """Whether IA3's factors are on what a module reads, as PEFT decides it."""
        said = self.values.get("feedforward_modules") or ()
        if not isinstance(said, str):
            return path.endswith(self.names("feedforward_modules"))
        try:
            return re.fullmatch(said, path) is not None
        except re.error as error:
            what = "feedforward_modules is no regular expression"
            raise UtcError(what, where=self.where, why=str(error)) from error

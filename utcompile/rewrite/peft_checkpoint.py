"""PEFT's two files, read and checked: what a checkpoint says of each module, whatever model it is for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from utcompile.errors import UtcError
from utcompile.files import path_of
from utcompile.rewrite.peft_config import (
    IA3,
    LN_TUNING,
    LORA,
    PREFIX_TUNING,
    PeftConfig,
    read_config,
)
from utcompile.rewrite.peft_layout import BASE, CONFIG, PREFIX, TENSORS
from utcompile.rewrite.peft_prefix import TENSOR, PeftPrefix, read_prefix
from utcompile.tuners import ConvLora, Dora, Ia3, Lora

_TENSOR = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector|lora_B\.bias)")
_COPIED = ".ln_tuning_layers."
# with `bias: all` PEFT also saves the biases of `modules_to_save` under its wrapper's names, which compute nothing more
_AGAIN = (".original_module.", ".modules_to_save.")
# a module's weight; both weights of `nn.MultiheadAttention`; a parameter that `target_parameters` names
Place = Literal["module", "attention", "parameter"]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PeftTuner:
    """What a LoRA checkpoint says of one weight.

    Attributes:
        path: the module in whose calls PEFT changes the weight.
        parameter: the weight's name in the model.
        layers: the tensors; where PEFT put a tuner around another one, those of each, the innermost first.
        siblings: the weights that `layers` are for, in no order; the model says which is which.
        r: the rank, of each matrix of a stack.
    """

    path: str
    parameter: str
    place: Place
    layers: tuple[Tensors, ...]
    siblings: tuple[str, ...]
    r: int
    alpha: float
    rslora: bool
    dropout: float

    @property
    def tensors(self) -> Tensors:
        """Of a weight that is alone."""
        return self.layers[0]

    @property
    def kind(self) -> str:
        """Ours: lora, dora or conv_lora."""
        if "lora_magnitude_vector" in self.tensors:
            return Dora.kind
        down, up = self.tensors.get("lora_A.weight"), self.tensors.get("lora_B.weight")
        is_grouped = down is not None and up is not None and up.dim() > 2 and up.shape[1] != down.shape[0]
        return ConvLora.kind if is_grouped else Lora.kind

    @property
    def bias(self) -> torch.Tensor | None:
        """What `lora_bias` adds to the result, before it is scaled."""
        return self.tensors.get("lora_B.bias")

    @property
    def scaling(self) -> float:
        """What `B·A` is multiplied by."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


@dataclass(frozen=True)
class PeftScale:
    """IA3's factors of one module.

    Attributes:
        factors: one per channel.
        inputs: whether they are on what the module reads.
    """

    path: str
    factors: torch.Tensor
    inputs: bool

    @property
    def kind(self) -> str:
        """Ours."""
        return Ia3.kind


@dataclass(frozen=True)
class PeftCheckpoint:
    """PEFT's two files.

    Attributes:
        tuners: one per tuned weight.
        scales: one per module that IA3 scales.
        rest: all other tensors, by the names that the model has for them.
        saved: the paths of modules that PEFT copied, and trained whole: `modules_to_save`, and all of LayerNorm tuning.
        prefix: of prefix tuning.
        biases: the biases that train where they are (`bias: all`, `bias: lora_only`).
        base: the fingerprint of the base, where `save_peft` wrote the file.
    """

    where: str
    tuners: tuple[PeftTuner, ...]
    scales: tuple[PeftScale, ...]
    prefix: PeftPrefix | None
    rest: Tensors
    saved: tuple[str, ...]
    biases: tuple[str, ...]
    base: str | None


def read_peft(folder: str | Path) -> PeftCheckpoint:
    """Read a folder that PEFT wrote.

    Raises:
        UtcError: a file is missing or broken, or says something that is not read here.
    """
    folder = path_of(folder, "folder")
    where = str(folder / TENSORS)
    config = read_config(folder / CONFIG, where)
    tensors, base = _tensors(folder / TENSORS)
    found, factors, rest = dict[str, dict[str, torch.Tensor]](), dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    copied: dict[str, None] = {}
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        tuned = _TENSOR.fullmatch(name)
        if tuned:
            found.setdefault(tuned[1], {})[tuned[2]] = value
        elif ".lora_" in name:
            raise UtcError(
                "this is no tensor of a plain LoRA or DoRA",
                where=where,
                why=f"its name is {key}",
                code="peft/unsupported",
            )
        elif name.endswith(".ia3_l"):
            factors[name.removesuffix(".ia3_l")] = value
        elif _COPIED in name:
            path, _, own = name.partition(_COPIED)
            copied[_bare(path)] = None
            rest[f"{_bare(path)}.{own.removeprefix('default.')}"] = value  # PEFT leaves the adapter's name in some
        elif name != TENSOR and not any(word in name for word in _AGAIN):
            rest[_bare(name)] = value
    _require(bool({LORA: found, IA3: factors, LN_TUNING: copied}.get(config.kind, tensors)), config)
    saved = tuple(dict.fromkeys((*_saved(config, rest), *copied)))
    return PeftCheckpoint(
        where,
        tuple(_lora(found, config)),
        tuple(_scale(path, value, config) for path, value in factors.items()),
        read_prefix(tensors, config) if config.kind == PREFIX_TUNING else None,
        rest,
        saved,
        _biases(config, rest, saved),
        base,
    )


def _require(found: bool, config: PeftConfig) -> None:
    if not found:
        kind = {LORA: "LoRA", IA3: "IA3", LN_TUNING: "LayerNorm tuning"}.get(config.kind, config.kind)
        raise UtcError(f"the checkpoint has no tensors of {kind}", where=config.where, code="peft/tensors")


def _bare(name: str) -> str:
    """A name without PEFT's wrappers.

    >>> _bare("mha.base_layer.out_proj.base_layer.bias"), _bare("own.base_layer")
    ('mha.out_proj.bias', 'own')
    """
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _lora(found: Mapping[str, Tensors], config: PeftConfig) -> Iterable[PeftTuner]:
    """The tuners of LoRA, by the wrapped paths that their tensors have."""
    by_path: dict[str, list[str]] = {}
    for wrapped in found:
        by_path.setdefault(_bare(wrapped), []).append(wrapped)
    for path, names in by_path.items():
        names.sort(key=len, reverse=True)  # the innermost first
        targeted = _targeted(path, config.names("target_parameters"))
        layers = tuple(found[name] for name in names)
        if not targeted:
            owner, parameter, place = _of_layer(path, names, found, config)
            yield _tuner(owner, parameter, place, layers, (), config)
        elif len(targeted) != len(layers):
            raise UtcError(
                f"which parameters of {path} are tuned is unclear",
                where=config.where,
                why=f"target_parameters name {', '.join(targeted)}, and the checkpoint has tensors of {len(layers)}",
                code="peft/tensors",
            )
        for parameter in targeted:
            yield _tuner(path, parameter, "parameter", layers, targeted, config)


def _of_layer(
    path: str, names: Sequence[str], found: Mapping[str, Tensors], config: PeftConfig
) -> tuple[str, str, Place]:
    """The module in whose calls PEFT changes a weight, the weight, and what it is of.

    Raises:
        UtcError: it is a tuner inside a tuner.
    """
    name = names[0]
    outer = name.rpartition(".base_layer.")[0]
    in_parameters = outer and _targeted(_bare(outer), config.names("target_parameters"))
    if len(names) == 1 and outer in found and not in_parameters and name == f"{outer}.base_layer.out_proj":
        return _bare(outer), f"{path}.weight", "attention"
    if len(names) > 1 or (outer and not in_parameters):
        raise UtcError(
            "this is no tensor of a plain LoRA or DoRA",
            where=config.where,
            why=f"its name is {name}",
            fix="tuners inside tuners are read on nn.MultiheadAttention and with target_parameters alone",
            code="peft/unsupported",
        )
    if f"{name}.base_layer.out_proj" in found:
        return path, f"{path}.in_proj_weight", "attention"
    return path, f"{path}.weight", "module"


def _targeted(path: str, targets: Iterable[str]) -> tuple[str, ...]:
    """The parameters of a module that `target_parameters` name, by whole names or their ends."""
    found: dict[str, None] = {}
    for target in targets:
        owner, _, name = target.rpartition(".")
        if not owner or path == owner or path.endswith(f".{owner}"):
            found[f"{path}.{name}"] = None
    return tuple(found)


def _tuner(
    path: str,
    parameter: str,
    place: Place,
    layers: tuple[Tensors, ...],
    siblings: tuple[str, ...],
    config: PeftConfig,
) -> PeftTuner:
    key = parameter if place == "parameter" else path  # by which PEFT looks its numbers up
    pairs = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
    more = {"lora_magnitude_vector"} if config.get("use_dora") else set[str]()
    more |= {"lora_B.bias"} if config.get("lora_bias") else set()
    for tensors in layers:
        if not any(tensors.keys() == pair | more for pair in pairs):
            why = ", ".join(sorted(tensors))
            raise UtcError(
                f"the tensors of {path} are not a whole tuner", where=config.where, why=why, code="peft/tensors"
            )
    if place == "attention" and "lora_B.bias" in layers[0]:
        raise UtcError(
            f"lora_bias of {path} is not read",
            where=config.where,
            why="PEFT leaves the bias of nn.MultiheadAttention's in_proj out of its computation",
            code="peft/unsupported",
        )
    first = layers[0].get("lora_A.weight", layers[0].get("lora_embedding_A"))
    assert first is not None
    rank = config.number("rank_pattern", key, config.get("r", 8)) if place == "parameter" else len(first)
    alpha = config.number("alpha_pattern", key, config.get("lora_alpha", 8))
    dropout = (config.get("lora_dropout") or 0.0) if place == "module" else 0.0
    if not (isinstance(rank, int | float) and isinstance(alpha, int | float) and isinstance(dropout, int | float)):
        raise UtcError(
            f"rank {rank!r}, alpha {alpha!r} or dropout {dropout!r} of {path} is no number",
            where=config.where,
            code="peft/tensors",
        )
    if place == "attention" and parameter == f"{path}.out_proj.weight":
        alpha *= 2  # PEFT adds the update of out_proj twice: once itself, and once by the layer's own merge
    return PeftTuner(
        path, parameter, place, layers, siblings, int(rank), alpha, bool(config.get("use_rslora")), dropout
    )


def _scale(path: str, value: torch.Tensor, config: PeftConfig) -> PeftScale:
    inputs = config.is_feedforward(path)
    count = value.numel()
    # of a linear `(1, in)` or `(out, 1)`; of a convolution always `(1, channels, 1, …)`
    shape = (1, count, *[1] * (value.dim() - 2)) if inputs or value.dim() > 2 else (count, 1)
    if tuple(value.shape) != shape:
        what = f"the factors of {path} are not on what it {'reads' if inputs else 'yields'}, as the configuration says"
        raise UtcError(what, where=config.where, why=f"their shape is {list(value.shape)}", code="peft/tensors")
    return PeftScale(path, value.flatten(), inputs)


def _saved(config: PeftConfig, names: Iterable[str]) -> tuple[str, ...]:
    """The paths of `modules_to_save`: PEFT compares their endings."""
    ends = config.names("modules_to_save")
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:i]) for i in range(1, len(parts)))
        if (path := next((p for p in paths if ends and p.endswith(ends)), None)) is not None:
            found[path] = None
    return tuple(found)


def _biases(config: PeftConfig, names: Iterable[str], saved: tuple[str, ...]) -> tuple[str, ...]:
    """The biases that `bias:` trains, without those in modules that are saved whole."""
    if config.get("bias", "none") == "none":
        return ()
    inside = tuple(f"{path}." for path in saved)
    return tuple(n for n in names if n.rpartition(".")[2] == "bias" and not (inside and n.startswith(inside)))


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get(BASE)  # noqa: SIM118 - no dict
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch could not open what was there
        fix = None
        if path.with_suffix(".bin").exists():
            fix = "adapter_model.bin is a pickle, which can run code: save it again with save_pretrained of peft >= 0.5"
        raise UtcError(
            "the checkpoint's tensors cannot be read", where=str(path), why=str(error), fix=fix, code="peft/tensors"
        ) from error

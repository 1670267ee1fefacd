"""`peft_rules` and `load_peft`: a LoRA checkpoint of the package `peft` as rules, and its tensors loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from utcompile.errors import UtcError
from utcompile.rewrite.checkpoint import fingerprint
from utcompile.rewrite.peft_layout import BASE, CONFIG, PREFIX, TENSORS, by_reason, from_peft, layer_of, module_of
from utcompile.rewrite.tuned import TunedModule, TunedSite, state_of_base
from utcompile.rules import RuleSet
from utcompile.tuners import Dora, Lora

_TENSOR = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector)")
_TEXT = 6_000  # characters of paths in one rule; a rule's text has a limit
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
class _Tuned:
    """What a checkpoint says of one module."""

    tensors: Mapping[str, torch.Tensor]
    r: int
    alpha: float
    rslora: bool
    dropout: float

    @property
    def kind(self) -> str:
        return Dora.kind if "lora_magnitude_vector" in self.tensors else Lora.kind

    @property
    def scaling(self) -> float:
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


@dataclass(frozen=True)
class _Checkpoint:
    """PEFT's two files.

    Attributes:
        modules: by path.
        rest: all other tensors, by the names that the model has for them.
        saved: the paths of `modules_to_save`.
        base: the fingerprint of the base, where `save_peft` wrote the file.
    """

    where: str
    modules: Mapping[str, _Tuned]
    rest: Mapping[str, torch.Tensor]
    saved: tuple[str, ...]
    base: str | None = field(default=None)


def peft_rules(folder: str | Path) -> RuleSet:
    """The rules that compile a model as a PEFT checkpoint tunes it: the same modules, rank, alpha and kind.

    Which modules they are is read off the tensors, so it does not matter how `target_modules` says it (names, a
    regular expression, `all-linear`). `modules_to_save` stand under `train:`. Dropout is kept where a tuner has an
    input to drop: not on embeddings, and not with DoRA.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UtcError: the files are missing or broken, or say something that is no plain LoRA or DoRA.
    """
    checkpoint = _read(folder)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path, module in checkpoint.modules.items():
        dropout = module.dropout if module.kind == Lora.kind and "lora_A.weight" in module.tensors else 0.0
        groups.setdefault((module.kind, module.r, module.alpha, module.rslora, dropout), []).append(path)
    parts = [(key, part) for key, paths in groups.items() for part in _parts(paths)]
    lines = ["version: 1", "name: peft", "rules:"]
    for i, ((kind, r, alpha, rslora, dropout), paths) in enumerate(parts):
        more = f", rslora: {str(rslora).lower()}, dropout: {dropout}" if rslora or dropout else ""
        lines += [
            f"  - name: {kind}{f'-{i}' if len(parts) > 1 else ''}",
            "    match: {op: linear | conv | embedding | addmm}",
            "    where:",
            "      - >-",
            "        h.path in (",
            *(f"        {path!r}," for path in paths),
            "        )",
            # PEFT tunes one use of a tied weight
            f"    insert: {{weight: h, tuner: {{kind: {kind}, r: {r}, alpha: {alpha}{more}}}, all_uses: true}}",
            f"    expect: {{at_least: {len(paths)}}}",
        ]
    if checkpoint.saved:
        lines += ["train:", *(f"  - {json.dumps(f'module:{path}.**')}" for path in checkpoint.saved)]
    return RuleSet.load("\n".join([*lines, ""]))


def load_peft(tuned: TunedModule, folder: str | Path) -> TunedModule:
    """Load a PEFT checkpoint into a model that was compiled with its `peft_rules`, or with rules that say the same.

    Every tensor must find its place and every site its tensors; else nothing is loaded.

    Raises:
        UtcError: as `peft_rules`; or sites, ranks, scales or shapes differ; or PEFT computes something else with it.

    Example:
        >>> import tempfile, torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(2, 4)
        >>> folder = utc.save_peft(utc.compile(model, "lora/all_linear", (x,)), tempfile.mkdtemp())
        >>> tuned = utc.load_peft(utc.compile(model, utc.peft_rules(folder), (x,)), folder)
        >>> [site.id for site in tuned.sites], tuned.trained
        (['lora/0/0'], ('2.weight', '2.bias'))
    """
    if not isinstance(tuned, TunedModule):
        raise UtcError(f"load_peft takes a TunedModule, not {type(tuned).__name__}")
    checkpoint = _read(folder)
    if checkpoint.base is not None and checkpoint.base != (mine := fingerprint(tuned)):
        raise UtcError(
            "this checkpoint was trained on another base",
            where=checkpoint.where,
            why=f"its base has the fingerprint {checkpoint.base[:12]}…, this model {mine[:12]}…",
            fix="build the model with the same architecture and weights as in training",
        )
    problems: Problems = []
    values = _tuner_values(tuned, checkpoint, problems) | _other_values(tuned, checkpoint, problems)
    for name, (parameter, value) in values.items():
        if parameter.shape != value.shape:
            problems.append((name, f"{list(value.shape)} in the checkpoint, {list(parameter.shape)} here"))
    if problems:
        raise UtcError(
            "this checkpoint does not fit the model",
            where=checkpoint.where,
            why=by_reason(problems, most=4),
            fix="compile the model that it was trained on with utc.peft_rules(folder)",
        )
    with torch.no_grad():
        for parameter, value in values.values():
            parameter.copy_(value)
    return tuned


Problems = list[tuple[str, str]]
Values = dict[str, tuple[torch.Tensor, torch.Tensor]]


def _tuner_values(tuned: TunedModule, checkpoint: _Checkpoint, problems: Problems) -> Values:
    """Each tuner's parameters and what they become."""
    left = dict(checkpoint.modules)
    found: Values = {}
    for site in tuned.sites:
        try:
            path = module_of(site)
            layer = layer_of(tuned, path)
            module = left.pop(path, None)
            if module is None:
                raise UtcError("the checkpoint has nothing for it")
            tuner = _same_tuner(tuned, site, module)
        except UtcError as error:
            problems.append((site.id, error.what))
            continue
        mine = dict(tuner.named_parameters())
        for name, value in from_peft(layer, module.tensors).items():
            found[f"{site.id}:{name}"] = (mine[name], value)
    problems += [(path, "the model has no site there") for path in left]
    return found


def _same_tuner(tuned: TunedModule, site: TunedSite, module: _Tuned) -> Lora:
    tuner = tuned.tuner(site.id)
    assert isinstance(tuner, Lora)
    if site.tuner != module.kind:
        raise UtcError(f"it is {site.tuner}, the checkpoint {module.kind}")
    if tuner.rank != module.r or abs(tuner.scaling - module.scaling) > 1e-6 * abs(module.scaling):
        raise UtcError(
            f"its rank is {tuner.rank} and its scale {tuner.scaling:.6g}, "
            f"in the checkpoint {module.r} and {module.scaling:.6g}"
        )
    return tuner


def _other_values(tuned: TunedModule, checkpoint: _Checkpoint, problems: Problems) -> Values:
    """What `train:` names, and what it becomes. Frozen state that the checkpoint brings must be the base's own."""
    found: Values = {}
    base = state_of_base(tuned)
    for name, value in checkpoint.rest.items():
        if name in tuned.trained:
            found[name] = (tuned.get_parameter(name), value)
        elif name not in base:
            problems.append((name, "the model has no such parameter"))
        elif base[name].shape != value.shape or not torch.equal(base[name].cpu(), value.to(base[name].dtype)):
            problems.append((name, "it is frozen here, and other than the checkpoint's"))
    problems += [(name, "it is trained here, and not in the checkpoint") for name in tuned.trained if name not in found]
    return found


def _read(folder: str | Path) -> _Checkpoint:
    folder = Path(folder)
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
    complete = {path: _tuned(path, found, config, where) for path, found in modules.items()}
    return _Checkpoint(where, complete, rest, _saved(config, rest), base)


def _tuned(path: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str) -> _Tuned:
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
    return _Tuned(tensors, first.shape[0], alpha, bool(config.get("use_rslora")), dropout)


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


def _parts(paths: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for path in paths:
        if sum(len(p) + 4 for p in parts[-1]) + len(path) > _TEXT:
            parts.append([])
        parts[-1].append(path)
    return parts


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "name a local folder that peft's save_pretrained wrote"
        raise UtcError("there is no PEFT checkpoint here", where=str(path), why=error.strerror, fix=fix) from error
    except ValueError as error:
        raise UtcError("the file is no JSON", where=str(path), why=str(error)) from error
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

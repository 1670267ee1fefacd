"""`save_peft`: the LoRA and DoRA sites of a `TunedModule` as a checkpoint of the package `peft`."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from utcompile.errors import UtcError
from utcompile.files import path_of
from utcompile.graph import owner_path
from utcompile.rewrite.base_print import fingerprint, statistics_of
from utcompile.rewrite.checkpoint import tuned_module
from utcompile.rewrite.digests import whole
from utcompile.rewrite.pair import write_pair
from utcompile.rewrite.peft_layout import (
    BASE,
    CONFIG,
    PREFIX,
    TENSORS,
    Layer,
    Problems,
    by_reason,
    layer_of,
    module_of,
    to_peft,
)
from utcompile.rewrite.tuned import TunedModule
from utcompile.tuners import Dora, Lora, LoraConfig


def save_peft(tuned: torch.nn.Module, folder: str | Path) -> Path:
    """Write the tuners and `train:` parts as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

    `peft.PeftModel.from_pretrained(model, folder)` on the original model then computes what `tuned` computes. The
    modules that own what `train:` names become its `modules_to_save`. Both files appear or neither.

    Args:
        tuned: the model, or what DDP or `torch.compile` made of it: plain LoRA sites, or plain DoRA sites, on linears,
            ungrouped convolutions and embeddings.
        folder: made if it does not exist.

    Returns:
        The folder.

    Raises:
        UtcError: PEFT has no such sites; all of them are named, each with its reason.

    Example:
        >>> import tempfile, torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 4),))
        >>> sorted(path.name for path in utc.save_peft(tuned, tempfile.mkdtemp()).iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    tuned, folder = tuned_module(tuned, "save_peft"), path_of(folder, "folder")
    problems: Problems = []
    sites, saved = _sites(tuned, problems), _saved(tuned)
    problems += _mixed(sites) + _unsaved(tuned, saved, sites)
    problems += [(name, "training moves it, and PEFT saves no statistics") for name in statistics_of(tuned)]
    if problems or not sites:
        raise UtcError(
            "PEFT cannot hold these sites" if problems else "the model has no LoRA or DoRA sites",
            why=by_reason(problems),
            fix="leave them out of the rules, or keep utcompile's own layout: utc.save_tuners",
        )
    tensors: dict[str, torch.Tensor] = {}
    for site in sites:
        for name, value in to_peft(site.layer, site.tuner).items():
            tensors[f"{PREFIX}{site.path}.{name}"] = value
    for path in saved:
        state = tuned.get_submodule(path).state_dict()
        tensors |= {f"{PREFIX}{path}.{name}": value for name, value in state.items()}
    tensors = {k: whole(v).detach().contiguous().cpu().clone() for k, v in tensors.items()}
    text = json.dumps(_config(tuned, sites, saved), indent=2, sort_keys=True)
    return write_pair(folder, TENSORS, tensors, CONFIG, text, {"format": "pt", BASE: fingerprint(tuned, without=saved)})


@dataclass(frozen=True)
class _Site:
    """A site that PEFT has too."""

    id: str
    path: str
    layer: Layer
    tuner: Lora
    config: LoraConfig


def _sites(tuned: TunedModule, problems: Problems) -> list[_Site]:
    found = []
    for site in tuned.sites:
        try:
            path = module_of(site)
            layer = layer_of(tuned, path)
        except UtcError as error:
            problems.append((site.id, error.what))
            continue
        tuner = tuned.tuner(site.id)
        assert isinstance(tuner, Lora) and isinstance(site.config, LoraConfig)
        found.append(_Site(site.id, path, layer, tuner, site.config))
    return found


def _mixed(sites: list[_Site]) -> Problems:
    """What PEFT says once for all sites, and differs here."""
    problems: Problems = []
    dropping = [s for s in sites if s.layer != "embedding"]  # PEFT drops no indices
    for what, those, value in (
        ("tuner", sites, lambda s: s.config.kind),
        ("dropout", dropping, lambda s: s.config.dropout),
    ):
        usual = Counter(map(value, those)).most_common(1)[0][0] if those else None
        problems += [
            (s.id, f"its {what} is {value(s)}, others' {usual}, and PEFT has one for all")
            for s in those
            if value(s) != usual
        ]
    return problems


def _saved(tuned: TunedModule) -> list[str]:
    """The outermost modules that own what `train:` names, and those that PEFT takes for them: it compares endings."""
    owners = sorted({owner_path(name) for name in tuned.trained})
    outer = [p for p in owners if not any(p.startswith(f"{q}.") for q in owners)]
    every = [n for n, _ in tuned.named_modules() if n and n.partition(".")[0] not in ("tuners", "base_values")]
    return [n for n in every if any(n.endswith(p) for p in outer if p)]


def _unsaved(tuned: TunedModule, saved: list[str], sites: list[_Site]) -> Problems:
    """What of `train:` cannot be `modules_to_save`."""
    problems = [(name, "it is trained itself, and no module owns it") for name in tuned.trained if "." not in name]
    for site in sites:
        # PEFT's own comparison: such a module would not be tuned
        inside = next((p for p in saved if re.match(rf"(^|.*\.){p}($|\..*)", site.path)), None)
        if inside is not None:
            problems.append((site.id, f"it is in {inside}, which is trained itself, and PEFT does one or the other"))
    return problems


def _config(tuned: TunedModule, sites: list[_Site], saved: list[str]) -> dict[str, object]:
    rslora = all(s.config.rslora for s in sites)
    ranks = {s.path: s.config.r for s in sites}
    # where others scale by alpha / r, alpha·√r / r is alpha / √r
    alphas = {
        s.path: _number(s.config.alpha * (s.config.r**0.5 if s.config.rslora and not rslora else 1)) for s in sites
    }
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": getattr(getattr(tuned, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "target_modules": _targets(tuned, list(ranks)),
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {_anchored(path): n for path, n in ranks.items() if n != r},
        "alpha_pattern": {_anchored(path): n for path, n in alphas.items() if n != alpha},
        "use_rslora": rslora,
        "use_dora": sites[0].config.kind == Dora.kind,
        "lora_dropout": max(s.config.dropout for s in sites),
        "fan_in_fan_out": any(s.layer == "conv1d of transformers" for s in sites),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": saved or None,
    }


def _targets(tuned: TunedModule, paths: list[str]) -> list[str] | str:
    """The modules' paths; where such a path is the end of another module's too, an expression of them alone."""
    others = [name for name, _ in tuned.named_modules() if name not in paths]
    if not any(name.endswith(f".{path}") for path in paths for name in others):
        return paths
    return "|".join(map(re.escape, paths))  # PEFT requires a match of the whole


def _anchored(path: str) -> str:
    """PEFT matches the keys of its patterns as the end of a path."""
    return f"^{re.escape(path)}"


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value

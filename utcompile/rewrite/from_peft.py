"""`peft_rules` and `load_peft`: a LoRA checkpoint of the package `peft` as rules, and its tensors loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from utcompile.errors import UtcError
from utcompile.rewrite.base_print import fingerprint, fingerprint_of_format_1
from utcompile.rewrite.checkpoint import tuned_module
from utcompile.rewrite.peft_checkpoint import PeftCheckpoint, PeftTuner, read_peft
from utcompile.rewrite.peft_layout import Problems, by_reason, from_peft, layer_of, module_of
from utcompile.rewrite.tuned import TunedModule, TunedSite, state_of_base
from utcompile.rules import RuleSet
from utcompile.tuners import Lora

_TEXT = 6_000  # characters of paths in one rule; a rule's text has a limit


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
    checkpoint = read_peft(folder)
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


def load_peft(tuned: torch.nn.Module, folder: str | Path) -> TunedModule:
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
    tuned = tuned_module(tuned, "load_peft")
    checkpoint = read_peft(folder)
    mine = fingerprint(tuned, without=checkpoint.saved) if checkpoint.base is not None else None
    if checkpoint.base not in (mine, None) and checkpoint.base != fingerprint_of_format_1(tuned):
        raise UtcError(
            "this checkpoint was trained on another base",
            where=checkpoint.where,
            why=f"its base has the fingerprint {str(checkpoint.base)[:12]}…, this model {str(mine)[:12]}…",
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


Values = dict[str, tuple[torch.Tensor, torch.Tensor]]


def _tuner_values(tuned: TunedModule, checkpoint: PeftCheckpoint, problems: Problems) -> Values:
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


def _same_tuner(tuned: TunedModule, site: TunedSite, module: PeftTuner) -> Lora:
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


def _other_values(tuned: TunedModule, checkpoint: PeftCheckpoint, problems: Problems) -> Values:
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


def _parts(paths: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for path in paths:
        if sum(len(p) + 4 for p in parts[-1]) + len(path) > _TEXT:
            parts.append([])
        parts[-1].append(path)
    return parts

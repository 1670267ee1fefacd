"""A PEFT checkpoint as rules: the same modules, ranks, scales and kinds, whatever model it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator

from utcompile.rewrite.peft_checkpoint import PeftCheckpoint, PeftTuner
from utcompile.rules import RuleSet
from utcompile.tuners import Bias, ConvLora, Lora, Prefix

_TEXT = 6_000  # characters of paths in one rule; a rule's text has a limit
_LAYERS = "{op: linear | conv | embedding | addmm}"
_SCALED = "{op: linear | conv | addmm}"


def rules_of(checkpoint: PeftCheckpoint) -> RuleSet:
    """Write the rules."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for tuner in checkpoint.tuners:
        if tuner.place == "module":
            groups.setdefault(_of_module(tuner), []).append(tuner.path)
        if tuner.bias is not None and f"{tuner.path}.bias" not in checkpoint.biases:
            insert = f"weight: h, tuner: {{kind: {Bias.kind}, add: true}}, all_uses: true"
            groups.setdefault(("bias", _LAYERS, insert), []).append(tuner.path)
    for scale in checkpoint.scales:
        inputs = ", inputs: true" if scale.inputs else ""
        insert = f"weight: h, tuner: {{kind: {scale.kind}{inputs}}}, all_uses: true"
        groups.setdefault((scale.kind, _SCALED, insert), []).append(scale.path)
    parts = [(key, part) for key, paths in groups.items() for part in _parts(paths)]
    named = [t for t in checkpoint.tuners if t.place != "module"]
    is_one = len(parts) + len(named) == 1
    lines = ["version: 1", "name: peft", *(["rules:"] if parts or named or checkpoint.prefix else [])]
    for i, ((name, match, insert), paths) in enumerate(parts):
        lines += [
            f"  - name: {name}{'' if is_one else f'-{i}'}",
            f"    match: {match}",
            "    where:",
            "      - >-",
            "        h.path in (",
            *(f"        {path!r}," for path in paths),
            "        )",
            f"    insert: {{{insert}}}",
            f"    expect: {{at_least: {len(paths)}}}",
        ]
    for i, tuner in enumerate(named, len(parts)):
        lines += _of_parameter(tuner, i)
    if checkpoint.prefix is not None:
        config = f"{{kind: {Prefix.kind}, length: {checkpoint.prefix.length}, init: normal}}"
        lines += [
            f"  - name: {Prefix.kind}",
            "    match: attention",
            f"    insert: {{tokens: [k, v], tuner: {config}}}",
            f"    expect: {{exactly: {len(checkpoint.prefix.layers)}}}",
        ]
    lines += _train(checkpoint)
    return RuleSet.load("\n".join([*lines, ""]))


def _of_module(tuner: PeftTuner) -> tuple[str, str, str]:
    """Name, match and insertion of a rule."""
    kind = tuner.kind
    drops = kind in (Lora.kind, ConvLora.kind) and "lora_A.weight" in tuner.tensors
    config = _config(tuner, tuner.dropout if drops else 0.0)
    if kind == ConvLora.kind:
        return kind, "{op: conv}", f"parallel: x -> h, tuner: {config}"
    return kind, _LAYERS, f"weight: h, tuner: {config}, all_uses: true"  # PEFT tunes one use of a tied weight


def _of_parameter(tuner: PeftTuner, number: int) -> Iterator[str]:
    """A parameter that the model reads by its name; or one of a layer, which is not read so."""
    config = _config(tuner, 0.0)
    yield f"  - name: {tuner.kind}-{number}"
    yield f"    match: {{parameter: {json.dumps(tuner.parameter)}}}"
    yield f"    insert: {{weight: h, tuner: {config}}}"
    if tuner.place == "attention":
        return
    yield "    expect: {optional: true}"
    for layer in ("Linear", "Embedding"):
        yield f"  - name: {tuner.kind}-{number}-{layer.lower()}"
        yield f"    match: {{module: {json.dumps(tuner.path)}, class: {layer}}}"
        yield f"    insert: {{weight: y, tuner: {config}, all_uses: true}}"
        yield "    expect: {optional: true}"


def _config(tuner: PeftTuner, dropout: float) -> str:
    more = f", rslora: {str(tuner.rslora).lower()}, dropout: {dropout}" if tuner.rslora or dropout else ""
    return f"{{kind: {tuner.kind}, r: {tuner.r}, alpha: {tuner.alpha}{more}}}"


def _train(checkpoint: PeftCheckpoint) -> list[str]:
    """What PEFT copies is no longer tied to anything; what it trains in place stays so."""
    lines = [f"untied:{path}.**" for path in checkpoint.saved] + [f"parameter:{name}" for name in checkpoint.biases]
    return ["train:", *(f"  - {json.dumps(line)}" for line in lines)] if lines else []


def _parts(paths: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for path in paths:
        if sum(len(p) + 4 for p in parts[-1]) + len(path) > _TEXT:
            parts.append([])
        parts[-1].append(path)
    return parts

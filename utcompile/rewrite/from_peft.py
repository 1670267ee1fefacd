"""`peft_rules` and `load_peft`: a checkpoint of the package `peft` as rules, and its tensors loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from utcompile.errors import UtcError
from utcompile.rewrite.base_print import fingerprint, fingerprint_of_format_1
from utcompile.rewrite.checkpoint import tuned_module
from utcompile.rewrite.peft_checkpoint import read_peft
from utcompile.rewrite.peft_layout import by_reason
from utcompile.rewrite.peft_text import rules_of
from utcompile.rewrite.peft_values import Placing
from utcompile.rewrite.tuned import TunedModule
from utcompile.rules import RuleSet


def peft_rules(folder: str | Path) -> RuleSet:
    """The rules that compile a model as a PEFT checkpoint tunes it: the same modules, rank, alpha and kind.

    LoRA and DoRA, IA3 and LayerNorm tuning are read. Which modules they tune is read off the tensors, so it does not
    matter how `target_modules` says it (names, a regular expression, `all-linear`). `modules_to_save`, the copies of
    LayerNorm tuning and the biases of `bias:` are under `train:`. Dropout is kept where a tuner has an input to drop:
    not on embeddings, and not with DoRA.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UtcError: the files are missing or broken, or say something that is not read here.
    """
    return rules_of(read_peft(folder))


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
            code="checkpoint/other-base",
        )
    placing = Placing(tuned, checkpoint)
    values = placing.place()
    if placing.problems:
        raise UtcError(
            "this checkpoint does not fit the model",
            where=checkpoint.where,
            why=by_reason(placing.problems, most=4),
            fix="compile the model that it was trained on with utc.peft_rules(folder)",
            code="peft/tensors",
        )
    with torch.no_grad():
        for parameter, value in values.values():
            parameter.copy_(value)
    return tuned

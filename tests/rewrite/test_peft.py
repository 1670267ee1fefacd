"""PEFT's checkpoints with the real package: both ways, and equal outputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.draws import examples
from support.peft_toys import (
    CASES,
    EXACT,
    IDS,
    IMAGES,
    LORA,
    SMALL,
    WARNINGS,
    Named,
    bert,
    compiled,
    compiled_again,
    error,
    into_peft,
    made,
    output,
    rules,
    trained,
    vit,
)
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import utcompile as utc

pytestmark = WARNINGS


@pytest.mark.parametrize("case", CASES)
def test_both_ways(case: str, tmp_path: Path) -> None:
    make, how, x = CASES[case]
    model = made(make)
    tuned = trained(compiled_again(make, how), x)
    assert utc.save_peft(tuned, tmp_path / "ours") == tmp_path / "ours"
    theirs = into_peft(model, tmp_path / "ours")
    expected = output(tuned, x)
    assert error(output(theirs, x), expected) < EXACT < 1e-4 < error(output(model, x), expected)

    theirs.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        again = utc.load_peft(compiled_again(make, utc.peft_rules(folder)), folder).eval()
        assert torch.equal(output(again, x), expected)
    assert set(again.trained) == set(tuned.trained) and len(again.sites) == len(tuned.sites)
    utc.save_tuners(again, tmp_path / "run")  # the rules are text, and so a run can be opened again
    assert utc.RuleSet.load(again.ruleset.text).rules


def test_the_files_are_what_peft_writes(tmp_path: Path) -> None:
    model = made(vit)
    utc.save_peft(compiled(model, "lora/all_linear", IMAGES), tmp_path / "ours")
    config = peft.LoraConfig(
        r=8,
        target_modules=["qkv", "proj", "fc1", "fc2"],
        exclude_modules=["patch_embed.proj"],
        modules_to_save=["head"],
    )
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("ours", "theirs"))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    ours, theirs = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs"))
    assert ours.keys() <= theirs.keys()
    assert {k for k in ours if ours[k] != theirs[k]} == {"target_modules"}


# what PEFT can say about where its tuners are
CONFIGS: dict[str, dict[str, Any]] = {
    "suffixes": {"target_modules": ["query", "value"]},
    "regex": {"target_modules": r".*layer\.1.*(query|dense)"},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "excluded": {"target_modules": ["dense"], "exclude_modules": ["pooler.dense"]},
    "patterns": {
        "target_modules": ["query", "key", "dense"],
        "rank_pattern": {"query": 2, r"^bert.encoder.layer.0.*dense": 6},
        "alpha_pattern": {"layer.1.attention.self.key": 7},
        "use_rslora": True,
    },
    "saved": {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
    "sequence": {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "dropout": {"target_modules": ["word_embeddings", "query"], "lora_dropout": 0.1},
    "dora": {"target_modules": ["word_embeddings", "query"], "lora_dropout": 0.1, "use_dora": True},
    "gaussian": {"target_modules": ["query"], "init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_trained_loads(kind: str, tmp_path: Path) -> None:
    model = made(bert)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{"r": 4, "lora_alpha": 9, **CONFIGS[kind]}))
    expected = output(trained(theirs, IDS), IDS)
    theirs.save_pretrained(tmp_path)
    tuned = compiled_again(bert, utc.peft_rules(tmp_path))
    assert torch.equal(output(tuned.eval(), IDS), output(model, IDS))
    utc.load_peft(tuned, tmp_path)
    assert error(output(tuned, IDS), expected) < EXACT < 1e-4 < error(output(model, IDS), expected)
    mine = {n for n, p in theirs.named_parameters() if "lora_A" in n or "lora_embedding_A" in n}
    assert len(tuned.sites) == len(mine)
    dropouts = {s.config.dropout for s in tuned.sites}
    assert dropouts == {"dropout": {0.0, 0.1}}.get(kind, {0.0})


PATHS = ["fc", "block.fc", "block.xfc", "block.conv", "head"]
ALPHAS = st.integers(1, 20) | st.floats(0.25, 20)
SITE = st.tuples(st.integers(1, 4), ALPHAS, st.booleans())


@settings(max_examples=examples(6, full=24), deadline=None)
@given(
    st.dictionaries(st.sampled_from(PATHS), SITE, min_size=1),
    st.sampled_from(["lora", "dora"]),
    st.sampled_from(["", "module:head", "parameter:head.bias"]),
)
def test_any_sites_ranks_and_scales(
    tmp_path_factory: pytest.TempPathFactory, sites: dict[str, tuple[int, float, bool]], kind: str, train: str
) -> None:
    model, x, folder = made(Named), torch.randn(2, 5, 4, dtype=torch.float64), tmp_path_factory.mktemp("peft")
    lines = ["version: 1", "name: t", "rules:"]
    for path, (r, alpha, rslora) in sites.items():
        tuner = f"{{kind: {kind}, r: {r}, alpha: {alpha}, rslora: {str(rslora).lower()}}}"
        where = f"where: [h.path == '{path}']"
        lines.append(
            f"  - {{name: {path.replace('.', '_')}, match: {{op: linear | conv}}, {where}, insert: {{weight: h, tuner: {tuner}}}}}"
        )
    lines += [f"train: ['{train}']"] if train and "head" not in sites else []
    tuned = trained(compiled(model, "\n".join([*lines, ""]), x), x)
    utc.save_peft(tuned, folder)
    theirs = into_peft(model, folder)
    assert error(output(theirs, x), output(tuned, x)) < EXACT
    wrapped = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert wrapped == set(sites)
    again = utc.load_peft(compiled(model, utc.peft_rules(folder), x), folder).eval()
    assert error(output(again, x), output(tuned, x)) < EXACT


def test_a_trained_module_whose_name_ends_others(tmp_path: Path) -> None:
    """PEFT takes `block.fc` and `block.xfc` for `fc` too, and asks the checkpoint for them."""
    model, x = made(Named), torch.randn(2, 5, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['module:fc']").replace("except: [head]", "where: [h.path == 'head']")
    tuned = trained(compiled(model, how, x), x)
    utc.save_peft(tuned, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "fc",
        "block.fc",
        "block.xfc",
    ]
    assert error(output(into_peft(model, tmp_path), x), output(tuned, x)) < EXACT


def gqa() -> nn.Module:
    config = LlamaConfig(**SMALL | {"num_attention_heads": 4}, num_key_value_heads=2, max_position_embeddings=32)
    return LlamaForCausalLM(config)


def gpt2_head() -> nn.Module:
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


POSITIONS = {"position_ids": torch.arange(3, 8).repeat(2, 1), "use_cache": False}  # behind a prefix of 3


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # by transformers, for PEFT
@pytest.mark.parametrize("make", [gqa, gpt2_head])
def test_prefix_tuning(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Rotary and learned positions; heads that share keys."""
    model = made(make)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).double().eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    expected = output(theirs, IDS)
    tuned = utc.load_peft(utc.compile(model, utc.peft_rules(tmp_path), IDS | POSITIONS), tmp_path).eval()
    assert error(output(tuned, IDS | POSITIONS), expected) < EXACT < 1e-4 < error(output(model, IDS), expected)
    assert error(output(utc.fold(tuned)[0], IDS | POSITIONS), expected) < EXACT

    without = utc.compile(model, utc.peft_rules(tmp_path), IDS | {"use_cache": False})
    with pytest.raises(utc.UtcError, match=r"PEFT counts positions from 3 on .* without position_ids"):
        utc.load_peft(without, tmp_path)
    file = tmp_path / "adapter_config.json"
    said = json.loads(file.read_text())
    for change, words in (
        ({"task_type": "SEQ_CLS"}, "language models that only decode"),
        ({"num_layers": 5}, "do not fit num_layers"),
    ):
        file.write_text(json.dumps(said | change))
        with pytest.raises(utc.UtcError, match=words):
            utc.peft_rules(tmp_path)


def test_many_modules_fit_into_rules(tmp_path: Path) -> None:
    """A rule's text has a limit; a large model has more paths than fit into one."""
    tensors = {}
    for i in range(400):
        for name in ("lora_A", "lora_B"):
            tensors[f"base_model.model.model.layers.{i}.self_attn.q_proj.{name}.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = utc.peft_rules(tmp_path).rules
    assert len(found) > 1 and sum(rule.expect.at_least for rule in found) == 400

"""PEFT's methods on small models of transformers: saved by PEFT, then loaded, run and folded here, equal in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import nn

import utcompile as utc

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's, on its own configurations
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50, "intermediate_size": 24}
DECODER = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 32}
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "batched_mm"}  # grouped products have no float64
IDS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
NO_CACHE = {**IDS, "use_cache": False}


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, tie_word_embeddings=True))


def mixtral() -> nn.Module:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, **EXPERTS, num_local_experts=4))


def qwen3_moe() -> nn.Module:
    config = hf.Qwen3MoeConfig(**DECODER, **EXPERTS, num_experts=4, moe_intermediate_size=12, head_dim=4)
    return hf.Qwen3MoeForCausalLM(config)


def t5() -> nn.Module:
    config = hf.T5Config(
        d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=50, decoder_start_token_id=0
    )
    return hf.T5ForConditionalGeneration(config)


def bert() -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**SMALL, max_position_embeddings=32, num_labels=3))


def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return hf.GPT2LMHeadModel(config)


def clip() -> nn.Module:
    sizes = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes, image_size=16, patch_size=4))


IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
STACKS = {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"]}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "experts": (mixtral, peft.LoraConfig(**STACKS, target_modules=[]), NO_CACHE),
    "experts and layers": (qwen3_moe, peft.LoraConfig(**STACKS, target_modules=["q_proj"]), NO_CACHE),
    "norms": (llama, peft.LNTuningConfig(task_type="CAUSAL_LM"), NO_CACHE),
    "ia3": (llama, peft.IA3Config(task_type="CAUSAL_LM"), NO_CACHE),
    "a tied head": (llama, peft.LoraConfig(**LORA, modules_to_save=["lm_head"]), NO_CACHE),
    "a head and its table": (llama, peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]), NO_CACHE),
    "ia3 of both parts": (
        t5,
        peft.IA3Config(task_type="SEQ_2_SEQ_LM"),
        {**NO_CACHE, "decoder_input_ids": IDS["input_ids"]},
    ),
    "every bias": (bert, peft.LoraConfig(r=2, target_modules=["query"], bias="all", task_type="SEQ_CLS"), IDS),
    "their biases": (
        bert,
        peft.LoraConfig(r=2, target_modules=["query", "dense"], bias="lora_only", lora_bias=True),
        IDS,
    ),
    "ia3 of Conv1D": (
        gpt2,
        peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
        NO_CACHE,
    ),
    "biases of Conv1D": (
        gpt2,
        peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all", lora_bias=True, fan_in_fan_out=True),
        NO_CACHE,
    ),
    "patches": (clip, peft.LoraConfig(r=2, target_modules=["q_proj", "patch_embedding"], bias="all"), IMAGES),
}


def output(model: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**given)[0]
    return result


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", CASES)
def test_what_peft_trained_loads_and_folds(name: str, tmp_path: Path) -> None:
    make, config, given = CASES[name]
    model = make().double().eval().requires_grad_(False)
    theirs = peft.get_peft_model(copy.deepcopy(model), copy.deepcopy(config)).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(str(tmp_path))
    expected = output(theirs, given)
    tuned = utc.load_peft(utc.compile(copy.deepcopy(model), utc.peft_rules(tmp_path), given), tmp_path).eval()
    folded, report = utc.fold(tuned)
    assert error(output(tuned, given), expected) < 1e-12 < 1e-4 < error(output(model, given), expected)
    assert not report.kept and error(output(folded, given), expected) < 1e-12

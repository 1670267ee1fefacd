"""Models, rules and steps for the tests of PEFT's checkpoints.

Everything runs in float64: the two programs then differ by the order of their sums alone, about 1e-15 of the largest
output, and a wrong scale, transposition or norm by far more than the 1e-12 that is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

import utcompile as utc

WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # transformers, on PEFT's call
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:.*groups > 1"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
]
EXACT = 1e-12
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50, "intermediate_size": 24}
IDS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vit() -> nn.Module:
    return timm.create_model("test_vit", num_classes=3, img_size=64)


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=3)


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=32, num_labels=3))


def gpt2() -> nn.Module:
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2Model(config)


def albert() -> nn.Module:
    return AlbertModel(AlbertConfig(**SMALL, embedding_size=8, max_position_embeddings=32))


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True)
    )


def rules(op: str, tuner: str, train: str = "") -> str:
    return (
        f"version: 1\nname: t\nrules:\n  - name: l\n    match: {{op: {op}}}\n    except: [head]\n"
        f"    insert: {{weight: h, tuner: {{{tuner}}}, all_uses: true}}\n{train}\n"
    )


HEAD = 'train: ["pattern:head"]'
LORA, DORA = "kind: lora, r: 3, alpha: 5", "kind: dora, r: 3, alpha: 5, rslora: true"
CASES: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "vit": (vit, "lora/all_linear", IMAGES),
    "vit dora": (vit, rules("linear | conv", DORA, HEAD), IMAGES),
    "resnet": (resnet, rules("conv(groups=1)", "kind: lora, r: 2, alpha: 5, rslora: true", HEAD), IMAGES),
    "resnet dora": (resnet, rules("conv(groups=1)", DORA, HEAD), IMAGES),
    "bert": (bert, rules("linear | embedding", LORA, HEAD), IDS),
    "gpt2": (gpt2, rules("addmm | embedding", LORA), IDS),
    "gpt2 dora": (gpt2, rules("addmm | embedding", DORA), IDS),
    "albert": (albert, rules("linear | embedding", LORA), IDS),  # one layer, called twice
    "llama": (llama, rules("linear | embedding", LORA), IDS),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def compiled(model: nn.Module, how: Any, x: Any) -> utc.TunedModule:
    return utc.compile(model, how, x if isinstance(x, dict) else (x,))


@cache
def captured(make: Callable[[], nn.Module]) -> utc.CapturedModule:
    """One capture for all that is compiled from it, which has weights of its own.

    That it computes what its model computes is seen where PEFT's model, made from the model itself, gives the same.
    """
    return utc.capture(made(make), (IMAGES,) if make in (vit, resnet) else IDS, verify="shapes")


def compiled_again(make: Callable[[], nn.Module], how: Any) -> utc.TunedModule:
    return utc.match(copy.deepcopy(captured(make)), how).apply()


def output(model: nn.Module, x: Any) -> torch.Tensor:
    with torch.no_grad():
        y = model(**x) if isinstance(x, dict) else model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


def trained(model: nn.Module, x: Any) -> Any:
    """A few steps, and some more by chance, so that no B is zero and no magnitude what it was."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        y = model(**x) if isinstance(x, dict) else model(x)
        (y if isinstance(y, torch.Tensor) else y[0]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def into_peft(model: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


class Named(nn.Module):
    """The end of one path is another path; PEFT compares ends."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.block = nn.Linear(4, 4), nn.Module()
        self.block.fc, self.block.xfc, self.block.conv = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block.xfc(self.block.fc(self.fc(x).tanh()).tanh()).tanh()
        return self.head(self.block.conv(y.mT).mT)


def written_to(folder: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    model, x = made(Named), torch.randn(2, 5, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['module:head']").replace(
        "    except: [head]\n", "    where: [h.path != 'head']\n"
    )
    return model, x, utc.save_peft(trained(compiled(model, how, x), x), folder / "made")

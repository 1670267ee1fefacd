"""One training step (forward, loss, backward, AdamW): LoRA r=8 on every linear of ViT-S/16, every conv of ResNet-50 and
the attention of a small Llama, and a side network on ViT-S/16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import utcompile as utc
from benchmarks.measure import Row, paired
from benchmarks.rivals import R, by_hand, by_peft

CASES = (
    ("vit_small_patch16_224", "every linear", "lora/all_linear", nn.Linear, "head"),
    ("resnet50", "every convolution", "lora/all_conv", nn.Conv2d, "fc"),
)


def run(quick: bool) -> Iterator[Row]:
    """LoRA by utcompile and, where it is installed, by PEFT, which then is the reference, between two floors.

    The first floor is the frozen model with a gradient for its input: the backward pass that every tuner inside needs.
    The other trains the head alone and needs no backward pass through the backbone. The notes are the bytes that
    autograd saves for backward, parameters and buffers aside.
    """
    for name, where, rules, layer, head in CASES:
        torch.manual_seed(0)
        batch = 2 if quick else 8
        model = timm.create_model(name, num_classes=10).eval()
        x, labels = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
        models: dict[str, tuple[nn.Module, torch.Tensor]] = {}
        if find_spec("peft"):
            models["peft"] = by_peft(model, layer, head), x
        models["by hand"] = by_hand(model, layer, head), x
        models["utcompile"] = utc.compile(model, rules, (x,), vars={"r": R, "alpha": R}, verify="shapes"), x
        models["frozen model, gradient to the input"] = _probe(model, head), x.clone().requires_grad_()
        models["frozen model, head alone"] = _probe(model, head), x
        rows = paired(
            f"training step, {name}, LoRA r={R} on {where}, batch {batch}",
            {what: _step(m, given, labels) for what, (m, given) in models.items()},
            rounds=2 if quick else 12,
            warmup=2,
        )
        for what, row in rows.items():
            yield replace(row, note=f"{_saved(*models[what], labels) / 1e6:,.0f} MB saved")
    yield from _side_network(quick)
    yield from _language_model(quick)


def _side_network(quick: bool) -> Iterator[Row]:
    """Res-Tuning's dual tuners beside its bypass, which needs no backward pass through the backbone."""
    torch.manual_seed(0)
    batch = 2 if quick else 8
    model = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    x, labels = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
    models = {
        name: utc.compile(model, f"res_tuning/{name}", (x,), vars={"dim": 10}, verify="shapes")
        for name in ("dual", "bypass")
    }
    rows = paired(
        f"training step, vit_small_patch16_224, Res-Tuning, batch {batch}",
        {name: _step(m, x, labels) for name, m in models.items()},
        rounds=2 if quick else 12,
        warmup=2,
    )
    for name, row in rows.items():
        yield replace(row, note=f"{_saved(models[name], x, labels) / 1e6:,.0f} MB saved")


def _language_model(quick: bool) -> Iterator[Row]:
    """A decoder whose masks and repeated keys autograd would keep."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = LlamaConfig(**width, num_hidden_layers=2 if quick else 6, vocab_size=1000, use_cache=False)
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(1000, (8, 128))
    labels = torch.randint(1000, (8,))
    models: dict[str, nn.Module] = {}
    if find_spec("peft"):
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=R, lora_alpha=R, target_modules=["q_proj", "v_proj"])
        models["peft"] = _LastToken(get_peft_model(copy.deepcopy(model), lora))
    rules = {"vars": {"r": R, "alpha": R}, "verify": "shapes"}
    models["utcompile"] = _LastToken(utc.compile(model, "lora/qv", {"input_ids": ids}, **rules))
    rows = paired(
        f"training step, Llama 6x384, LoRA r={R} on q and v, batch 8 of 128 tokens",
        {what: _step(m, ids, labels) for what, m in models.items()},
        rounds=2 if quick else 12,
        warmup=2,
    )
    for what, row in rows.items():
        yield replace(row, note=f"{_saved(models[what], ids, labels) / 1e6:,.0f} MB saved")


class _LastToken(nn.Module):
    """A language model that says what comes next."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids).logits
        return logits[:, -1]


def _probe(model: nn.Module, head: str) -> nn.Module:
    probe = copy.deepcopy(model).requires_grad_(False)
    probe.get_submodule(head).requires_grad_(True)
    return probe


def _step(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def _saved(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of the distinct storages that autograd saves, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        memory = t.untyped_storage()
        if memory.data_ptr() not in own:
            seen[memory.data_ptr()] = memory.nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        kept = F.cross_entropy(model(x), labels)
    del kept
    return sum(seen.values())

"""The models that the checks run: small ones of six kinds, and those whose steps are timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A model and how it is tuned.

    Attributes:
        build: makes the model and its inputs, on the CPU.
        lora: the shipped rules of LoRA on all its layers.
        others: more shipped rules whose steps are timed.
        layer: the class of these layers.
        head: the name of its head.
        package: where it comes from.
    """

    build: Callable[[], tuple[nn.Module, Inputs]]
    lora: str = "lora/all_linear"
    others: tuple[str, ...] = ()
    layer: type[nn.Module] = nn.Linear
    head: str = "head"
    package: str = "timm"

    def make(self) -> tuple[nn.Module, Inputs]:
        """The model in eval, without gradients, and its inputs; always the same ones."""
        torch.manual_seed(0)
        model, inputs = self.build()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.ones_(parameter)  # a residual factor of zero would stop all gradients
        return model.eval().requires_grad_(False), inputs


def _timm(name: str, batch: int, size: int, **settings: Any) -> Callable[[], tuple[nn.Module, Inputs]]:
    def build() -> tuple[nn.Module, Inputs]:
        import timm

        return timm.create_model(name, **settings), {"x": torch.randn(batch, 3, size, size)}

    return build


def _bert(batch: int, length: int, **settings: Any) -> Callable[[], tuple[nn.Module, Inputs]]:
    def build() -> tuple[nn.Module, Inputs]:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(num_labels=5, **settings)
        ids, mask = _ids(batch, length, config.vocab_size), torch.ones(batch, length, dtype=torch.long)
        return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": mask}

    return build


def _llama(batch: int, length: int, **settings: Any) -> Callable[[], tuple[nn.Module, Inputs]]:
    def build() -> tuple[nn.Module, Inputs]:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(use_cache=False, **settings)
        return LlamaForCausalLM(config), {"input_ids": _ids(batch, length, config.vocab_size)}

    return build


def _ids(batch: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(1, vocabulary, (batch, length))


_TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 100}
_SWIN = {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32, "num_classes": 5}
_LLAMA = {"num_hidden_layers": 12, "hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32000}

_VIT_OTHERS = ("ssf/all_layers", "adapter/houlsby")
_CONV = {"lora": "lora/all_conv", "layer": nn.Conv2d, "others": ("ssf/all_layers", "convnet/residual_parallel")}

SMALL = {
    "vit": Subject(
        _timm("vit_tiny_patch16_224", 2, 32, img_size=32, patch_size=8, depth=2, embed_dim=96, num_classes=5),
        others=_VIT_OTHERS,
    ),
    "resnet": Subject(_timm("resnet18", 2, 64, num_classes=5), head="fc", **_CONV),
    "swin": Subject(_timm("swin_tiny_patch4_window7_224", 2, 56, **_SWIN), head="head.fc"),
    "convnext": Subject(
        _timm("convnext_atto", 2, 64, num_classes=5, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64)), head="head.fc"
    ),
    "bert": Subject(_bert(2, 12, num_attention_heads=2, **_TINY), head="classifier", package="transformers"),
    "llama": Subject(
        _llama(2, 12, num_attention_heads=4, num_key_value_heads=2, **_TINY), head="lm_head", package="transformers"
    ),
}
# the small model of the same kind, and how the large one is made
LARGE = {
    "ViT-S/16": ("vit", _timm("vit_small_patch16_224", 64, 224, num_classes=100)),
    "ResNet-50": ("resnet", _timm("resnet50", 64, 224, num_classes=100)),
    "Llama, 12 x 1024": ("llama", _llama(8, 512, num_attention_heads=16, num_key_value_heads=4, **_LLAMA)),
}


def large(quick: bool) -> dict[str, Subject]:
    """The models whose steps are timed; where it must be quick, the small one of the same kind in each place."""
    if quick:
        return {f"{name} (tiny)": SMALL[small] for name, (small, _) in LARGE.items()}
    return {name: replace(SMALL[small], build=build) for name, (small, build) in LARGE.items()}


@cache
def _captured(name: str) -> Any:
    import utcompile as utc

    model, inputs = SMALL[name].make()
    return utc.capture(model, inputs, verify="shapes")


def tuned(name: str, rules: str = "") -> tuple[Any, Inputs]:
    """A small model with tuners off their start, in training, on the CPU, and its inputs.

    Raises:
        utcompile.UtcError: the rules find no place in this model.
    """
    import utcompile as utc
    from benchmarks.gpu.steps import shaken

    _, inputs = SMALL[name].make()
    made = utc.match(_captured(name), rules or SMALL[name].lora).apply()
    return shaken(copy.deepcopy(made).train()), inputs  # a copy: `.to(device)` would move the capture's weights too

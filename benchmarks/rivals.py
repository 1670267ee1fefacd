"""LoRA as others put it into a model: PEFT, and by hand in the model's source. The head trains too."""

from __future__ import annotations

import copy

import torch
from torch import nn

R = 8


class ByHand(nn.Module):
    """LoRA as one writes it into a model's source."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.a: nn.Module = nn.Linear(layer.in_features, R, bias=False)
            self.b: nn.Module = nn.Linear(R, layer.out_features, bias=False)
        else:
            groups = layer.groups
            self.a = nn.Conv2d(
                layer.in_channels, R, layer.kernel_size, layer.stride, layer.padding, layer.dilation, groups, bias=False
            )
            self.b = nn.Conv2d(R, layer.out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer, and the branch next to it."""
        return self.layer(x) + self.b(self.a(x))


def by_hand(model: nn.Module, layer: type[nn.Module], head: str) -> nn.Module:
    """A copy with LoRA by hand on every layer of a class."""
    tuned = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(tuned.named_modules()):
        if isinstance(module, layer) and name != head:
            parent, _, child = name.rpartition(".")
            setattr(tuned.get_submodule(parent), child, ByHand(module))  # type: ignore[arg-type]
    tuned.get_submodule(head).requires_grad_(True)
    return tuned


def by_peft(model: nn.Module, layer: type[nn.Module], head: str) -> nn.Module:
    """A copy with PEFT's LoRA on every layer of a class."""
    from peft import LoraConfig, get_peft_model

    names = [n for n, m in model.named_modules() if isinstance(m, layer) and n != head]
    config = LoraConfig(r=R, lora_alpha=R, target_modules=names, modules_to_save=[head])
    return get_peft_model(copy.deepcopy(model), config)

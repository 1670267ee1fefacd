"""Small real models of six kinds, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import utcompile as utc
from support.train import shake as shake

CLASSES = 7


def _timm(name: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **kwargs)


def _mixer() -> nn.Module:
    return MlpMixer(num_classes=CLASSES, img_size=64, patch_size=16, num_blocks=2, embed_dim=48)


_SWIN = {"img_size": 56, "embed_dim": 24, "depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (partial(_timm, "test_resnet"), 32),
    "convnext": (partial(_timm, "test_convnext"), 32),
    "efficientnet": (partial(_timm, "efficientnet_lite0"), 64),
    "mixer": (_mixer, 64),
    "vit": (partial(_timm, "test_vit", img_size=64), 64),
    "swin": (partial(_timm, "swin_tiny_patch4_window7_224", **_SWIN), 56),
}


def make(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A model of a kind in eval, with weights that make every output matter, and an image batch for it."""
    build, size = MODELS[kind]
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # zero-initialised heads and LayerScales of 1e-6 would hide every difference
        if parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return model, torch.randn(2, 3, size, size)


@lru_cache(maxsize=len(MODELS))
def captured(kind: str) -> utc.CapturedModule:
    """The capture of a kind's model, one for all tests: they read it, and change nothing, which the session checks.

    That such a capture computes what its model computes is tests/recording/test_capture.py's.
    """
    model, x = make(kind)
    found = utc.capture(model, x, verify="shapes")
    _AS_MADE[kind] = _fingerprint(found)
    return found


_AS_MADE: dict[str, tuple[object, ...]] = {}


def _fingerprint(module: utc.CapturedModule) -> tuple[object, ...]:
    state = [(n, t.dtype, t.requires_grad, t._version) for n, t in module.state_dict(keep_vars=True).items()]
    grads = [n for n, p in module.named_parameters() if p.grad is not None]
    return str(module.graph), [m.training for m in module.modules()], state, grads


def changed() -> list[str]:
    """The kinds whose shared capture is not as it was made."""
    return [kind for kind, found in _AS_MADE.items() if _fingerprint(captured(kind)) != found]


def compiled(kind: str, rules: str | utc.RuleSet, **options: Any) -> tuple[nn.Module, utc.TunedModule, torch.Tensor]:
    """A kind's model, what `utc.compile` makes of it (with weights of its own), and an image batch.

    Where a test is about more than tuning and what comes after, it calls `utc.compile` itself.
    """
    model, x = make(kind)
    return model, utc.match(copy.deepcopy(captured(kind)), rules, **options).apply(), x


def flops_of(call: Callable[[], object]) -> int:
    """What torch counts for a call without gradients.

    Attention is spelled out for the count: which of the fused kernels the counter sees depends on the version of torch
    and on the machine, while the two products that define attention are seen by all.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


class Layers(nn.Module):
    """Layers by name, and a forward that is given as a function of the module and its input."""

    def __init__(self, forward: Callable[..., torch.Tensor], layers: Mapping[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def draw_norms(model: nn.Module) -> None:
    """Statistics and affine parts of every BatchNorm as training might leave them, not those of a new one."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.running_mean)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)

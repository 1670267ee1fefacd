"""What a compiled module keeps for backward: with its memory plan, and as torch's partitioner decides by itself.

The backend has the partitioner and the decompositions of inductor, and runs torch's own kernels. Bytes are exact, and
the same in every run. Nothing is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import utcompile as utc
from benchmarks.measure import Row
from benchmarks.rivals import R

_BACKEND = "aot_eager_decomp_partition"


class _Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A pre-norm ffn in a residual branch."""
        result: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return result


def run(quick: bool) -> Iterator[Row]:
    """Each model: eager and compiled, without a plan, planned, and in a budget."""
    torch.manual_seed(0)
    ffns = nn.Sequential(*(_Ffn() for _ in range(3))).eval()
    yield from _compare("three pre-norm ffns, r=2", ffns, "lora/all_linear", torch.randn(8, 16, 32), 2, 0.65)
    if quick:
        return
    image = torch.randn(2, 3, 224, 224)
    vit, resnet = (timm.create_model(n, num_classes=10).eval() for n in ("vit_small_patch16_224", "resnet18"))
    yield from _compare(f"ViT-S/16, LoRA r={R} on every linear, batch 2", vit, "lora/all_linear", image, R, 0.5)
    yield from _compare(f"ResNet-18, LoRA r={R} on every convolution, batch 2", resnet, "lora/all_conv", image, R, 0.85)


def _compare(what: str, model: nn.Module, rules: str, x: torch.Tensor, rank: int, budget: float) -> Iterator[Row]:
    tuned = utc.compile(model, rules, (x,), vars={"r": rank}, verify="shapes")
    plain, within = copy.deepcopy(tuned), copy.deepcopy(tuned)
    plain.memory = None
    within.plan_memory(budget, (x,))
    first = _kept(plain, partial(plain, x))
    for name, module in (("as torch keeps things", plain), ("planned", tuned), (f"memory={budget}", within)):
        eager = _kept(module, partial(module, x))
        torch.compiler.reset()
        compiled = _kept(module, partial(torch.compile(module, backend=_BACKEND, fullgraph=True), x))
        note = f"kept {eager:,} bytes ({eager / first:.3f}), compiled {compiled:,} ({compiled / first:.3f})"
        yield Row(what, name, 0.0, 0.0, 0.0, 1, compiled / first, note)


def _kept(module: nn.Module, call: Callable[[], torch.Tensor]) -> int:
    """Bytes of what backward reads, the module's own tensors aside."""
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage()._cdata not in own:
            seen[t.untyped_storage()._cdata] = t
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        loss = call().sum()
    found = sum(t.untyped_storage().nbytes() for t in seen.values())
    del loss
    return found

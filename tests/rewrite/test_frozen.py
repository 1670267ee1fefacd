"""Frozen is frozen: a hundred steps in train mode change no bit of the base, however the steps are run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc

STEPS = 100
# weight, parallel, sequential, tokens and chain; a ConvNet has no attention
RULES = {
    "convnet": ("lora/all_conv", "convnet/residual_parallel", "ssf/all_layers", "bitfit/norms", "side/lst"),
    "transformer": ("lora/all_linear", "adapter/adaptformer", "adapter/houlsby", "prefix/prefix", "prompt/vpt_deep", "side/lst"),
}  # fmt: skip
WAYS = ("plain", "autocast", "compiled")
ALWAYS = {
    ("convnet", "lora/all_conv", "plain"), ("convnet", "convnet/residual_parallel", "autocast"),
    ("convnet", "ssf/all_layers", "compiled"), ("convnet", "side/lst", "plain"),
    ("transformer", "lora/all_linear", "autocast"), ("transformer", "adapter/houlsby", "plain"),
    ("transformer", "prefix/prefix", "compiled"), ("transformer", "side/lst", "plain"),
}  # fmt: skip
CASES = [
    pytest.param(*case, id="-".join(case), marks=() if case in ALWAYS else pytest.mark.full)
    for case in ((model, rules, way) for model, each in RULES.items() for rules in each for way in WAYS)
]


class ConvNet(nn.Module):
    """Two residual blocks with BatchNorm, writes in place, and dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                          nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
            for _ in range(2)
        )  # fmt: skip
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu_(x + block(x))
        return self.head(self.drop(x.mean((2, 3))))


def convnet() -> nn.Module:
    return ConvNet()


def transformer() -> nn.Module:
    rates = {"drop_rate": 0.3, "attn_drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.3}
    return timm.create_model("test_vit", num_classes=3, img_size=32, depth=2, **rates)


MODELS: dict[str, Callable[[], nn.Module]] = {"convnet": convnet, "transformer": transformer}


def digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter and buffer that no training may change, statistics among them."""
    return {
        name: hashlib.sha256(t.detach().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
        for name, t in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        if not name.startswith("tuners.") and name not in getattr(module, "trained", ())
    }


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("kind", "rules", "way"), CASES)
def test_a_hundred_steps_change_no_bit_of_the_base(kind: str, rules: str, way: str) -> None:
    model, x, labels = MODELS[kind]().train(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for _ in range(2):  # statistics off their defaults
        model(x)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    modes = {n: m.training for n, m in model.named_modules()}
    tuned = utc.compile(model, rules, x).train()
    ours, theirs = digests(tuned), digests(model)
    assert theirs.items() - ours.items() <= {(n, theirs[n]) for n in tuned.trained}
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05, momentum=0.9)
    run: Any = torch.compile(tuned, backend="aot_eager") if way == "compiled" else tuned
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else nullcontext():
            loss = F.cross_entropy(run(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert [n for n, p in trained.items() if torch.equal(p, start[n])] == []  # these did change
    assert digests(tuned) == ours and digests(model) == theirs
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(
        p.grad is None for p in [*model.parameters(), *(p for n, p in tuned.named_parameters() if n not in trained)]
    )
    model.eval()
    with torch.no_grad(), utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), model(x))

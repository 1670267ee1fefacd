"""BitFit as plain PyTorch does it, and as the rules do it: the same steps give the same model."""

from __future__ import annotations

import copy

import torch
from support.models import captured
from torch import nn

import utcompile as utc


def steps(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Three steps of Adam; returns the losses."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_rules_of_bitfit_train_what_plain_pytorch_trains():
    plain, x, y = copy.deepcopy(captured("vit")).eval(), torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    tuned = utc.match(copy.deepcopy(captured("vit")), "bitfit/biases").apply().eval()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("head."))
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (plain, tuned)]
    assert trained[0] == trained[1]
    # float32 on both sides, and Adam divides by the size of a gradient: the order of additions is all that differs
    torch.testing.assert_close(steps(tuned, x, y), steps(plain, x, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuned(x), plain(x), rtol=1e-3, atol=1e-4)

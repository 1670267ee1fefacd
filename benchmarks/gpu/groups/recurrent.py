"""Tuners before frozen layers that a GPU treats otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import utcompile as utc
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.rules_of_cuda import cudnn_recurrent
from benchmarks.gpu.steps import gradients

_FIRST_LINEAR = """version: 1
name: first-linear
rules:
  - name: fc
    match: h = linear(x)
    select: {first: 1}
    insert: {weight: h, tuner: {kind: lora, r: 2}}
"""


class Reader(nn.Module):
    """A linear, a recurrent layer and a head."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.fc, self.layer, self.head = nn.Linear(8, 8), layer(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, L, 8) -> (B, 3)`."""
        result: torch.Tensor = self.head(self.layer(self.fc(x))[0][:, -1])
        return result


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Each recurrent layer that cuDNN computes."""
    for layer in (nn.LSTM,) if quick else (nn.LSTM, nn.GRU, nn.RNN):
        yield Check("frozen layers", f"backward through nn.{layer.__name__}", partial(_backward, layer, device))


def _backward(layer: type[nn.Module], device: str, found: Findings) -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 5, 8, device=device)}
    model = utc.compile(Reader(layer).to(device), _FIRST_LINEAR, inputs, verify="shapes").train()
    with cudnn_recurrent(device):
        largest = max(g.abs().max().item() for g in gradients(model, inputs).values())
    found.must(largest > 0, "no gradient")

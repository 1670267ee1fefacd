"""What stands in for a GPU on a CPU: TF32, cuDNN's recurrent layers, waits; and the bytes that a forward keeps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.memory import kept
from benchmarks.gpu.rules_of_cuda import cudnn_recurrent, tf32_convolutions, waits
from benchmarks.gpu.steps import tf32


def test_tf32_has_ten_bits_of_mantissa() -> None:
    kept_, lost = torch.tensor([[[1 + 2.0**-10]]]), torch.tensor([[[1 + 2.0**-12]]])
    one = torch.ones(1, 1, 1)
    with tf32(True), tf32_convolutions("cpu"):
        assert torch.conv1d(kept_, one) == 1 + 2.0**-10
        assert torch.conv1d(lost, one) == 1
        assert torch.conv1d(one, lost) == 1
        assert torch.conv1d(lost.double(), one.double()) == 1 + 2.0**-12
    with tf32(False), tf32_convolutions("cpu"):
        assert torch.conv1d(lost, one) == 1 + 2.0**-12
    assert torch.conv1d(lost, one) == 1 + 2.0**-12


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_cudnn_refuses_gradients_of_recurrent_layers_in_eval(layer: type[nn.Module]) -> None:
    rnn = layer(3, 4, batch_first=True).requires_grad_(False)
    x = torch.randn(2, 5, 3, requires_grad=True)
    with cudnn_recurrent("cpu"):
        rnn.train()(x)
        with pytest.raises(RuntimeError, match="RNN backward can only be called in training mode"):
            rnn.eval()(x)
        rnn.eval()(x.detach())
        with torch.no_grad():
            rnn.eval()(x)


def test_what_python_reads_waits_for_the_gpu() -> None:
    x = torch.tensor([1.0, 0.0, 2.0])
    assert waits("cpu", lambda: x.sum() * 2) == 0
    assert waits("cpu", lambda: float(x.sum())) == 1
    assert waits("cpu", lambda: (x.tolist(), x[0].tolist(), x.sum().item())) == 3
    assert waits("cpu", lambda: (x.nonzero(), torch.equal(x, x.clone()))) == 2


def test_kept_is_what_backward_needs() -> None:
    x = torch.randn(4, 8, requires_grad=True)

    def forward() -> torch.Tensor:
        return x.sin().exp().sum()  # sin keeps x, exp keeps its result, the sum keeps nothing

    assert kept(forward, "cpu") == 4 * 8 * 4
    assert kept(lambda: checkpoint(lambda: x.sin().exp(), use_reentrant=False).sum(), "cpu") == 0

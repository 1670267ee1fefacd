"""Under `base="follow"` norms gather statistics: the tuned model's own, saved with its tuners and folded into it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc


class Functional(nn.Module):
    """The call of a function, with the layer's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training)


class Average(nn.Module):
    """A moving average that torch operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2)).unsqueeze(1))
        return x - self.mean


NORMS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: nn.BatchNorm1d(8),
    "instance": lambda: nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    "function": Functional,
    "average": Average,
}


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc, self.head = nn.Conv1d(4, 8, 3), norm, nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fc(torch.relu(self.norm(self.conv(x))).mean(2))))


def compiled(model: nn.Module) -> utc.TunedModule:
    return utc.compile(model, "lora/all_linear", (torch.randn(6, 4, 7),), base="follow", verify="shapes")


def trained(tuned: utc.TunedModule) -> utc.TunedModule:
    tuned.train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        tuned(3 * torch.randn(6, 4, 7) + 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval()


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_that_training_moved_are_saved_and_folded(kind: str, tmp_path: Path) -> None:
    model = Net(NORMS[kind]())
    before = copy.deepcopy(model.state_dict())
    tuned = trained(compiled(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    moved = [name for name, value in tuned.named_buffers() if name in before and not torch.equal(value, before[name])]
    assert moved
    utc.save_tuners(tuned, tmp_path)
    fresh = Net(NORMS[kind]())
    fresh.load_state_dict(before)
    again = utc.load_tuners(compiled(fresh), tmp_path).eval()
    # the average is written in eval too: a copy each is called once
    x = torch.randn(5, 4, 7)
    expected = copy.deepcopy(tuned)(x)
    assert torch.equal(again(x), expected)
    folded, report = utc.fold(tuned)
    assert torch.allclose(folded.eval()(x), expected, atol=1e-6)
    if report.is_original:
        fresh.load_state_dict(utc.fold(tuned)[0].state_dict())
        assert torch.allclose(fresh.eval()(x), expected, atol=1e-6)


def test_what_takes_no_statistics_says_so(tmp_path: Path) -> None:
    tuned = compiled(Net(nn.BatchNorm1d(8)))
    with pytest.raises(utc.UtcError, match=r"norm\.running_mean.*training moves it, and PEFT saves no statistics"):
        utc.save_peft(tuned, tmp_path)


def test_a_frozen_base_has_none(tmp_path: Path) -> None:
    model = Net(nn.BatchNorm1d(8))
    tuned = utc.compile(model, "lora/all_linear", (torch.randn(6, 4, 7),), verify="shapes")
    before = copy.deepcopy(model.state_dict())
    utc.save_tuners(trained(tuned), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "statistics:" not in (tmp_path / "manifest.json").read_text()


def test_tasks_have_statistics_of_their_own(tmp_path: Path) -> None:
    model, x = Net(nn.BatchNorm1d(8)), torch.randn(5, 4, 7)
    first = trained(compiled(model))
    utc.save_tuners(first, tmp_path)
    tuned = trained(compiled(model))
    expected = tuned(x)
    tuned.add_task("first", tmp_path)
    tuned.set_task("first")
    assert torch.equal(tuned(x), first(x))
    tuned.set_task("default")
    assert torch.equal(tuned(x), expected)

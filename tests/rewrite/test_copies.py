"""Copies of tuned modules share the frozen memory, and no write into one of them is seen in the other."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from support import models as zoo
from support.transformer_toys import Transformer
from timm.utils import ModelEmaV3

import utcompile as utc

_address = getattr(torch._C, "_data_address", None)


@pytest.fixture
def tuned() -> utc.TunedModule:
    torch.manual_seed(0)
    made = utc.compile(Transformer().eval(), "lora/all_linear", torch.randn(2, 5, 6), verify="shapes")
    zoo.shake(made, 0.3)
    return made.eval()


def shared(a: torch.nn.Module, b: torch.nn.Module) -> list[bool]:
    """For each frozen parameter, whether both have it in one place."""
    if _address is None:
        pytest.skip("this torch does not show where shared memory lies")
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return [_address(p) == _address(q) for p, q in pairs if not p.requires_grad]


def test_a_copy_shares_what_is_frozen_until_it_is_written(tuned: utc.TunedModule, tmp_path: Path) -> None:
    x, before = torch.randn(3, 5, 6), {n: p.detach().clone() for n, p in tuned.named_parameters()}
    other = copy.deepcopy(tuned)
    utc.save_tuners(other, tmp_path)
    other(x).square().sum().backward()
    assert torch.equal(other(x), tuned(x)) and all(shared(tuned, other))
    trained = [p for p in other.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=0.1).step()
    assert all(shared(tuned, other))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert all(torch.equal(p, before[n]) for n, p in tuned.named_parameters())
    assert not any(shared(tuned, other))
    again = copy.deepcopy(tuned)
    tuned.load_state_dict({n: t + 1 for n, t in tuned.state_dict().items()})
    assert all(torch.equal(p, before[n]) for n, p in again.named_parameters())


@pytest.mark.full
def test_averages_of_other_libraries_start_with_the_same_memory(tuned: utc.TunedModule) -> None:
    x = torch.randn(3, 5, 6)
    for average in (torch.optim.swa_utils.AveragedModel(tuned), ModelEmaV3(tuned, decay=0.9)):
        assert all(shared(tuned, average.module))
        out = tuned(x)
        update = getattr(average, "update_parameters", None) or average.update
        update(tuned)
        assert torch.equal(tuned(x), out)
        utc.fold(average)


class Around(torch.nn.Module):
    """A part, and a frozen and a trained layer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = torch.nn.Linear(6, 6), Transformer(), torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.body(self.first(x)))
        return y


def test_copies_of_a_model_with_tuned_parts_share_all_that_is_frozen(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 6)
    tuned = utc.compile(Around().eval(), "lora/all_linear", x, within="body", train=["module:last"], verify="shapes")
    out = tuned(x)
    again = pickle.loads(pickle.dumps(tuned))
    utc.save_tuners(again, tmp_path)  # any verb
    for one in (tuned, again, copy.deepcopy(tuned)):
        average = torch.optim.swa_utils.AveragedModel(one)
        for other in (copy.deepcopy(one), average.module, ModelEmaV3(one, decay=0.9).module):
            found = shared(one, other)
            assert all(found) and len(found) > 10
            with torch.no_grad():
                other.first.weight.mul_(2)
                other.last.weight.mul_(2)
            assert torch.equal(one(x), out) and not torch.equal(other(x), out)
            other.load_state_dict(one.state_dict())
            utc.fold(other)

"""Models whose forward takes `*args`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import utcompile as utc

T = torch.Tensor
X = torch.randn(2, 4)


class Sums(nn.Module):
    """As many inputs as are given, and a factor by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: T, *more: T, scale: float = 1.0, **named: Any) -> T:
        return sum((self.layer(m) for m in more), self.layer(x)) * scale * named.get("gain", 1)


def test_inputs_of_a_variadic_forward_have_numbered_names() -> None:
    model = Sums().eval()
    captured = utc.capture(model, (X, X + 1, X + 2))
    assert [n.name for n in captured.graph.nodes if n.op == "placeholder"] == ["x", "more_0", "more_1"]
    assert captured.batch_inputs == ("x", "more_0", "more_1")
    given = [torch.randn(5, 4) for _ in range(3)]
    assert torch.equal(captured(*given), model(*given))
    for other in (given[:2], [*given, given[0]]):
        with pytest.raises(utc.UtcError, match="does not fit the captured model's inputs"):
            captured(*other)


def test_a_dict_gives_them_as_a_tuple() -> None:
    model = Sums().eval()
    captured = utc.capture(model, {"x": X, "more": (X + 1,), "gain": torch.tensor(2.0)})
    given = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(captured(*given, gain=torch.tensor(3.0)), model(*given, gain=torch.tensor(3.0)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel], ids=lambda w: w.__name__)
def test_wrappers_of_torch_take_anything(wrap: Any) -> None:
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))).eval()
    captured, x = utc.capture(model, X), torch.randn(7, 4)
    assert torch.equal(captured(x), model(x))

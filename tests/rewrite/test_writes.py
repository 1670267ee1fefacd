"""A value that is written into memory reaches those who read the memory later."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import utcompile as utc

T = torch.Tensor
X, MASK = torch.randn(2, 6, 5), torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 1]]).bool()
RULES = "version: 1\nname: r\nrules:\n  - {name: n, match: 'h = linear(x)', insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"


class Writes(nn.Module):
    """The result of a layer is written into a tensor, in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.head, self.how = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), how

    def forward(self, x: T, mask: T) -> T:
        y = self.a(x)
        o = torch.zeros_like(y)
        if self.how == "mask":
            o[mask] = self.b(y[mask])
        elif self.how == "slice":
            o[:, 1:3] = self.b(y[:, 1:3])
        elif self.how == "copy_":
            o[:, 1:3].copy_(self.b(y[:, 1:3]))
        elif self.how == "select":
            o[:, 0] = self.b(y[:, 0])
        elif self.how == "index":
            o[:, torch.tensor([0, 2])] = self.b(y[:, :2])
        elif self.how == "loop":
            for i in range(3):
                o[:, i] = self.b(o[:, i] + y[:, i])
        elif self.how == "view":
            o.view(o.shape[0], -1)[:, :8] = self.b(y[:, 0])
        elif self.how == "index_put_":
            o.index_put_((mask,), self.b(y[mask]))
        elif self.how == "unread":
            o[:, 0] = self.b(y[:, 0])
            o = y
        elif self.how == "read before":
            before = o.sum()
            o[:, 0] = self.b(y[:, 0])
            o = y + before
        elif self.how == "no_grad":
            with torch.no_grad():
                o[:, 0] = self.b(y[:, 0])
        found: T = self.head(o.relu().sum(1) + y.mean())
        return found


@pytest.mark.parametrize("how", ["mask", "slice", "copy_", "select", "index", "loop", "view", "index_put_"])
def test_a_write_reaches_its_readers(how: str) -> None:
    model = Writes(how).eval().requires_grad_(False)
    tuned = utc.compile(model, RULES, (X, MASK)).eval()
    # gradients choose another kernel for 3-d inputs, which rounds elsewhere
    assert torch.allclose(tuned(X, MASK), model(X, MASK), atol=1e-6)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned(X, MASK).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.parameters() if p.requires_grad)
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"absorbed"}
    assert torch.allclose(folded(X, MASK), tuned(X, MASK), atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("how", ["unread", "read before"])
def test_a_write_that_nothing_reads_afterwards_is_refused(how: str) -> None:
    with pytest.raises(utc.UtcError, match="site n/b/0 reaches no output of the model") as caught:
        utc.compile(Writes(how).eval(), RULES, (X, MASK))
    assert "its way ends at setitem" in str(caught.value)


def test_a_write_without_a_gradient_is_refused() -> None:
    with pytest.raises(utc.UtcError, match="no gradient reaches site n/b/0"):
        utc.compile(Writes("no_grad").eval(), RULES, (X, MASK))

"""Packed sequences: what stands around a recurrent layer behind `pack_padded_sequence` is tuned and folds."""

from __future__ import annotations

import pytest
import torch
from support import models as zoo
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import utcompile as utc

RULES = """version: 1
name: t
rules:
  - {name: w, match: {op: %s}, insert: {weight: %s, tuner: {kind: %s}}}
"""


class Tagger(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.e, self.r, self.h = nn.Embedding(20, 6), cell(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.e(ids), lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.r(packed)
        return self.h(pad_packed_sequence(y, batch_first=True, total_length=ids.shape[1])[0])


EXAMPLE = (torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([6, 3, 2]))


@pytest.fixture(scope="module", params=[nn.LSTM, nn.GRU])
def captured(request: pytest.FixtureRequest) -> utc.CapturedModule:
    return utc.capture(Tagger(request.param).eval(), EXAMPLE)


@pytest.mark.parametrize("op", ["linear", "embedding"])
def test_a_tagger_is_tuned_and_folds(captured: utc.CapturedModule, op: str) -> None:
    rules = RULES % (op, "h", "lora, r: 2")
    tuned = utc.match(captured, rules).apply()
    zoo.shake(tuned, 0.3)
    tuned(*EXAMPLE).square().mean().backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["absorbed"] and report.is_original
    unseen = torch.randint(0, 20, (4, 7)), torch.tensor([2, 7, 1, 7])
    with torch.no_grad():
        assert (folded(*unseen) - tuned(*unseen)).abs().max() < 1e-5
        again = Tagger(type(captured.get_submodule("r"))).eval()
        again.load_state_dict(folded.state_dict())
        assert (again(*unseen) - tuned(*unseen)).abs().max() < 1e-5

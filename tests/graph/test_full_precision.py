"""float32 that is float32 while something is compared, whatever else the process did with the switches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import utcompile as utc
from utcompile.graph import full_precision


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `torch.backends.disable_global_flags()`, which importing torch's own test helpers calls."""
    own = torch.backends.disable_global_flags.__globals__
    monkeypatch.setitem(own, "__allow_nonbracketed_mutation_flag", False)


@pytest.mark.usefixtures("locked")
def test_locked_switches_are_set_and_put_back() -> None:
    assert torch.backends.flags_frozen()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with full_precision():
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.backends.flags_frozen()


@pytest.mark.usefixtures("locked")
def test_a_model_is_compiled_and_folded_while_the_switches_are_locked() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    folded, report = utc.fold(utc.compile(model, "lora/all_linear", (x,)))
    assert not report.kept and torch.allclose(folded(x), model(x), atol=1e-6)

"""PEFT's own list of methods and layers, on models of ours: saved by PEFT, then loaded, run and folded here.

Everything runs in float64. Equal is to 1e-12 of the largest output: the two programs differ by the order of their sums
alone, and folding adds one product a weight. What is not read is refused by name.
"""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

import utcompile as utc

from .peft_models import CASES, Case

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's, on its own configurations
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:The following .*_pattern keys:RuntimeWarning"
    ),  # keys of parameters, which count
]
EXACT = 1e-12
IN_EACH_RUN = {
    "lora mlp 10", "lora attends 3", "lora conv2d grouped 1", "lora bare 4", "lora tied 0", "ia3 conv2d grouped 2",
    "norms mlp 2", "refused attends 11",
}  # fmt: skip


def shaken(model: nn.Module) -> nn.Module:
    """Every part that trains, away from where it began."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check(case: Case, folder: Path) -> None:
    """Equal at every step, or refused with the words that the case has."""
    dtype = torch.float32 if case.refused else torch.float64  # some of PEFT's methods refuse float64
    model, x = case.make().to(dtype).eval().requires_grad_(False), case.draw()
    x = x.to(dtype) if x.is_floating_point() else x
    theirs = shaken(peft.get_peft_model(copy.deepcopy(model), case.peft_config()))
    theirs.save_pretrained(str(folder))
    if case.refused:
        with pytest.raises(utc.UtcError) as refused:
            utc.load_peft(utc.compile(copy.deepcopy(model), utc.peft_rules(folder), (x,)), folder)
        assert case.refused in str(refused.value)
        return
    tuned = utc.load_peft(utc.compile(copy.deepcopy(model), utc.peft_rules(folder), (x,)), folder).eval()
    folded, _ = utc.fold(tuned)
    for given in (x, case.draw()):
        with torch.no_grad():
            expected, base = theirs(given), model(given)
            assert error(tuned(given), expected) < EXACT < 1e-4 < error(base, expected)
            assert error(folded(given), expected) < EXACT


@pytest.mark.parametrize("name", [n if n in IN_EACH_RUN else pytest.param(n, marks=pytest.mark.full) for n in CASES])
def test_a_configuration_of_peft(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_what_runs_each_time_is_there() -> None:
    assert CASES.keys() >= IN_EACH_RUN

"""compile → train → save → load in another process → fold → the original architecture → ONNX, on models of many kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from support.whole_way_models import CASES, build, example, outputs

import utcompile as utc

T = torch.Tensor
_ROUNDING = 2e-5  # of the largest value: float32 sums in another order, through up to a hundred layers
_LOADS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, utcompile as utc
from support.whole_way_models import CASES, build, example, outputs
case = CASES[sys.argv[2]]
tuned = utc.compile(build(case, head_seed=5), case.rules, example(case), dynamic=case.dynamic).eval()
utc.load_tuners(tuned, sys.argv[3])
torch.save(outputs(tuned, example(case)), sys.argv[3] + "/found.pt")
"""


def error(expected: list[T], found: list[T]) -> float:
    """The largest difference, of the largest value of its output."""
    assert [t.shape for t in expected] == [t.shape for t in found]
    pairs = zip(expected, found, strict=True)
    return max(((a - b).abs().max() / a.abs().max().clamp_min(1e-6)).item() for a, b in pairs)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if c.full else ()) for n, c in CASES.items()])
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, x, beyond = build(case), example(case), example(case, beyond=True)
    tuned = utc.compile(model, case.rules, x, dynamic=case.dynamic).eval()
    assert error(outputs(model, x), outputs(tuned, x)) == 0
    if case.beyond:
        with pytest.raises(utc.UtcError, match=case.beyond):
            tuned(**beyond)
    else:
        assert error(outputs(model, beyond), outputs(tuned, beyond)) == 0

    frozen = {n: p.clone() for n, p in tuned.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        loss = sum(t.square().mean() for t in pytree.tree_leaves(_trained(tuned, x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(tuned.get_parameter(n), p) for n, p in frozen.items())
    tuned.eval()
    expected = outputs(tuned, x)
    assert error(outputs(model, x), expected) > 0

    utc.save_tuners(tuned, tmp_path)
    here = [sys.executable, "-W", "ignore", "-c", _LOADS, str(Path(__file__).parent), name, str(tmp_path)]
    subprocess.run(here, check=True, timeout=300)
    assert error(expected, torch.load(tmp_path / "found.pt")) == 0

    folded, report = utc.fold(tuned)
    assert bool(report.kept) is case.kept
    assert error(expected, outputs(folded, x)) <= _ROUNDING
    if report.is_original:
        original = build(case)
        original.load_state_dict(folded.state_dict(), strict=True)
        assert error(expected, outputs(original, x)) <= _ROUNDING

    if case.export:
        with pytest.raises(utc.UtcError, match=case.export):
            utc.export_onnx(folded, tmp_path / "model.onnx", x)
    else:
        result = utc.export_onnx(folded, tmp_path / "model.onnx", x)
        assert result.max_error <= 1e-4 and len(result.batch_sizes) > 1
    assert (tmp_path / "model.onnx").exists() is not bool(case.export)


def _trained(tuned: utc.TunedModule, x: dict[str, object]) -> list[T]:
    found = tuned.train()(**x)
    found = found.to_tuple() if hasattr(found, "to_tuple") else found
    return [t for t in pytree.tree_leaves(found) if isinstance(t, T) and t.requires_grad]

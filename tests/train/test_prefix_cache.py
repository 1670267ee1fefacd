"""What lies below the first tuner is computed once per sample, and a run is what it is without that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import utcompile as utc
from utcompile.memory.units import units_of
from utcompile.train import Data, TrainResult, fit, prefix_rows
from utcompile.train.run_folder import RunFolder


class Counted(Dataset[tuple[Tensor, int]]):
    """Images, and how often each was read."""

    def __init__(self, count: int, seed: int) -> None:
        self.x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.reads = [0] * count

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        return self.x[index], index % 2


class Mixing(nn.Module):
    """Each row depends on all samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def tuned_model(middle: nn.Module | None = None) -> utc.TunedModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten()]
    model = nn.Sequential(*layers, middle or nn.Identity(), nn.Linear(512, 16), nn.GELU(), nn.Linear(16, 2)).eval()
    tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 3, 8, 8),), vars={"r": 2}, verify="shapes")
    with torch.no_grad():
        tuned.tuner(tuned.sites[0].id).lora_B.normal_(0, 0.1)
    return tuned


def run(tuned: utc.TunedModule, out: Path, **changes: Any) -> tuple[TrainResult, Counted]:
    images = Counted(20, 0)
    data = Data(images, Counted(6, 1), 2, ("even", "odd"))
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "progress": False, "cpu": True}
    hooks: dict[str, Callable[[Path], Any]] = {
        "save": partial(utc.save_tuners, tuned),
        "load": partial(utc.load_tuners, tuned),
    }
    return fit(tuned, data, out=out, **hooks, **{**options, "prefix_cache": "1GB", **changes}), images


def losses(result: TrainResult) -> list[float]:
    return [entry[name] for entry in result.history for name in ("train_loss", "validation_loss")]


def is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def trained(tuned: utc.TunedModule) -> list[Tensor]:
    return [p.detach() for p in tuned.parameters() if is_trained(p)]


@pytest.mark.parametrize(("in_file", "channels_last"), [(False, False), (True, True)])
def test_a_run_is_the_same_and_reads_each_sample_once(
    in_file: bool, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_file:
        monkeypatch.setattr(prefix_rows, "_IN_MEMORY", 0)
    plain, kept = tuned_model(), tuned_model()
    expected, reads = run(plain, tmp_path / "plain", prefix_cache=None, channels_last=channels_last)
    assert set(reads.reads) == {3}
    found, reads = run(kept, tmp_path / "kept", channels_last=channels_last)
    assert reads.reads == [2] * 2 + [1] * 18  # two are looked at first
    # a batch of other samples sums in another order, which three epochs carry on
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    for a, b in zip(trained(kept), trained(plain), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "plain"]


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned_model()
    expected, _ = run(whole, tmp_path / "whole", precision="bf16")
    keep = RunFolder.keep_last

    def stop(self: RunFolder, state: Any, history: Any) -> None:
        keep(self, state, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "keep_last", stop)
        run(tuned_model(), tmp_path / "killed", precision="bf16")
    with pytest.raises(utc.UtcError, match="now they cannot be kept"):
        run(tuned_model(), tmp_path / "killed", precision="bf16", resume=True, prefix_cache=None)
    again = tuned_model()
    found, _ = run(again, tmp_path / "killed", precision="bf16", resume=True)
    assert losses(found) == losses(expected)
    assert all(map(torch.equal, trained(again), trained(whole)))


@pytest.mark.parametrize(
    ("given", "middle", "why"),
    [
        ({"prefix_cache": None}, None, "switched off"),
        ({"epochs": 1}, None, "switched off"),
        ({"prefix_cache": 1000}, None, "the bound is 0.0 GB"),
        ({}, Mixing(), "depends on the other samples"),
    ],
)
def test_where_nothing_is_kept_the_reason_is_logged(
    given: dict[str, Any], middle: nn.Module | None, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "utcompile"):
        _, reads = run(tuned_model(middle), tmp_path / "run", **{"epochs": 2, **given})
    assert why in caplog.text and min(reads.reads) == given.get("epochs", 2)


def test_the_rest_has_the_plan_of_the_whole() -> None:
    tuned = tuned_model()
    images = torch.randn(4, 3, 8, 8)
    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    again = tuple((u.first, u.last) for u in units)
    tuned.memory = type(tuned.memory)(again)
    expected = torch.autograd.grad(tuned(images).square().sum(), list(filter(is_trained, tuned.parameters())))
    prefix, rest = utc.split_prefix(tuned)
    assert again and rest.memory.again == again
    found = torch.autograd.grad(rest(*prefix(images)).square().sum(), list(filter(is_trained, tuned.parameters())))
    assert all(map(torch.equal, found, expected))
    tuned.memory = None
    assert utc.split_prefix(tuned)[1].memory is None


@pytest.mark.parametrize("bound", ["much", 0, -1, True, 0.5])
def test_what_is_no_bound_is_refused(bound: Any, tmp_path: Path) -> None:
    with pytest.raises(utc.UtcError):
        run(tuned_model(), tmp_path / "run", prefix_cache=bound)
    assert not (tmp_path / "run").exists()

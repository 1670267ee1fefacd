"""The loop: it learns, repeats itself, resumes bit for bit, and says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli_toys import refused
from support.train_toys import hooks, toy_data, toy_model
from torch import Tensor, nn

from utcompile.errors import UtcError
from utcompile.train import Data, TrainResult, accuracy, fit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


def train(model: nn.Module, data: Data, out: Path, **changes: Any) -> TrainResult:
    options: dict[str, Any] = {"epochs": 4, "batch_size": 16, "lr": 1e-2, "progress": False, "cpu": True}
    return fit(model, data, out=out, **hooks(model), **options | changes)


def timeless(history: tuple[dict[str, float], ...]) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def fails(model: nn.Module, data: Data, out: Path, **changes: Any) -> str:
    with pytest.raises(UtcError) as caught:
        train(model, data, out, **changes)
    return str(caught.value)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_learns(schedule: str, data: Data, tmp_path: Path) -> None:
    model = toy_model()
    frozen = model[0].weight.clone()
    before = accuracy(model, data.validation)
    result = train(model, data, tmp_path / "run", schedule=schedule, epochs=10)
    assert before < 0.9 < result.best_accuracy == accuracy(model, data.validation)
    assert torch.equal(model[0].weight, frozen) and model.training
    assert [entry["epoch"] for entry in result.history] == list(range(1, 11))
    rates = [entry["lr"] for entry in result.history]
    assert max(rates) <= 1e-2 and rates[-1] < 1e-3
    assert str(result).startswith(
        f"best validation accuracy {result.best_accuracy:.2%} in epoch {result.best_epoch} of 10"
    )


def test_run_folder(data: Data, tmp_path: Path) -> None:
    model, out = toy_model(), tmp_path / "a" / "run"
    result = train(model, data, out)
    assert sorted(file.name for file in out.iterdir()) == ["history.jsonl", "last", "tuners.pt"]
    assert sorted(file.name for file in (out / "last").iterdir()) == ["training_state.pt", "tuners.pt"]
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert lines == list(result.history)
    assert set(lines[0]) == {"epoch", "train_loss", "validation_loss", "validation_accuracy", "lr", "seconds"}
    best = torch.load(out / "tuners.pt", weights_only=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in best.items())


def test_same_seed_same_result_and_the_caller_keeps_its_state(data: Data, tmp_path: Path) -> None:
    weights, histories = [], []
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(run), np.random.seed(run), random.seed(run)
        model = toy_model(dropout=0.3)
        torch.manual_seed(11), np.random.seed(11), random.seed(11)
        expected = (torch.rand(1), np.random.rand(), random.random())
        torch.manual_seed(11), np.random.seed(11), random.seed(11)
        histories.append(timeless(train(model, data, tmp_path / str(run), seed=seed).history))
        assert (torch.rand(1), np.random.rand(), random.random()) == expected
        weights.append(model[5].weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and histories[0] == histories[1]
    assert not torch.equal(weights[0], weights[2])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("moment", ["within an epoch", "between best and last", "between the two renames"])
def test_resume_is_bit_equal(
    schedule: str, moment: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_model(dropout=0.3)
    options: dict[str, Any] = {"schedule": schedule, "grad_clip": 1.0, "label_smoothing": 0.1, "weight_decay": 0.05}
    expected = train(whole, data, tmp_path / "whole", **options)

    model, out = toy_model(dropout=0.3), tmp_path / "killed"
    with monkeypatch.context() as patch:
        if moment == "within an epoch":
            calls = iter(range(13))  # five steps an epoch: in the third

            def count(*_: object) -> None:
                if next(calls, None) is None:
                    raise Killed

            handle = model.register_forward_pre_hook(lambda module, _: count() if module.training else None)
        elif moment == "between best and last":
            from utcompile.train.run_folder import RunFolder

            keep = RunFolder.keep_last

            def keep_last(self: RunFolder, state: Any, history: Any) -> None:
                if len(history) == 3:
                    raise Killed
                keep(self, state, history)

            patch.setattr(RunFolder, "keep_last", keep_last)
        else:
            rename, renames = os.rename, iter(range(4))

            def stop(source: Path, target: Path) -> None:
                if target.name == "last" and next(renames) == 2:
                    raise Killed
                rename(source, target)

            patch.setattr(os, "rename", stop)
        with pytest.raises(Killed):
            train(model, data, out, **options)
        if moment == "within an epoch":
            handle.remove()

    assert fails(toy_model(), data, out) == (
        f"{out}: the folder contains a run already\n  fix: continue it with resume=True (--resume), or give another folder"
    )
    fresh = toy_model(dropout=0.3)
    resumed = train(fresh, data, out, resume=True, **options)
    assert timeless(resumed.history) == timeless(expected.history)
    assert resumed.best_accuracy == expected.best_accuracy and resumed.best_epoch == expected.best_epoch
    assert torch.equal(fresh[5].weight, whole[5].weight) and torch.equal(fresh[5].bias, whole[5].bias)
    last, other = (
        torch.load(tmp_path / name / "last" / "tuners.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert all(torch.equal(last[key], other[key]) for key in last)
    assert len((out / "history.jsonl").read_text().splitlines()) == 4
    assert sorted(file.name for file in out.iterdir()) == ["history.jsonl", "last", "tuners.pt"]


def test_a_finished_run_is_loaded(data: Data, tmp_path: Path) -> None:
    model, again = toy_model(), toy_model()
    first = train(model, data, tmp_path / "run")
    assert train(again, data, tmp_path / "run", resume=True) == first
    assert torch.equal(model[5].weight, again[5].weight)


def test_resume_errors(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fails(toy_model(), data, out, resume=True) == (
        f"{out}: there is no run to resume\n  why: {out / 'last' / 'training_state.pt'} does not exist\n"
        "  fix: start it without resume, or correct the folder"
    )
    train(toy_model(), data, out)
    assert fails(toy_model(), data, out, resume=True, lr=0.5, epochs=9) == (
        f"{out}: the run was started with other settings\n  why: epochs was 4, is 9; lr was 0.01, is 0.5\n"
        "  fix: resume with the same settings, or start a new run in another folder"
    )
    (out / "last" / "training_state.pt").write_bytes(b"broken")
    assert fails(toy_model(), data, out, resume=True).startswith(
        f"{out / 'last' / 'training_state.pt'}: the state of the run cannot be read\n  why: "
    )
    shutil.rmtree(out)
    out.write_text("")
    assert fails(toy_model(), data, out) == f"{out}: the run folder is a file\n  fix: give another path"


def test_state_holds_no_code(data: Data, tmp_path: Path) -> None:
    train(toy_model(), data, tmp_path / "run", epochs=1)
    state = torch.load(tmp_path / "run" / "last" / "training_state.pt", weights_only=True)
    assert set(state) == {"settings", "optimizer", "schedule", "history"}


def test_decay_spares_biases_and_only_trainable_parameters_are_stepped(data: Data, tmp_path: Path) -> None:
    train(toy_model(), data, tmp_path / "run", epochs=1, weight_decay=0.3)
    groups = torch.load(tmp_path / "run" / "last" / "training_state.pt", weights_only=True)["optimizer"]["param_groups"]
    assert sorted((group["weight_decay"], len(group["params"])) for group in groups) == [(0.0, 1), (0.3, 1)]


def test_bfloat16_after_float32_in_one_process(data: Data, tmp_path: Path) -> None:
    model = toy_model()
    train(model, data, tmp_path / "a", epochs=1)
    result = train(model, data, tmp_path / "b", epochs=1, precision="bf16")
    assert result.best_accuracy > 0
    assert model(torch.zeros(1, 3, 12, 12)).dtype is torch.float32
    pickle.loads(pickle.dumps(model))


def test_channels_last_and_workers(data: Data, tmp_path: Path) -> None:
    plain = train(toy_model(), data, tmp_path / "a", epochs=2)
    other = train(toy_model(), data, tmp_path / "b", epochs=2, channels_last=True, workers=1)
    for ours, theirs in zip(plain.history, other.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_loss_that_is_not_finite(data: Data, tmp_path: Path) -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.calls = nn.Parameter(torch.ones(4)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.scale * (float("nan") if self.calls == 3 else 1.0) * x.mean((1, 2, 3))[:, None]

    model = Explodes()
    with pytest.raises(UtcError) as caught:
        fit(
            model,
            data,
            out=tmp_path / "r",
            save=print,
            load=print,
            batch_size=16,
            lr=0.5,
            warmup=0,
            progress=False,
            cpu=True,
        )
    assert str(caught.value) == (
        "the loss is nan at step 3\n  why: the learning rate is 0.498 there, and at most 0.5\n"
        "  fix: take a lower lr, or set grad_clip=1.0; in fp16, take bf16 or no autocast"
    )
    assert model.training


def test_nothing_to_train(data: Data, tmp_path: Path) -> None:
    assert fails(toy_model().requires_grad_(False), data, tmp_path / "run") == (
        "Sequential: the model has no trainable parameter\n"
        "  fix: insert tuners, or name what stays trainable under `train:` in the rules"
    )
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_fit(data: Data, tmp_path: Path) -> None:
    model = toy_model()
    model[5] = nn.Linear(128, 3)
    assert fails(model, data, tmp_path / "a") == (
        "the model has 3 outputs, the data 4 classes\n  fix: give the model a head of 4 classes (--num-classes)"
    )
    assert fails(nn.Conv2d(3, 4, 1), data, tmp_path / "b") == (
        "the model returns a tensor of shape (16, 4, 12, 12), not logits (B, classes)\n"
        "  fix: train a model with a classification head, or a wrapper that returns its logits"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs is 0\n  fix: give 1 or more"),
        ({"batch_size": 0}, "batch_size is 0\n  fix: give 1 or more"),
        ({"lr": -1.0}, "lr is -1.0\n  fix: give a positive learning rate, e.g. 1e-3"),
        ({"seed": -1}, "seed is -1\n  fix: give 0 or more"),
        ({"seed": 2**63}, "seed is 9223372036854775808\n  fix: give at most 9.22337e+18"),
        ({"lr": 1e39}, "lr is 1e+39\n  fix: give at most 3e+37"),  # more than float32 has
        ({"weight_decay": 1e39}, "weight_decay is 1e+39\n  fix: give at most 1e+08"),
        ({"warmup": 1.0}, "warmup is 1.0\n  fix: give the share of all steps, from 0 to below 1"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'\n  fix: did you mean 'cosine'?"),
        ({"precision": "half"}, "unknown precision 'half'\n  fix: known: bf16, fp16, no"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0\n  fix: give a share from 0 to below 1"),
        ({"grad_clip": 0.0}, "grad_clip is 0.0\n  fix: give a positive norm, or None"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], expected: str, data: Data, tmp_path: Path) -> None:
    assert fails(toy_model(), data, tmp_path / "run", **changes) == expected
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
def test_shortest_runs(schedule: str, warmup: float, data: Data, tmp_path: Path) -> None:
    train(toy_model(), data, tmp_path / "run", epochs=1, batch_size=1000, schedule=schedule, warmup=warmup)


def test_a_bar_only_on_a_console(data: Data, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(toy_model(), data, tmp_path / "a", epochs=1, progress=True)
    assert capfd.readouterr() == ("", "")


def test_without_accelerate_one_error_says_what_to_install(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it raises, as if it were not installed
    said = fails(toy_model(), data, tmp_path / "run")
    assert "training needs the package accelerate" in said and "pip install 'utcompile[train]'" in said
    assert not (tmp_path / "run").exists()
    refused(
        "train", "-m", "timm:nothing", "-r", "lora/all_conv", "-d", tmp_path, "-o", tmp_path / "run",
        says=("training needs the package accelerate",),
    )  # fmt: skip

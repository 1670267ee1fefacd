"""The options of the loop: what each one changes, and that runs resume with them bit for bit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.train_toys import SMALL, hooks, images, toy_data, toy_model
from torch import nn

import utcompile as utc
from utcompile.errors import UtcError
from utcompile.train import Data, TrainResult, fit, load_data
from utcompile.train.optimizers import rules_of_parameters
from utcompile.train.result import best_of, stops_early


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


def train(model: nn.Module, data: Data, out: Path, **changes: Any) -> TrainResult:
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "progress": False, "cpu": True}
    return fit(model, data, out=out, **hooks(model), **options | changes)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Data with many samples of one class."""
    x, y = images(80)
    kept = (y == 0) | (np.arange(80) < 30)
    path = tmp_path_factory.mktemp("uneven") / "d.npz"
    np.savez(path, x=x[kept], y=y[kept])
    return load_data(path, **SMALL)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_accumulated_batches_are_one_large_batch(uneven: Data, class_weights: str, tmp_path: Path) -> None:
    large, small = toy_model(), toy_model()
    options = {"optimizer": "sgd", "lr": 0.1, "class_weights": class_weights, "grad_clip": 1.0}
    expected = train(large, uneven, tmp_path / "a", batch_size=16, **options)
    found = train(small, uneven, tmp_path / "b", batch_size=4, accumulate=4, **options)
    # the same sums in another order; the last step has fewer batches
    assert torch.allclose(large[5].weight, small[5].weight, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(found.history, expected.history, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_pixels_that_are_ignored_count_in_no_batch(weights: list[float] | None, tmp_path: Path) -> None:
    """Also where a whole batch has none that counts."""
    from utcompile.train.tasks import IGNORED, Segment

    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 3, 4, 4, generator=draw), torch.randint(0, 3, (10, 4, 4), generator=draw)
    y[::2, 1:], y[3] = IGNORED, IGNORED
    samples = torch.utils.data.TensorDataset(x, y)
    data = Data(samples, samples, 3, ("a", "b", "c"), "segment")
    task = Segment(3, None if weights is None else torch.tensor(weights))
    found = []
    for batch_size, accumulate in ((5, 1), (1, 5)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 3, 1))
        options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "task": task, "accumulate": accumulate}
        save: Any = lambda folder: (folder / "nothing").touch()  # noqa: E731
        hook = {"save": save, "load": lambda folder: None}
        result = fit(
            model,
            data,
            out=tmp_path / str(accumulate),
            **hook,
            epochs=1,
            batch_size=batch_size,
            progress=False,
            cpu=True,
            **options,
        )
        found.append((model[0].weight.detach(), result.history[0]["train_loss"]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "the launcher was given the mixed precision bf16"),
        ("ACCELERATE_USE_FSDP", "true", "the engine FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "the engine DeepSpeed"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 gradient accumulation steps"),
    ],
)
def test_what_a_launcher_was_given_and_a_run_was_not(
    variable: str, value: str, says: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UtcError, match=says):
        train(toy_model(), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradients_are_clipped_to_a_norm(data: Data, tmp_path: Path) -> None:
    free, clipped = toy_model(), toy_model()
    before = free[5].weight.detach().clone()
    one = {"epochs": 1, "batch_size": 72, "optimizer": "sgd", "lr": 0.1, "warmup": 0.0, "weight_decay": 0.0}
    train(free, data, tmp_path / "a", **one)
    train(clipped, data, tmp_path / "b", grad_clip=1e-4, **one)
    # the first step of SGD with Nesterov's momentum moves by 1.9 times the rate and the gradient, of norm 1e-4 at most
    moved = [float((model[5].weight.detach() - before).norm()) for model in (free, clipped)]
    assert moved[1] <= 1.901e-5 < moved[0]


def test_an_average_is_validated_and_kept(data: Data, tmp_path: Path) -> None:
    model = toy_model()
    result = train(model, data, tmp_path / "run", ema=0.9)
    best = torch.load(tmp_path / "run" / "tuners.pt", weights_only=True)
    last = torch.load(tmp_path / "run" / "last" / "tuners.pt", weights_only=True)
    assert result.best_epoch == 3 or best
    assert not torch.equal(best["5.weight"], last["5.weight"])
    assert torch.equal(model[5].weight, best["5.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "accumulate": 2, "schedule": "linear"},
        {"optimizer": "lion", "schedule": "step", "class_weights": "balanced"},
        {"schedule": "poly", "decays": {"train": 0.1}, "rates": {"train": 5e-3}},
        {"schedule": "constant", "patience": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_resumes_bit_for_bit(options: dict[str, Any], data: Data, tmp_path: Path) -> None:
    whole = toy_model(dropout=0.2)
    expected = train(whole, data, tmp_path / "whole", **options)

    def stop(history: Any) -> None:
        if len(history) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy_model(dropout=0.2), data, tmp_path / "run", on_epoch=stop, **options)
    resumed = toy_model(dropout=0.2)
    result = train(resumed, data, tmp_path / "run", resume=True, **options)
    assert [e["validation_loss"] for e in result.history] == [e["validation_loss"] for e in expected.history]
    assert torch.equal(resumed[5].weight, whole[5].weight)


def test_stops_early() -> None:
    history = [{"epoch": i + 1, "validation_iou": v} for i, v in enumerate((0.1, 0.3, float("nan"), 0.2))]
    assert best_of(history, "iou", higher=True)["epoch"] == 2
    assert stops_early(history, "iou", higher=True, patience=2)
    assert not stops_early(history, "iou", higher=True, patience=3)
    assert best_of(history, "iou", higher=False)["epoch"] == 1


def test_a_run_that_stopped_early_is_loaded_when_it_is_resumed(data: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 9, "patience": 1, "lr": 1e-30}  # nothing changes
    first = train(toy_model(), data, tmp_path / "run", **options)
    assert len(first.history) < 9
    assert train(toy_model(), data, tmp_path / "run", resume=True, **options) == first


def test_rates_and_decays_of_rules(data: Data, tmp_path: Path) -> None:
    model = utc.compile(toy_model(), "lora/all_conv", (torch.randn(2, 3, 12, 12),), vars={"r": 2})
    assert set(rules_of_parameters(model).values()) == {"conv", "train"}

    def save(folder: Path) -> None:
        torch.save({}, folder / "tuners.pt")

    options: dict[str, Any] = {"save": save, "load": print, "epochs": 1, "batch_size": 16, "progress": False}
    rates = {"conv": 0.004, "train": 0.02}
    fit(
        model,
        data,
        out=tmp_path / "run",
        rates=rates,
        decays={"conv": 0.3},
        schedule="constant",
        warmup=0,
        lr=0.01,
        **options,
    )
    state = torch.load(tmp_path / "run" / "last" / "training_state.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert sorted({round(g["lr"], 6) for g in groups}) == [0.004, 0.02]
    assert {g["weight_decay"] for g in groups if round(g["lr"], 6) == 0.004} == {0.3}
    with pytest.raises(UtcError, match="rates names 'convs', which trains nothing\n  fix: did you mean 'conv'"):
        fit(model, data, out=tmp_path / "other", rates={"convs": 1.0}, **options)


def test_class_weights_count_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(40)[0], y=np.where(np.arange(40) < 30, 0, 1))
    from utcompile.train import make_task

    data = load_data(tmp_path / "d.npz", **SMALL)
    task: Any = make_task(data, class_weights="balanced")
    assert data.counts == (27, 9) and task.weights.tolist() == pytest.approx([36 / 54, 36 / 18])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "adamv"}, "timm has no optimizer 'adamv'\n  fix: did you mean 'adam"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"class_weights": "balance"}, "unknown class_weights 'balance'\n  fix: did you mean 'balanced'"),
        ({"rates": {"train": -1.0}}, r"rates\['train'\] is -1.0"),
        ({"rates": {"train": 1e39}}, r"rates\['train'\] is 1e\+39"),
        ({"rates": {"train": "fast"}}, "must be a number"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], says: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(UtcError, match=says):
        train(toy_model(), data, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_bar_stays_whole_and_lines_appear_above_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from rich.console import Console

    from utcompile.train import progress_bar

    def told(history: Sequence[Mapping[str, float]]) -> str:
        return f"epoch {len(history)} done" + ", accuracy 97.66%" * 6

    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, highlight=False)
    monkeypatch.setattr(progress_bar, "Console", lambda **_: console)
    train(toy_model(), data, tmp_path / "run", epochs=2, progress=True, on_epoch=told)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    lines = plain.replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80 and plain.count("97.66%") == 12  # continued at a word
    for epoch in (1, 2):
        assert [line for line in lines if f"epoch {epoch} done" in line and "━" not in line]

"""Every task learns its toy data, measures what it says, and refuses outputs that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.train_toys import images
from torch import Tensor, nn
from torch.nn import functional as F

from utcompile.errors import UtcError
from utcompile.train import Data, TrainResult, fit, load_data, make_task
from utcompile.train.evaluation import evaluate_model
from utcompile.train.tasks import Custom, Segment

SMALL: dict[str, Any] = {"input_size": (3, 8, 8), "interpolation": "bilinear"}


def hooks(model: nn.Module) -> dict[str, Any]:
    def save(folder: Path) -> None:
        torch.save(model.state_dict(), folder / "tuners.pt")

    def load(folder: Path) -> None:
        model.load_state_dict(torch.load(folder / "tuners.pt", weights_only=True))

    return {"save": save, "load": load}


def train(model: nn.Module, data: Data, out: Path, **changes: Any) -> TrainResult:
    options: dict[str, Any] = {"epochs": 6, "batch_size": 16, "lr": 2e-2, "progress": False, "cpu": True}
    return fit(model, data, out=out, **hooks(model), **options | changes)


def make_model(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def load(folder: Path, task: str, y: np.ndarray) -> Data:
    np.savez(folder / f"{task}.npz", x=images(len(y))[0], y=y)
    return load_data(folder / f"{task}.npz", task=task, **SMALL)


def test_multilabel(tmp_path: Path) -> None:
    label = images(80)[1]
    data = load(tmp_path, "multilabel", np.stack([label % 2, label // 2, label > 0], 1))
    assert str(data) == "72 training and 8 validation samples of 3 labels"
    result = train(make_model(3), data, tmp_path / "run")
    assert result.metric == "f1" and result.best > 0.9
    assert {"validation_f1", "validation_average_precision", "validation_loss"} <= result.history[0].keys()
    with pytest.raises(UtcError, match="this run measured f1, not accuracy"):
        _ = result.best_accuracy


def test_regress_in_the_units_of_the_target(tmp_path: Path) -> None:
    target = 5000 + 100.0 * images(80)[1]
    data = load(tmp_path, "regress", target)
    model = make_model(1)
    result = train(model, data, tmp_path / "run", epochs=15)
    assert result.metric == "mae" and result.best < 50  # of a spread of 112
    assert result.history[result.best_epoch - 1]["validation_r2"] > 0.8
    found = evaluate_model(
        model, [(torch.stack([data.validation[i][0] for i in range(8)]), data_targets(data))], make_task(data), ("0",)
    )
    assert found.classes[0].figures["mae"] == pytest.approx(result.best, rel=1e-3)


def data_targets(data: Data) -> Tensor:
    return torch.stack([data.validation[i][1] for i in range(len(data.validation))])  # type: ignore[arg-type]


class Pixels(nn.Module):
    """A class per pixel; at half the size, as some models have it."""

    def __init__(self, classes: int, half: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.half = nn.Conv2d(3, classes, 1), half

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(F.avg_pool2d(x, 2) if self.half else x)}


@pytest.mark.parametrize("half", [False, True])
def test_segment(half: bool, tmp_path: Path) -> None:
    x = images(40)[0]
    mask = (x > 99).astype(np.int64)
    mask[:, 0] = 255  # a row that does not count
    np.savez(tmp_path / "s.npz", x=x, y=mask)
    data = load_data(tmp_path / "s.npz", task="segment", **SMALL)
    assert data.num_classes == 2 and data.counts == (sum(data.counts) - data.counts[1], data.counts[1])
    result = train(Pixels(2, half), data, tmp_path / "run", lr=0.2)
    assert result.metric == "iou" and result.best > (0.6 if half else 0.8)


def test_iou_is_counted_over_all_pixels() -> None:
    task = Segment(3)
    meter = task.meter()
    said = torch.tensor([[[0, 0], [1, 1]]])
    meter.update(F.one_hot(said, 3).permute(0, 3, 1, 2).float(), torch.tensor([[[0, 1], [1, 255]]]))
    values = meter.values()
    assert values["iou"] == pytest.approx((1 / 2 + 1 / 2) / 2) and values["pixel_accuracy"] == pytest.approx(2 / 3)
    nothing = torch.full((1, 2, 2), 255)
    assert float(task.loss(torch.zeros(1, 3, 2, 2), nothing)) == 0


def test_custom(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x, y=x[:, :1] * 2)
    data = load_data(tmp_path / "c.npz", task="custom")

    def measure(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"error": float((outputs - targets).abs().mean())}

    task = Custom(lambda output, target: F.l1_loss(output, target), measure, ("error",), higher=False)
    result = train(nn.Linear(4, 1), data, tmp_path / "run", task=task, epochs=10)
    assert result.metric == "error" and result.best < result.history[0]["validation_error"]


def test_custom_functions_that_fail(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((20, 192), np.float32), y=np.zeros((20, 1), np.float32))
    data = load_data(tmp_path / "c.npz", task="custom")
    cases = {
        "the loss failed": Custom(lambda output, target: output.nowhere),
        "the loss function returned no scalar tensor": Custom(lambda output, target: output),
        "the metrics failed": Custom(F.mse_loss, lambda o, t: {"a": o.nowhere}, ("a",)),
        "the metrics function returned no 'a'": Custom(F.mse_loss, lambda o, t: {"b": 1.0}, ("a",)),
    }
    for number, (says, task) in enumerate(cases.items()):
        with pytest.raises(UtcError, match=says):
            train(make_model(1), data, tmp_path / str(number), task=task, epochs=1)
        assert not (tmp_path / str(number)).exists()
    with pytest.raises(UtcError, match="needs a loss function"):
        make_task(data)


@pytest.mark.parametrize(
    ("task", "y", "outputs", "says"),
    [
        ("multilabel", np.eye(4)[images(40)[1]], 5, "the model has 5 outputs, the data 4 labels"),
        ("regress", np.arange(40.0), 2, "the model has 2 outputs, the data 1 target\n"),
        ("segment", (images(40)[0] > 99).astype(int), 3, r"not logits \(B, classes, H, W\)"),
    ],
)
def test_outputs_that_do_not_fit(task: str, y: np.ndarray, outputs: int, says: str, tmp_path: Path) -> None:
    data = load(tmp_path, task, y)
    with pytest.raises(UtcError, match=says):
        train(make_model(outputs), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "y", "says"),
    [
        ("multilabel", np.full((8, 2), 3), "runs from 3 to 3"),
        ("multilabel", np.zeros(8), r"of shape \(8,\)"),
        ("regress", np.array([1.0, np.nan] * 4), "nan or infinity"),
        ("regress", np.ones(8), "all values of target 0 are the same"),
        ("regress", np.array(["a"] * 8), "it is <U1"),
        ("segment", np.zeros((8, 4, 4), int), r"of shape \(8, 4, 4\)"),
        ("segment", np.zeros((8, 8, 8), int), "all pixels of all masks are of one class"),
        ("segment", np.full((8, 8, 8), -1), "runs from -1 to -1"),
    ],
)
def test_bad_targets(task: str, y: np.ndarray, says: str, tmp_path: Path) -> None:
    with pytest.raises(UtcError, match=says):
        load(tmp_path, task, y)


def test_metrics_by_name(tmp_path: Path) -> None:
    data = load(tmp_path, "classify", images(40)[1])
    result = train(make_model(4), data, tmp_path / "run", metrics=("f1", "accuracy", "top5_accuracy"), epochs=2)
    assert result.metric == "f1" and "validation_top5_accuracy" in result.history[0]
    assert result.best_accuracy == result.history[result.best_epoch - 1]["validation_accuracy"]
    with pytest.raises(
        UtcError,
        match=r"the task 'classify' has no metric 'f1scor'\n  fix: known: accuracy, auroc, balanced_accuracy, f1",
    ):
        make_task(data, metrics=("f1scor",))
    with pytest.raises(UtcError, match="has no label smoothing"):
        make_task(load(tmp_path, "regress", np.arange(40.0)), label_smoothing=0.1)


def test_figures_of_an_evaluation() -> None:
    logits = torch.tensor([[4.0, 0], [4.0, 0], [0, 4.0], [0, 4.0]])
    labels = torch.tensor([0, 1, 1, 1])
    data = Data([], [], 2, ("a", "b"))  # type: ignore[arg-type]
    found = evaluate_model(nn.Identity(), [(logits, labels)], make_task(data), ("a", "b"))
    assert found.confusion == [[1, 0], [1, 2]]
    assert found.classes[1].figures == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    confidence = float(torch.tensor([4.0, 0]).softmax(0)[0])
    assert found.figures["expected_calibration_error"] == pytest.approx(confidence - 0.75, abs=1e-6)
    assert found.calibration[0]["count"] == 4

"""Every metric has the value that scikit-learn, or its formula, gives: whatever the batches, with classes missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utcompile.train import Data, make_task
from utcompile.train.evaluation import BINS, Evaluation, evaluate_model
from utcompile.train.tasks import METRICS

sk = pytest.importorskip("sklearn.metrics")
NAMES = ("a", "b", "c", "d", "e", "f")
CLOSE = 1e-5  # sums of a few hundred float32 numbers, each rounded at 6e-8, in another order


def batches(outputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One sample, five, and the rest."""
    for start, end in ((0, 1), (1, 6), (6, len(outputs))):
        yield outputs[start:end], targets[start:end]


def evaluated(task: str, outputs: Tensor, targets: Tensor, count: int, **more: Any) -> Evaluation:
    data = Data([], [], count, NAMES[:count], task, **more)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # in a terminal they would tear the bar
        goal = make_task(data, metrics=METRICS[task])
        return evaluate_model(nn.Identity(), batches(outputs, targets), goal, NAMES[:count])


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """As Guo et al. define it: bins of equal width, their distances weighted by their numbers of samples."""
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[places == b].mean() - right[places == b].mean()) * (places == b).mean() for b in set(places)]
    return float(sum(gaps))


@pytest.mark.parametrize("occur", [6, 4, 2], ids=lambda n: f"{n} of 6 classes")
@pytest.mark.parametrize("task", ["classify", "text"])
def test_classes(task: str, occur: int) -> None:
    random = torch.Generator().manual_seed(occur)
    targets = torch.randint(0, occur, (60,), generator=random)
    logits = torch.randn(60, 6, generator=random) + 1.5 * nn.functional.one_hot(targets, 6)
    logits[:, 1] -= 9  # never said
    logits[3:6, 5] += 20  # said, and seldom or never true
    found = evaluated(task, logits, targets, 6)
    y, said = targets.numpy(), logits.argmax(1).numpy()
    chances = logits.double().softmax(1).numpy()
    recalls = sk.recall_score(y, said, labels=range(6), average=None, zero_division=0)
    areas = [sk.roc_auc_score(y == c, chances[:, c]) for c in range(6) if (y == c).any()]
    expected = {
        "accuracy": sk.accuracy_score(y, said),
        "balanced_accuracy": recalls[np.unique(y)].mean(),
        "top5_accuracy": sk.top_k_accuracy_score(y, chances, k=5, labels=range(6)),
        "f1": sk.f1_score(y, said, average="macro", zero_division=0),
        "auroc": np.mean(areas),
        "mcc": sk.matthews_corrcoef(y, said),
        "loss": sk.log_loss(y, chances, labels=range(6)),
        "expected_calibration_error": calibration_error(chances.max(1), said == y),
    }
    assert found.figures == pytest.approx(expected, abs=CLOSE)
    assert found.confusion == sk.confusion_matrix(y, said, labels=range(6)).tolist()
    each = sk.precision_recall_fscore_support(y, said, labels=range(6), zero_division=0)
    for i, entry in enumerate(found.classes):
        assert list(entry.figures.values()) == pytest.approx([values[i] for values in each[:3]], abs=CLOSE)
        assert entry.support == each[3][i]


@pytest.mark.parametrize("missing", [None, 2], ids=["every label occurs", "one never occurs"])
def test_labels(missing: int | None) -> None:
    random = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 2, (50, 4), generator=random)
    logits = torch.randn(50, 4, generator=random) + targets
    if missing is not None:
        targets[:, missing] = 0
    found = evaluated("multilabel", logits, targets, 4)
    y, chances = targets.numpy(), logits.double().sigmoid().numpy()
    said, there = chances >= 0.5, [c for c in range(4) if c != missing]
    sure = np.maximum(chances, 1 - chances)
    expected = {
        "f1": sk.f1_score(y, said, average="macro", zero_division=0),
        "accuracy": (said == y).mean(),
        "average_precision": sk.average_precision_score(y[:, there], chances[:, there], average="macro"),
        "auroc": sk.roc_auc_score(y[:, there], chances[:, there], average="macro"),
        "loss": np.mean([sk.log_loss(y[:, c], chances[:, c], labels=[0, 1]) for c in range(4)]),
        "expected_calibration_error": calibration_error(sure.ravel(), (said == y).ravel()),
    }
    assert found.figures == pytest.approx(expected, abs=CLOSE)
    each = sk.precision_recall_fscore_support(y, said, average=None, zero_division=0)
    for i, entry in enumerate(found.classes):
        assert list(entry.figures.values()) == pytest.approx([values[i] for values in each[:3]], abs=CLOSE)


def test_numbers() -> None:
    random = torch.Generator().manual_seed(2)
    targets = torch.randn(40, 2, generator=random) * torch.tensor([3.0, 100.0]) + 7
    standard = (tuple(targets.mean(0).tolist()), tuple(targets.std(0, correction=0).tolist()))
    mean, std = map(torch.tensor, standard)
    outputs = (targets - mean) / std + 0.3 * torch.randn(40, 2, generator=random)
    found = evaluated("regress", outputs, targets, 2, standard=standard)
    y, said = targets.double().numpy(), (outputs * std + mean).double().numpy()
    expected = {
        "mae": sk.mean_absolute_error(y, said),
        "mse": sk.mean_squared_error(y, said),
        "rmse": sk.root_mean_squared_error(y, said),
        "r2": sk.r2_score(y, said),
        "loss": sk.mean_squared_error((y - mean.numpy()) / std.numpy(), outputs.numpy()),
    }
    assert found.figures == pytest.approx(expected, rel=1e-4)  # of float32 at a hundred, squared
    for i, entry in enumerate(found.classes):
        assert entry.figures == pytest.approx(
            {
                "mae": sk.mean_absolute_error(y[:, i], said[:, i]),
                "rmse": sk.root_mean_squared_error(y[:, i], said[:, i]),
                "bias": (said - y)[:, i].mean(),
                "r2": sk.r2_score(y[:, i], said[:, i]),
            },
            rel=1e-4,
        )


@pytest.mark.parametrize("occur", [4, 2])
def test_pixels_of_which_some_are_ignored(occur: int) -> None:
    random = torch.Generator().manual_seed(occur)
    masks = torch.randint(0, occur, (8, 5, 7), generator=random)
    logits = torch.randn(8, 4, 5, 7, generator=random) + 2 * nn.functional.one_hot(masks, 4).permute(0, 3, 1, 2)
    logits[:, 3] -= 9  # never said; with two classes, it is never true either
    masks[torch.rand(8, 5, 7, generator=random) < 0.2] = 255
    masks[0] = 255  # a batch without any pixel that counts
    found = evaluated("segment", logits, masks, 4)
    counted = masks != 255
    y = masks[counted].numpy()
    chances = logits.permute(0, 2, 3, 1)[counted].double().softmax(1).numpy()
    said = chances.argmax(1)
    shares = sk.jaccard_score(y, said, labels=range(4), average=None, zero_division=0)
    recalls = sk.recall_score(y, said, labels=range(4), average=None, zero_division=0)
    expected = {
        "iou": shares[np.union1d(y, said)].mean(),
        "pixel_accuracy": sk.accuracy_score(y, said),
        "balanced_accuracy": recalls[np.unique(y)].mean(),
        "loss": sk.log_loss(y, chances, labels=range(4)),
        "expected_calibration_error": calibration_error(chances.max(1), said == y),
    }
    assert found.figures == pytest.approx(expected, abs=CLOSE)
    assert found.confusion == sk.confusion_matrix(y, said, labels=range(4)).tolist()
    assert [entry.figures["iou"] for entry in found.classes] == pytest.approx(shares, abs=CLOSE)

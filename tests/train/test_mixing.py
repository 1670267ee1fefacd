"""Mixup and CutMix: what is blended, how it is weighed, where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.train_toys import hooks, toy_data, toy_model
from torch.nn import functional as F

from utcompile.errors import UtcError
from utcompile.train import Data, fit
from utcompile.train.mixing import Mixing, soft_cross_entropy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("count", [8, 7, 1])
def test_mixup_blends_each_image_with_its_mirror_in_the_batch(count: int) -> None:
    np.random.seed(0)
    images, labels = torch.randn(count, 3, 4, 4), torch.arange(count) % 4
    before = images.clone()
    mixed, shares = Mixing(0.4, 0.0, 5)(images, labels)
    assert torch.equal(images, before) and shares.shape == (count, 5)
    assert torch.allclose(shares.sum(1), torch.ones(count))
    even = count // 2 * 2
    hot = F.one_hot(labels, 5).float()
    if even:
        share = shares[0, labels[0]] if labels[0] != labels[even - 1] else None
        assert share is not None and 0 < share < 1
        assert torch.allclose(mixed[:even], share * images[:even] + (1 - share) * images[:even].flip(0), atol=1e-6)
        assert torch.allclose(shares[:even], share * hot[:even] + (1 - share) * hot[:even].flip(0), atol=1e-6)
    assert torch.equal(mixed[even:], images[even:]) and torch.equal(shares[even:], hot[even:])


def test_cutmix_puts_a_part_of_one_image_into_another() -> None:
    np.random.seed(1)
    images, labels = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 3])
    mixed, shares = Mixing(0.0, 1.0, 4)(images, labels)
    own = (mixed == images).float().mean((1, 2, 3))
    assert bool(((mixed == images) | (mixed == images.flip(0))).all())
    assert torch.allclose(shares.diagonal(), own, atol=1e-6)  # the shares are those of the area


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_shares_of_single_classes_have_the_loss_of_labels(weights: torch.Tensor | None, smoothing: float) -> None:
    logits, labels = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
    wide = None if weights is None else weights.double()
    wanted = F.cross_entropy(logits, labels, wide, label_smoothing=smoothing)
    found = soft_cross_entropy(logits, F.one_hot(labels, 3).double(), wide, smoothing)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)  # rounding of float64


def test_the_loss_of_a_blend_is_the_blend_of_losses() -> None:
    logits, a, b = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3, torch.arange(6) // 2
    shares = 0.3 * F.one_hot(a, 3).double() + 0.7 * F.one_hot(b, 3).double()
    wanted = 0.3 * F.cross_entropy(logits, a) + 0.7 * F.cross_entropy(logits, b)
    assert soft_cross_entropy(logits, shares, None, 0.0).item() == pytest.approx(wanted.item(), rel=1e-12)
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    sums = [F.cross_entropy(logits, labels, weights, reduction="sum") for labels in (a, b)]
    wanted = (0.3 * sums[0] + 0.7 * sums[1]) / (0.3 * weights[a] + 0.7 * weights[b]).sum()
    assert soft_cross_entropy(logits, shares, weights, 0.0).item() == pytest.approx(wanted.item(), rel=1e-12)


def run(data: Data, out: Path, **options: Any) -> tuple[dict[str, float], ...]:
    model = toy_model()
    chosen = {"epochs": 2, "batch_size": 20, "lr": 0.01, **options}
    return fit(model, data, out=out, progress=False, **hooks(model), **chosen).history


def test_a_mixed_run_differs_is_the_same_again_and_resumes_bit_for_bit(data: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"mixup": 0.3, "cutmix": 1.0, "class_weights": "balanced", "label_smoothing": 0.1}
    plain, mixed = run(data, tmp_path / "plain"), run(data, tmp_path / "mixed", **options)
    assert plain[0]["train_loss"] != mixed[0]["train_loss"]
    model, kept = toy_model(), hooks(toy_model())
    kept = hooks(model)

    def stop(history: Any) -> None:
        if len(history) == 1:
            raise KeyboardInterrupt

    chosen: dict[str, Any] = {"epochs": 2, "batch_size": 20, "lr": 0.01, **options}
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, out=tmp_path / "cut", progress=False, on_epoch=stop, **kept, **chosen)
    again = run(data, tmp_path / "cut", resume=True, **options)
    assert [{**e, "seconds": 0} for e in again] == [{**e, "seconds": 0} for e in mixed]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        ({"mixup": 1.0, "prefix_cache": "1GB"}, "prefix_cache keeps what the frozen layers make of each image"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"workers": -1}, "workers is -1"),
        ({"precision": "fp16", "cpu": True}, "fp16 is not possible on a CPU"),
    ],
)
def test_refused(options: dict[str, Any], says: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(UtcError) as caught:
        run(data, tmp_path / "run", **options)
    assert says in str(caught.value) and not (tmp_path / "run").exists()


def test_a_task_without_one_class_per_image_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=random.integers(0, 255, (20, 8, 8), np.uint8), y=np.eye(4)[np.arange(20) % 4])
    from support.train_toys import SMALL

    from utcompile.train import load_data

    data = load_data(tmp_path / "a.npz", task="multilabel", **SMALL)
    with pytest.raises(UtcError, match="one class each, and the task is 'multilabel'"):
        run(data, tmp_path / "run", cutmix=1.0)


def test_a_step_that_ruins_the_parameters_is_an_error_in_the_last_epoch_too(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UtcError, match=r"the validation loss is (nan|inf) after epoch 1"):
        run(data, tmp_path / "run", epochs=1, batch_size=80, lr=3e37)
    assert not (tmp_path / "run").exists()

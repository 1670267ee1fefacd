"""compile → train → fold → export on six kinds of real models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import models as zoo

import utcompile as utc

JOBS = {
    "resnet": "lora/all_conv",
    "convnext": "u_tuning/dual_foldable",
    "efficientnet": "convnet/inverted_residual_foldable",
    "mixer": "u_tuning/dual_foldable",
    "vit": "u_tuning/dual_foldable",
    "swin": "u_tuning/dual_foldable",
}


# docs/getting-started.md, which the tests run, does the job on the efficientnet; test_fold folds the swin with the same rules,
# and the convnext's are those of the vit and the mixer
_FULL = ("efficientnet", "swin", "convnext")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.full] * (k in _FULL)) for k in JOBS])
def test_the_main_job(kind: str, tmp_path: Path) -> None:
    model, x = zoo.make(kind)
    tuned = utc.compile(model, JOBS[kind], x)
    images = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    labels = torch.arange(8) % zoo.CLASSES
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    tuned.train()
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(tuned(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0]
    tuned.eval()
    folded, report = utc.fold(tuned, strict=True)
    with torch.no_grad():
        expected = tuned(images)
        assert ((folded(images) - expected).abs().max() / expected.abs().max()).item() <= 1e-5
    assert all(site.max_error <= 1e-12 for site in report.sites)
    result = utc.export_onnx(folded, tmp_path / "model.onnx", (x,))
    assert result.max_error <= 1e-4 * max(1.0, expected.abs().max().item())
    assert {1, 3, 8} <= set(result.batch_sizes)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.full  # of the tests in every run, test_families.py exports kept tuners, test_cli_work.py what is not folded
def test_an_unfolded_model_exports_too(tmp_path: Path) -> None:
    model, x = zoo.make("vit")
    tuned = utc.compile(model, "u_tuning/tri", x)
    zoo.shake(tuned)
    result = utc.export_onnx(tuned, tmp_path / "tuned.onnx", (x,))
    assert result.max_error < 1e-4

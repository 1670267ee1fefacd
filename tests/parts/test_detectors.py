"""`within=` on more detectors of torchvision: each is tuned, trains with its own losses, runs in eval, and is folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from support import models as zoo
from support.detectors import fcos, keypoint_rcnn, mask_rcnn, scene, ssd
from torch import nn

import utcompile as utc

pytestmark = pytest.mark.full
ROUNDING = 1e-4  # of folded float32 weights, through some ten layers

CASES: dict[str, tuple[Callable[[], nn.Module], str | list[str], list[str]]] = {
    "ssd": (ssd, "backbone", ["module:head"]),
    "fcos": (fcos, "backbone", ["module:head"]),
    "fcos, parts of its head": (fcos, ["backbone.body", "head.*.conv.*"], ["parameter:head.*.cls_logits.*"]),
    "keypoint rcnn": (keypoint_rcnn, "backbone", ["module:rpn", "module:roi_heads"]),
    "mask rcnn": (mask_rcnn, "backbone", ["module:rpn", "module:roi_heads"]),
    "mask rcnn, parts of its heads": (
        mask_rcnn,
        ["backbone", "roi_heads.box_head", "roi_heads.mask_head"],
        ["module:rpn.head", "module:roi_heads.*_predictor"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_detector_of_torchvision_trains_runs_and_is_folded(name: str, tmp_path: Path) -> None:
    build, within, train = CASES[name]
    torch.manual_seed(0)
    model = build().train()
    tuned: nn.Module = utc.compile(model, "lora/all_conv", scene(0), vars={"r": 2}, within=within, train=train)
    again = copy.deepcopy(tuned).eval()
    assert type(tuned) is type(model)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(6):
        torch.manual_seed(step % 2)  # proposals are drawn
        loss = cast("torch.Tensor", sum(tuned(*scene(step % 2)).values()))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.grad is not None], 1.0)
        optimizer.step()
    assert sum(losses[-2:]) < sum(losses[:2])
    utc.save_tuners(tuned, tmp_path)
    folded, report = utc.fold(tuned.eval())
    assert report.is_original and not any(isinstance(m, utc.TunedModule) for m in folded.modules())
    images, _ = scene(99)
    utc.load_tuners(again, tmp_path)
    with torch.no_grad():
        found, expected, loaded = folded(images), tuned(images), again(images)
    for mine, theirs, same in zip(found, expected, loaded, strict=True):
        assert mine.keys() == theirs.keys() and len(theirs["boxes"])
        torch.testing.assert_close(mine["scores"], theirs["scores"], rtol=ROUNDING, atol=ROUNDING)
        assert all(torch.equal(same[key], theirs[key]) for key in theirs)
    zoo.shake(again, 0.1)
    with torch.no_grad():
        assert not torch.equal(again(images)[0]["scores"], expected[0]["scores"])

"""The models of timm and torchvision, with example inputs of their own sizes."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from tools.zoo.rows import Task
from tools.zoo.specimen import Specimen
from tools.zoo.weights import shake, unwritten

_FRAMES = 16
_FLOW = (3, 128, 128)  # raft needs 128 at least
_SEGMENTATION = (3, 224, 224)
_DETECTION = (3, 320, 320)


def timm_names() -> list[str]:
    """Every registered model."""
    import timm

    return list(timm.list_models())


def torchvision_names() -> list[str]:
    """Every registered model: classification, quantised, segmentation, detection, video, optical flow."""
    from torchvision import models

    return list(models.list_models())


def specimen(task: Task) -> Specimen:
    """One model, in eval. Its weights are real where they are computed with, else unwritten."""
    real = task.verify == "full"
    build = {"timm": _timm, "torchvision": _torchvision}[task.library]
    with nullcontext() if real else unwritten():
        found = build(task.name)
    if real:
        shake(found.model)
    found.model.eval()
    return found


def _timm(name: str) -> Specimen:
    import timm
    from timm.data import resolve_model_data_config

    model: nn.Module = timm.create_model(name)
    return Specimen(model, (torch.randn(1, *resolve_model_data_config(model)["input_size"]),))


def _torchvision(name: str) -> Specimen:
    from torchvision import models

    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in accepted:
        options["weights_backbone"] = None
    if "init_weights" in accepted:
        options["init_weights"] = False  # by default googlenet draws from scipy for a minute
    model = builder(**options)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "detection":
        return Specimen(model, ([torch.rand(*_DETECTION)],), dynamic=())
    if kind == "optical_flow":
        return Specimen(model, (torch.randn(1, *_FLOW), torch.randn(1, *_FLOW)))
    if kind == "segmentation":
        return Specimen(model, (torch.randn(1, *_SEGMENTATION),))
    crop = models.get_model_weights(name).DEFAULT.transforms().crop_size
    height, width = crop if len(crop) == 2 else crop * 2
    if isinstance(model, models.VisionTransformer):  # without weights it is built for its own default
        height = width = model.image_size
    frames = (_FRAMES,) if kind == "video" else ()
    return Specimen(model, (torch.randn(1, 3, *frames, height, width),))

"""Small detectors of torchvision with random weights, and scenes for all of them."""

from __future__ import annotations

import torch
from torch import nn

Targets = list[dict[str, torch.Tensor]]


def scene(step: int, size: int = 64) -> tuple[list[torch.Tensor], Targets]:
    """Two images with one bright square each; its box, class, mask and one point, in the middle."""
    generator = torch.Generator().manual_seed(step)
    images, targets = [], []
    for i in range(2):
        image, mask = (
            torch.rand(3, size, size, generator=generator) * 0.1,
            torch.zeros(1, size, size, dtype=torch.uint8),
        )
        x, y = torch.randint(2, size - 34, (2,), generator=generator).tolist()
        image[i, y : y + 32, x : x + 32] = mask[:, y : y + 32, x : x + 32] = 1
        images.append(image)
        points = torch.tensor([[[x + 16.0, y + 16.0, 1.0], [x + 8.0, y + 8.0, 1.0]]])
        box = torch.tensor([[x, y, x + 32, y + 32]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([1 + i]), "masks": mask, "keypoints": points})
    return images, targets


def pyramid() -> nn.Module:
    """Maps at two scales, and a third of them."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = nn.Sequential(*(_down(before, after) for before, after in ((3, 8), (8, 16), (16, 32))))
    return BackboneWithFPN(body, {"1": "0", "2": "1"}, [16, 32], 32)


def _down(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.ReLU())


def _sizes() -> dict[str, int]:
    return {"min_size": 64, "max_size": 64}


def ssd() -> nn.Module:
    """SSD on a backbone of two maps."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    return SSD(Maps(), DefaultBoxGenerator([[2], [2]]), (64, 64), 3, score_thresh=0.0, detections_per_img=20)


class Maps(nn.Module):
    """Two maps as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))
        self.next = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1))
        self.out_channels = [32, 32]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.stem(x)
        return {"first": first, "second": self.next(first)}


def fcos() -> nn.Module:
    """FCOS on a pyramid."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return FCOS(pyramid(), 3, anchor_generator=anchors, score_thresh=0.0, detections_per_img=20, **_sizes())


def _regions() -> dict[str, object]:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    return {
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "pool"], 7, 2),
        "box_head": TwoMLPHead(32 * 49, 64),
        "box_predictor": FastRCNNPredictor(64, 3),
        "box_score_thresh": 0.0,
        "box_detections_per_img": 10,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 50,
        **_sizes(),
    }


def mask_rcnn() -> nn.Module:
    """Mask R-CNN with small heads."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    heads = {
        "mask_roi_pool": MultiScaleRoIAlign(["0", "1", "pool"], 14, 2),
        "mask_head": MaskRCNNHeads(32, (16, 16), 1),
        "mask_predictor": MaskRCNNPredictor(16, 16, 3),
    }
    return MaskRCNN(pyramid(), **_regions(), **heads)


def keypoint_rcnn() -> nn.Module:
    """Keypoint R-CNN with two points and small heads."""
    from torchvision.models.detection import KeypointRCNN
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    heads = {
        "keypoint_roi_pool": MultiScaleRoIAlign(["0", "1", "pool"], 14, 2),
        "keypoint_head": KeypointRCNNHeads(32, (16, 16)),
        "keypoint_predictor": KeypointRCNNPredictor(16, 2),
    }
    return KeypointRCNN(pyramid(), **_regions(), **heads)

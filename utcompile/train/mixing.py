"""Images blended in pairs, by timm.

Sources: mixup (Zhang et al., arXiv 1710.09412), CutMix (Yun et al., arXiv 1905.04899).
"""

from __future__ import annotations

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F

from utcompile.errors import UtcError


class Mixing:
    """Blends each batch with its reverse, and its labels alike; of an odd batch the last image stays as it is.

    Where both are on, each batch gets one of them, by chance. What is drawn depends on NumPy's random state, which is
    seeded per epoch.

    Args:
        mixup, cutmix: alpha of the beta distribution of the shares; 0 is off.
        classes: of the labels.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        self.classes = classes
        self.blend = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes)

    def __call__(self, images: object, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, C, H, W)` and labels `(B,)` as blended images and shares of the classes `(B, classes)`."""
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise UtcError(
                "mixup and cutmix blend images (B, C, H, W), which this data does not have",
                fix="train without them",
                code="train/settings",
            )
        even, shares = len(labels) // 2 * 2, F.one_hot(labels, self.classes).float()
        if not even:
            return images, shares
        mixed, blended = self.blend(images[:even].clone(), labels[:even])
        return torch.cat([mixed, images[even:]]), torch.cat([blended.to(shares), shares[even:]])


def check_mixing(mixup: float, cutmix: float, task: str, processes: int, *, cached: bool) -> None:
    """Refuse mixing where it has no meaning.

    Raises:
        UtcError: the task has no single class per image, there are several processes, or frozen layers are computed
            once per sample.
    """
    if not mixup and not cutmix:
        return
    name = "mixup" if mixup else "cutmix"
    why = None
    if task != "classify":
        why = f"it blends images with one class each, and the task is {task!r}"
    elif processes > 1:
        why = "it blends pairs of a batch, which several processes share"
    elif cached:
        why = "prefix_cache keeps what the frozen layers make of each image, and blended images differ in every epoch"
    if why:
        raise UtcError(f"{name} is not possible here", why=why, fix=f"leave out {name}", code="train/settings")


def soft_cross_entropy(logits: Tensor, shares: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy of shares of classes: for one class per sample, that of `F.cross_entropy` with the same arguments.

    With weights, the mean is over the weights of the samples' classes, as it is for single classes; `F.cross_entropy`
    of shares divides by the number of samples instead.

    Args:
        logits, shares: `(B, classes)`; there may be more logits than shares.
        weights: of the classes, `(logits,)`.
    """
    shares = F.pad(shares, (0, logits.shape[1] - shares.shape[1]))
    weights = torch.ones_like(logits[0]) if weights is None else weights
    smoothed = shares * (1 - smoothing) + smoothing / logits.shape[1]
    losses = -(smoothed * weights * logits.log_softmax(1)).sum()
    return losses / (shares * weights).sum()

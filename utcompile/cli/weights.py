"""State dicts from files, loaded strictly; only a head with other classes may differ, and that is reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from utcompile.cli.early import check_weights
from utcompile.errors import UtcError

_WRAPPERS = ("state_dict", "model")  # what training scripts put a state dict under


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pth` file that contains only plain data.

    Raises:
        UtcError: the file is missing, damaged, would run code, or contains no state dict.
    """
    check_weights(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        data: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes readers raise nearly anything
        raise UtcError(
            "the weights cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="give a .safetensors file, or a state dict saved with torch.save(model.state_dict(), …)",
            code="model/weights",
        ) from error
    for key in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        raise UtcError(
            "the file contains no state dict", where=str(path), fix="save model.state_dict()", code="model/weights"
        )
    return dict(data)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str, num_classes: int | None) -> list[str]:
    """Load a state dict strictly; returns the tensors of a replaced head that keep their random values.

    Args:
        num_classes: of the replaced head. None: nothing may differ.

    Raises:
        UtcError: tensors are missing, unknown, or of another shape than the model's.
    """
    wanted = model.state_dict()
    unknown = sorted(tensors.keys() - wanted.keys())
    missing = sorted(wanted.keys() - tensors.keys())
    if unknown or missing:
        parts = [("missing", missing), ("unknown", unknown)]
        raise UtcError(
            "the weights are not this model's",
            where=where,
            why="; ".join(
                f"{word}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
                for word, names in parts
                if names
            ),
            fix="name the architecture that the file was saved from",
            code="model/weights",
        )
    differing = [name for name, tensor in wanted.items() if tensors[name].shape != tensor.shape]
    head = [name for name in differing if num_classes and _is_head(wanted[name], tensors[name], num_classes)]
    if wrong := [name for name in differing if name not in head]:
        name = wrong[0]
        raise UtcError(
            f"{name} has the shape {list(tensors[name].shape)} in the weights, {list(wanted[name].shape)} in the model",
            where=where,
            fix="replace the head with --num-classes, or name the architecture that the file was saved from",
            code="model/weights",
        )
    model.load_state_dict({name: wanted[name] if name in head else tensor for name, tensor in tensors.items()})
    return head


def _is_head(mine: Tensor, theirs: Tensor, num_classes: int) -> bool:
    """Whether two tensors differ in the number of classes alone."""
    return mine.ndim == theirs.ndim > 0 and mine.shape[0] == num_classes and mine.shape[1:] == theirs.shape[1:]

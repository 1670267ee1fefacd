"""Architectures that nothing was built for: captured at one size, called at three others.

Each call is equal to the model's, bit for bit, or one `UtcError` that names the guard; the table says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import beyond_toys as toys
from torch import nn

import utcompile as utc

T = torch.Tensor


@dataclass(frozen=True)
class Case:
    """A model with inputs by size.

    Attributes:
        sizes: the first is captured, the others are called.
        refused: of the others, those at which the model's Python decides otherwise, to words of the guard.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[..., dict[str, Any]]
    dynamic: dict[str, dict[int, str]]
    sizes: tuple[tuple[int, ...], ...]
    refused: dict[tuple[int, ...], str]
    full: bool = False


def _image(b: int, h: int, w: int) -> dict[str, Any]:
    return {"image": torch.randn(b, 3, h, w)}


def _pixels(b: int, h: int, w: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(b, 3, h, w)}


def _pyramid_image(b: int, h: int, w: int) -> dict[str, Any]:
    return {"x": torch.randn(b, 3, h, w)}


def _ids(b: int, length: int) -> dict[str, Any]:
    return {"ids": torch.randint(0, 20, (b, length))}


def _token_ids(b: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 20, (b, length))}


def _features(b: int, length: int) -> dict[str, Any]:
    return {"features": torch.randn(b, length, 16), "lengths": torch.randint(length // 2, length + 1, (b,))}


def _features_alone(b: int, length: int) -> dict[str, Any]:
    return {"features": torch.randn(b, length, 16)}


def _graph(nodes: int, edges: int) -> dict[str, Any]:
    return {
        "x": torch.randn(nodes, 4),
        "edge_index": torch.randint(0, nodes, (2, edges)),
        "graph": torch.arange(nodes) // 3,
    }


def _segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16, num_labels=5
        )
    )  # fmt: skip


def _rwkv() -> nn.Module:
    from transformers import RwkvConfig, RwkvModel

    config = RwkvConfig(vocab_size=20, context_length=64, hidden_size=8, num_hidden_layers=2, use_cache=False)
    model = RwkvModel(config).eval()
    model(**_token_ids(2, 6))  # rescales weights and sets a flag: before that, capture refuses the model by name
    return model


def _conformer() -> nn.Module:
    from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel

    return Wav2Vec2ConformerModel(
        Wav2Vec2ConformerConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8), conv_stride=(5, 2),
            conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
        )
    )  # fmt: skip


def _wave(b: int, length: int) -> dict[str, Any]:
    return {"input_values": torch.randn(b, length)}


def _pyramid() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None)


_BHW, _BL = {0: "B", 2: "H", 3: "W"}, {0: "B", 1: "L"}
CASES = [
    Case("restormer", toys.Restorer, _image, {"image": _BHW}, ((2, 32, 40), (1, 40, 64), (3, 33, 47), (5, 17, 24)), {}),
    Case("rwkv", toys.Rwkv, _ids, {"ids": {0: "B"}}, ((2, 7), (1, 7), (3, 7), (8, 7)), {}),
    Case("rwkv, its length", toys.Rwkv, _ids, {}, ((2, 7), (1, 7), (3, 9), (2, 4)), {(3, 9): "shape", (2, 4): "shape"}),
    Case(
        "conformer", toys.Conformer, _features, {"features": _BL, "lengths": {0: "B"}}, ((2, 40), (1, 40), (3, 61), (5, 23)), {}
    ),
    Case("conformer, no lengths", toys.Conformer, _features_alone, {"features": _BL}, ((1, 40), (4, 41), (3, 61), (5, 16)), {}),
    Case(
        "graph", toys.GraphNet, _graph, {"x": {0: "N"}, "graph": {0: "N"}, "edge_index": {1: "E"}}, ((6, 9), (12, 7), (3, 20), (31, 1)), {}
    ),
    Case("segformer", _segformer, _pixels, {"pixel_values": _BHW}, ((2, 64, 64), (1, 96, 64), (3, 128, 160), (5, 72, 104)), {}, True),
    Case("rwkv of transformers", _rwkv, _token_ids, {"input_ids": {0: "B"}}, ((2, 6), (1, 6), (3, 6), (7, 6)), {}, True),
    Case("conformer of transformers", _conformer, _wave, {"input_values": _BL}, ((2, 400), (1, 400), (3, 777), (5, 301)), {}, True),
    Case("pyramid", _pyramid, _pyramid_image, {"x": _BHW}, ((2, 64, 64), (1, 96, 64), (3, 65, 97), (1, 130, 70)), {}, True),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=pytest.mark.full if c.full else ()) for c in CASES])
def test_a_model_at_sizes_beyond_its_example(case: Case) -> None:
    model = case.model().eval().requires_grad_(False)
    captured = utc.capture(model, case.inputs(*case.sizes[0]), dynamic=case.dynamic or None)
    for size in case.sizes[1:]:
        given = case.inputs(*size)
        if size in case.refused:
            with pytest.raises(utc.UtcError, match=case.refused[size]):
                captured(**given)
            continue
        expected, found = _leaves(model(**given)), _leaves(captured(**given))
        assert len(expected) == len(found)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), (size, captured.report)


def _leaves(value: Any) -> list[T]:
    """The tensors of an output; of transformers' outputs too."""
    if isinstance(value, T):
        return [value]
    members = value.values() if hasattr(value, "values") else value if isinstance(value, (tuple, list)) else ()
    return [t for member in members for t in _leaves(member)]

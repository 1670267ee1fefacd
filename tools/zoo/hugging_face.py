"""Every architecture of transformers' `AutoModel` mapping, built from its default configuration made small."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tools.zoo.inputs import example_inputs
from tools.zoo.rows import Task
from tools.zoo.shrink import RUNGS, shrunk
from tools.zoo.specimen import Specimen
from tools.zoo.weights import shake, unwritten

_LARGEST = 350_000_000  # parameters of a model that is run
_PACKED = ("image_grid_thw", "video_grid_thw", "grid_thw", "spatial_shapes", "image_sizes")  # sizes as values
# what a default configuration lacks, though the model cannot run without
_NEEDS: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 8},
    "chameleon": {"vocabulary_map": {"<image>": 4, **{f"IMGIMG{chr(65 + i)}Z": 10 + i for i in range(8)}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "emu3": {
        "vocabulary_map": {"<image>": 4, "<|extra_200|>": 5, **{f"<|visual token {i:06}|>": 10 + i for i in range(8)}}
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "hunyuan_vl_text": {"head_dim": 16},
    "informer": {"prediction_length": 8},
    "reformer": {"pad_token_id": 0, "axial_pos_shape": (4, 2)},
    "time_series_transformer": {"prediction_length": 8},
}


def names() -> list[str]:
    """Every model type of the `AutoModel` mapping."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def specimen(task: Task) -> Specimen:
    """One architecture with inputs of all its kinds, as small as it can be built; in eval, with random weights.

    Raises:
        RuntimeError: it can be built in no size; it tells the error of the smallest.
    """
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[task.name](**_NEEDS.get(task.name, {}))
    first: Exception | None = None
    partial: Specimen | None = None  # runs, but not on every kind of its inputs
    for parts in RUNGS:
        try:
            torch.manual_seed(0)
            model = _built(shrunk(default, parts))
            inputs, note = example_inputs(model)
        except Exception as error:  # whatever a library raises
            first = first or error
            continue
        notes = [f"made smaller in {', '.join(parts)}" if parts else "its default size", note]
        dynamic = () if any(n in inputs for n in _PACKED) else None
        found = Specimen(model, inputs, dynamic, "; ".join(filter(None, notes)))
        if not note:
            return found
        partial = partial or found
    if partial is None:
        assert first is not None
        raise first
    return partial


def _built(config: Any) -> nn.Module:
    """The model of a configuration, unless it is too large to be run; it returns no caches."""
    from transformers import AutoModel

    for level in (config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))):
        if hasattr(level, "use_cache"):
            level.use_cache = False
    if config.architectures is None:
        config.architectures = []  # AutoModel chooses among several classes by these
    with unwritten():
        parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if parameters > _LARGEST:
        raise RuntimeError(f"it has {parameters:,} parameters at its smallest, too many to be run")
    model: nn.Module = AutoModel.from_config(config).eval()
    shake(model)
    return model

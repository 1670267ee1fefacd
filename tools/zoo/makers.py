"""One maker for each name that the `forward` of a transformers model may give to an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.zoo.scene import LENGTH, Scene, integer


def make(scene: Scene, name: str) -> dict[str, Any]:
    """The input of this name, with those that belong to it.

    Raises:
        RuntimeError: there is no maker for it.
    """
    if name not in MAKERS:
        raise RuntimeError(f"no example is known for the input {name}")
    made = MAKERS[name](scene)
    return made if isinstance(made, dict) else {name: made}


def _attention_mask(scene: Scene) -> Tensor:
    """The last token of each row is padding, so that the mask matters."""
    mask = torch.ones(scene.batch, LENGTH + sum(scene.placeholders.values()), dtype=torch.long)
    mask[:, -1] = 0
    return mask


def _pixel_values(scene: Scene) -> Any:
    channels, height, width = scene.image
    frames = integer(scene.find("num_frames", default=4))
    b = scene.batch
    shape = scene.shapes.get("pixel_values", 0)
    packed = _packed(scene, "pixel_values", "image_grid_thw")
    return (
        scene.normal(b, channels, height, width),
        packed,
        scene.normal(b, 1, channels, height, width),
        {
            "pixel_values": scene.normal(b, scene.views, channels, height, width),
            "image_sizes": torch.tensor([[height, width]] * b),
        },
        scene.normal(b, frames, channels, height, width),
        {"pixel_values": scene.normal(b, channels, height, width), "image_sizes": torch.tensor([[height, width]] * b)},
        scene.normal(b, channels, 224, 224),
        scene.normal(b, channels, 128, 128),
        _flat_patches(scene),
        _tiles(scene),
    )[shape]


def _packed(scene: Scene, values: str, grid: str) -> dict[str, Any]:
    """Qwen's way: the patches of all images in one row, with each image's grid of time, height and width."""
    side = 2 * integer(scene.find("spatial_merge_size", "merge_size", default=1)) or 4
    numbers = scene.image[0] * integer(scene.find("temporal_patch_size", "patch_temporal", default=1)) * scene.patch**2
    return {
        values: scene.normal(scene.batch * side * side, numbers),
        grid: torch.tensor([[1, side, side]] * scene.batch),
    }


def _flat_patches(scene: Scene) -> dict[str, Any]:
    """SigLIP 2's way: (B, patches, numbers), with each image's grid and a mask."""
    return {
        "pixel_values": scene.normal(scene.batch, 16, scene.image[0] * scene.patch**2),
        "pixel_attention_mask": torch.ones(scene.batch, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * scene.batch),
    }


def _tiles(scene: Scene) -> dict[str, Any]:
    """Mllama's way: (B, images, tiles, C, H, W), with each image's aspect ratio."""
    tiles = integer(scene.find("max_num_tiles", default=4))
    return {
        "pixel_values": scene.normal(scene.batch, 1, tiles, *scene.image),
        "aspect_ratio_ids": torch.ones(scene.batch, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(scene.batch, 1, tiles, dtype=torch.long),
    }


def _features(scene: Scene) -> Any:
    """A spectrogram, (B, T, bins) or (B, bins, T)."""
    bins = integer(scene.find("num_mel_bins", "input_feat_size", "input_dim", "n_mels", within="audio", default=80))
    positions = integer(scene.find("max_source_positions", within="audio", default=64))
    own = integer(scene.find("feature_projection_input_dim", "input_size", default=bins))
    b = scene.batch
    return (
        scene.normal(b, bins, 2 * positions),
        scene.normal(b, 200, bins),
        scene.normal(b, bins, 200),
        scene.normal(b, 200, own),
        scene.normal(b, 1, 200, bins),
        scene.normal(b, 1200, bins),
        scene.normal(b, 200, 2 * bins),
        scene.normal(b, 200, bins * integer(scene.find("num_stacked_frames", default=1))),
    )[scene.shapes.get("input_features", 0)]


def _values(scene: Scene) -> Any:
    """A sound, (B, T) or (B, 1, T); for the Audio Spectrogram Transformer (B, T, bins)."""
    length = integer(scene.find("max_length", default=1024))
    bins = integer(scene.find("num_mel_bins", default=128))
    b = scene.batch
    return (
        scene.normal(b, 9600),
        scene.normal(b, 1, 9600),
        scene.normal(b, length, bins),
        scene.normal(b, 16000),
    )[scene.shapes.get("input_values", 0)]


def _history(scene: Scene) -> Tensor:
    """(B, T) or (B, T, series): as long as the context and the largest lag."""
    context = integer(scene.find("context_length", "prediction_length", default=64))
    lags = scene.find("lags_sequence", default=[0])
    series = integer(scene.find("num_input_channels", "input_size", default=1))
    length = context + (max(lags) if isinstance(lags, (list, tuple)) else 0)
    flat = series == 1 and scene.find("num_input_channels") is None
    return scene.normal(scene.batch, length) if flat else scene.normal(scene.batch, length, series)


def _ones(length: int = LENGTH) -> Callable[[Scene], Tensor]:
    return lambda scene: torch.ones(scene.batch, length, dtype=torch.long)


def _hidden(length: int = LENGTH) -> Callable[[Scene], Tensor]:
    return lambda s: s.normal(
        s.batch, length, integer(s.find("hidden_size", "d_model", "dim", within="text", default=64))
    )


def _boxes(scene: Scene) -> Tensor:
    """(B, length, 4) corners in order."""
    corners = torch.randint(0, 100, (scene.batch, LENGTH, 4), generator=scene.random)
    return torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1)


def _video(scene: Scene) -> Any:
    frames = integer(scene.find("num_frames", "frames_per_clip", default=4))
    shape = (scene.batch, frames, *scene.image)
    return (scene.normal(*shape), _packed(scene, "pixel_values_videos", "video_grid_thw"))[
        scene.shapes.get("pixel_values_videos", 0)
    ]


def shapes_of(scene: Scene, name: str) -> list[int]:
    """In which order the shapes of an input are tried: where a model's own images are large, small ones first."""
    order = list(range(SHAPED[name]))
    if name == "pixel_values" and scene.image[1] > 256:
        order.sort(key=lambda shape: (7, 6).index(shape) if shape in (7, 6) else 2)
    return order


# how many shapes an input is tried in
SHAPED = {"pixel_values": 10, "input_features": 8, "input_values": 4, "pixel_values_videos": 2}
MAKERS: dict[str, Callable[[Scene], Any]] = {
    "input_ids": lambda s: s.tokens(),
    "decoder_input_ids": lambda s: s.tokens(6) if not s.placeholders else s.tokens(),
    "attention_mask": _attention_mask,
    "token_type_ids": lambda s: torch.zeros_like(s.tokens()),
    "mm_token_type_ids": lambda s: (s.tokens() == (s.token_id("image") or -1)).long(),
    "inputs_embeds": _hidden(),
    "bbox": _boxes,
    "pixel_values": _pixel_values,
    "pixel_values_videos": _video,
    "pixel_mask": lambda s: torch.ones(s.batch, *s.image[1:], dtype=torch.long),
    "pixel_attention_mask": lambda s: torch.ones(s.batch, 1, *s.image[1:], dtype=torch.bool),
    "image_sizes": lambda s: torch.tensor([list(s.image[1:])] * s.batch),
    "image_grid_thw": lambda s: _packed(s, "pixel_values", "image_grid_thw"),
    "hidden_states": lambda s: _packed(s, "hidden_states", "grid_thw"),
    "grid_thw": lambda s: {"grid_thw": _packed(s, "hidden_states", "grid_thw")["grid_thw"]},
    "merge_sizes": lambda s: torch.tensor([integer(s.find("spatial_merge_size", "merge_size", default=1))] * s.batch),
    "input_features": _features,
    "input_features_mask": lambda s: torch.ones(s.batch, _features(s).shape[-1], dtype=torch.long),
    "input_values": _values,
    "pixel_position_ids": lambda s: {
        "pixel_values": s.normal(s.batch, 16, s.image[0] * s.patch**2),
        "pixel_position_ids": torch.stack([torch.arange(16) % 4, torch.arange(16) // 4], -1).expand(s.batch, 16, 2),
    },
    "spatial_shapes": lambda s: torch.tensor([[4, 4]] * s.batch),
    "image_attention_mask": lambda s: torch.ones(s.batch, LENGTH, 1, dtype=torch.long),
    "audio_mel": lambda s: s.normal(s.batch, 128, integer(s.find("input_feat_size", default=128))),
    "audio_mel_mask": lambda s: torch.zeros(s.batch, 128, dtype=torch.bool),
    "past_values": _history,
    "past_observed_mask": lambda s: torch.ones_like(_history(s)),
    "past_time_features": lambda s: s.normal(*_history(s).shape[:2], integer(s.find("num_time_features", default=0))),
    "future_values": lambda s: s.normal(s.batch, integer(s.find("prediction_length", default=8))),
    "future_time_features": lambda s: s.normal(
        s.batch, integer(s.find("prediction_length", default=8)), integer(s.find("num_time_features", default=0))
    ),
    "past_values_padding": lambda s: torch.zeros(s.batch, _history(s).shape[1], dtype=torch.long),
    "freq": lambda s: torch.zeros(s.batch, 1, dtype=torch.long),
    "states": lambda s: s.normal(s.batch, LENGTH, integer(s.find("state_dim", default=17))),
    "actions": lambda s: s.normal(s.batch, LENGTH, integer(s.find("act_dim", default=4))),
    "rewards": lambda s: s.normal(s.batch, LENGTH, 1),
    "returns_to_go": lambda s: s.normal(s.batch, LENGTH, 1),
    "timesteps": lambda s: torch.arange(LENGTH).expand(s.batch, -1),
    "latents": lambda s: s.normal(s.batch, integer(s.find("hidden_size", "latent_dim", default=64)), LENGTH),
    "query_embeds": _hidden(4),
    "encoder_hidden_states": _hidden(),
    "qformer_input_ids": lambda s: torch.randint(10, 200, (s.batch, LENGTH), generator=s.random),
    "decoder_input_values": lambda s: s.normal(s.batch, 6, integer(s.find("num_mel_bins", default=80))),
    "visual_feats": lambda s: s.normal(s.batch, 4, integer(s.find("visual_feat_dim", default=2048))),
    "visual_pos": lambda s: s.normal(s.batch, 4, integer(s.find("visual_pos_dim", default=4))),
    "task_inputs": lambda s: s.tokens(integer(s.find("task_seq_len", default=77)), words=200),
    "prompt_pixel_values": lambda s: s.normal(s.batch, *s.image),
    "prompt_masks": lambda s: s.normal(s.batch, *s.image),
    "classes_input_ids": lambda s: torch.randint(10, 200, (s.batch * 2, LENGTH), generator=s.random),
    "classes_attention_mask": lambda s: torch.ones(s.batch * 2, LENGTH, dtype=torch.long),
    "classes_structure": lambda s: torch.full((s.batch,), 2),
    "tasks_input_ids": lambda s: torch.randint(10, 200, (s.batch, LENGTH), generator=s.random),
    "tasks_attention_mask": _ones(),
    "inputs": lambda s: s.normal(s.batch, LENGTH, integer(s.find("d_model", default=64))),
    "audio_codes": lambda s: torch.randint(0, 64, (s.batch, integer(s.find("num_codebooks", default=8)), LENGTH)),
}

"""A configuration of transformers made small: few layers, narrow, few words, small images; of every kind still one.

Everything goes by the names and values of attributes, so that an architecture needs no special code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.zoo.names import (
    GRID,
    INDICES,
    LAYER_COUNT,
    LAYER_RULES,
    PLACEHOLDER,
    SECTIONED,
    SPECIAL,
    STAGE_NAMES,
    STAGES,
    TOKEN,
    WIDTH_RULES,
    WORD_RULES,
    Rules,
)

LAYERS, WIDTHS, WORDS, IMAGES = "layers", "widths", "words", "images"
# what is made small, most first: where a model cannot be built or run one way, the next is tried
RUNGS = (
    (LAYERS, WIDTHS, WORDS, IMAGES),
    (LAYERS, WIDTHS, WORDS),
    (LAYERS, WORDS, IMAGES),
    (LAYERS, WORDS),
    (LAYERS,),
    (),
)


def shrunk(config: Any, parts: tuple[str, ...]) -> Any:
    """A new configuration of the same class, smaller in the parts that are named (of `RUNGS`)."""
    plain = _small(config, parts, {})
    return type(config).from_dict(plain) if parts else config


def _small(config: Any, parts: tuple[str, ...], tokens: dict[int, int]) -> dict[str, Any]:
    """A configuration as a dict, made small; its nested ones too.

    Args:
        tokens: what token ids have become so far, so that one id stays one id at every level.
    """
    values = config.to_dict()
    staged = any(STAGES.fullmatch(k) and _is_list(v) and len(v) > 1 for k, v in values.items() if k not in STAGE_NAMES)
    depth = _Depth(values, staged)
    grid = _grid(values) if IMAGES in parts and not staged else {}
    result: dict[str, Any] = {}
    for name, value in values.items():
        nested = vars(config).get(name)
        if hasattr(nested, "to_dict") and hasattr(nested, "model_type"):
            result[name] = _small(nested, parts, tokens)
            continue
        if LAYERS in parts and name in STAGE_NAMES:
            if staged:
                result[name] = value
                continue
            if name != "out_indices":
                continue  # made anew for the layers that are left
        if name == "per_layer_config" and isinstance(value, dict):
            value = {k: _layer(v, parts) for k, v in value.items() if int(k) < depth.layers or LAYERS not in parts}
        if LAYERS in parts:
            value = depth.small(name, value)
        if WIDTHS in parts and not staged:
            value = _by_rules(WIDTH_RULES, name, value)
        if WORDS in parts:
            value = _by_rules(WORD_RULES, name, _moved(name, value, tokens))
        if name == "mm_tokens_per_image" and IMAGES in parts:
            value = 4
        result[name] = grid.get(name, value)
    if WIDTHS in parts and not staged:
        _keep_ratios(values, result)
        _fit_rope(result)
    return result


def _layer(values: Any, parts: tuple[str, ...]) -> Any:
    """The values that belong to one layer alone."""
    if WIDTHS not in parts or not isinstance(values, dict):
        return values
    new = {k: _by_rules(WIDTH_RULES, k, v) for k, v in values.items()}
    _keep_ratios(values, new)
    return new


class _Depth:
    """How many layers one level of a configuration keeps: two, or as many as it takes to have one of every kind."""

    def __init__(self, values: Mapping[str, Any], staged: bool) -> None:
        counts = {v for k, v in values.items() if _is_int(v) and v > 2 and LAYER_COUNT.fullmatch(k)}
        kinds = [v for k, v in values.items() if _is_list(v) and len(v) in counts and not _is_indices(k, v)]
        marked = [v for k, v in values.items() if _is_indices(k, v)]
        longest = max((_prefix_with_all(v) for v in kinds), default=2)
        self.layers = min(8, max(2, longest, *(min(len(v), 4) for v in marked), 2))
        self._counts, self._staged = counts, staged

    def small(self, name: str, value: Any) -> Any:
        """An attribute's value for so many layers."""
        if _is_int(value):
            if LAYER_COUNT.fullmatch(name):
                return min(value, self.layers)
            return _by_rules(LAYER_RULES, name, value)
        if not _is_list(value):
            return value
        if name in ("depths", "stage_numb_of_layers", "block_sizes"):
            return [min(v, 2) for v in value]
        if _is_indices(name, value) and max(value) >= self.layers and not self._staged:
            kept = min(len(value), self.layers)
            return list(range(self.layers - kept, self.layers))
        if len(value) in self._counts and not _is_indices(name, value):
            return value[: self.layers]
        return value


def _grid(values: Mapping[str, Any]) -> dict[str, Any]:
    """An image of four by four patches, and what is counted in patches."""
    image: Any = values.get("image_size")
    patch: Any = values.get("patch_size")
    sides = {v for v in (image if _is_list(image) else [image]) if _is_int(v)}
    if not _is_int(patch) or patch < 8 or len(sides) > 1:
        return {}
    new: dict[str, Any] = {}
    if sides and min(sides) > 4 * patch:
        new["image_size"] = [4 * patch] * len(image) if _is_list(image) else 4 * patch
    if "image_embedding_size" in values:
        new["image_embedding_size"] = 4
    # 16 squares count with or without an image size: Qwen's towers know only the number of positions
    new.update({k: 16 for k, v in values.items() if GRID.fullmatch(k) and _is_int(v) and v > 16})
    return new


def _keep_ratios(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Where every head had its own keys and values, it keeps them; what a default leaves open is filled in."""
    heads = next((k for k in ("num_attention_heads", "n_head", "num_heads") if _is_int(new.get(k))), None)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads and name in old and old[name] in (old.get(heads), None):
            new[name] = new[heads]
    if heads and "head_dim" in new and new["head_dim"] is None and _is_int(new.get("hidden_size")):
        new["head_dim"] = new["hidden_size"] // new[heads]
    if _is_int(new.get("state_size")) and _is_int(new.get("num_heads")) and "expand" in new:
        new["num_heads"] = new["expand"] * new["hidden_size"] // new["head_dim"]  # Mamba 2


def _fit_rope(new: dict[str, Any]) -> None:
    """Sections of a rotary embedding (Qwen-VL) must add up to half of the rotated dimensions of a head."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = new.get(name)
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            continue
        default = (16, 24, 24) if SECTIONED.fullmatch(str(new.get("model_type"))) else None
        sections = rope.get("mrope_section") or default
        if sections is None:
            continue
        share = rope.get("partial_rotary_factor") or new.get("partial_rotary_factor") or 1.0
        half = 8
        if _is_int(new.get("head_dim")):
            new["head_dim"] = int(16 / share)
        else:
            half = int(8 * share)
        parts = [half * s // sum(sections) for s in sections]
        parts[0] += half - sum(parts)
        new[name] = {**rope, "mrope_section": parts}


def _moved(name: str, value: Any, tokens: dict[int, int]) -> Any:
    """Token ids beyond the small vocabulary get new ones, each its own; so do placeholders without one."""
    if not TOKEN.fullmatch(name):
        return value
    if value is None and PLACEHOLDER.fullmatch(name):
        return tokens.setdefault(-1, SPECIAL + len(tokens))
    if _is_list(value):
        return [_moved(name, v, tokens) for v in value]
    if _is_int(value) and value >= 256:
        return tokens.setdefault(value, SPECIAL + len(tokens))
    return value


def _by_rules(rules: Rules, name: str, value: Any) -> Any:
    if not _is_int(value) or value <= 0:
        return value
    return next((min(value, most) for names, most in rules if names.fullmatch(name)), value)


def _prefix_with_all(kinds: list[Any]) -> int:
    """How many entries it takes to have seen every different one."""
    return 1 + max(i for i, kind in enumerate(kinds) if kind not in kinds[:i])


def _is_indices(name: str, value: Any) -> bool:
    """Whether a list names layers by their numbers."""
    if not (INDICES.fullmatch(name) and _is_list(value) and value):
        return False
    return all(_is_int(v) and v >= 0 for v in value) and len(set(value)) == len(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))

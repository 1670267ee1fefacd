"""Prefix tuning of PEFT: the learned keys and values of every layer, and where they may be put before ours.

PEFT hands them to a language model as a cache, so that the model counts the positions of the text from the prefix's
length on, and a window of attention counts the prefix too. Here the caller gives the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from utcompile.errors import UtcError
from utcompile.rewrite.peft_config import PeftConfig
from utcompile.rewrite.tuned import TunedModule

TENSOR = "prompt_embeddings"


@dataclass(frozen=True)
class PeftPrefix:
    """The prefixes of a checkpoint.

    Attributes:
        layers: keys and values of each layer, `(heads, length, d)`.
        length: how many.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int


def read_prefix(tensors: Mapping[str, torch.Tensor], config: PeftConfig) -> PeftPrefix:
    """Take the prefixes apart: PEFT keeps `(length, layers · 2 · heads · d)`.

    Raises:
        UtcError: they are not there, have another shape, or are for no language model.
    """
    if config.get("task_type") != "CAUSAL_LM" or config.get("num_transformer_submodules") != 1:
        raise UtcError(
            "prefix tuning is read of language models that only decode",
            where=config.where,
            why=f"task_type is {config.get('task_type')!r}: how other models take a prefix is their own affair",
        )
    value, layers, heads = tensors.get(TENSOR), config.get("num_layers"), config.get("num_attention_heads")
    counts = [n if isinstance(n, int) and n > 0 else 0 for n in (layers, heads)]
    numbers = 2 * counts[0] * counts[1]
    if value is None or value.dim() != 2 or numbers == 0 or value.shape[1] % numbers:
        shape = None if value is None else list(value.shape)
        raise UtcError(
            f"{TENSOR} do not fit num_layers and num_attention_heads", where=config.where, why=f"shape {shape}"
        )
    each = value.view(len(value), 2 * counts[0], counts[1], -1).permute(1, 2, 0, 3)
    return PeftPrefix(tuple((each[2 * i], each[2 * i + 1]) for i in range(counts[0])), len(value))


def check_positions(tuned: TunedModule, length: int) -> None:
    """Check that a model can be given the positions that PEFT would count.

    Raises:
        UtcError: it takes none, or looks through a window, which would count the prefix.
    """
    config = tuned.model_attributes.get("config")
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        raise UtcError("the model looks through a sliding window, and in PEFT the window counts the prefix too")
    if all(node.op != "placeholder" or node.name != "position_ids" for node in tuned.graph.nodes):
        raise UtcError(
            f"PEFT counts positions from {length} on behind this prefix, and this capture is without position_ids "
            f"(give it {length}, {length + 1}, …, in the example and in every call)"
        )

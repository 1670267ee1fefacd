"""What the example inputs of one transformers model have in common: sizes, token ids, random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LENGTH = 8  # tokens
_WORDS = 250  # token ids are below: the special ones of a shrunken configuration lie above


class Scene:
    """What the inputs of one model have in common.

    Attributes:
        shapes: which of its shapes an input takes, for those that have several (`SHAPED`).
        views: how many views of one image there are, where a model takes several.
        placeholders: how many image, video or audio tokens stand in each row of the text.
    """

    batch = 2

    def __init__(self, config: Any) -> None:
        self.config = config
        self.shapes: dict[str, int] = {}
        self.placeholders: dict[str, int] = {}
        self.views = 2
        self.random = torch.Generator().manual_seed(0)

    def find(self, *names: str, default: Any = None, within: str = "") -> Any:
        """The first of these attributes that the configuration has, or one nested in it, nearest first.

        Args:
            within: nested configurations whose name contains this come first.
        """
        levels = _levels(self.config, "")
        levels.sort(key=lambda level: bool(within) and within not in level[0])
        for name in names:
            for _, level in levels:
                try:
                    value = getattr(level, name, None)
                except Exception:  # some attributes exist by layer only, and say so
                    continue
                if value is not None and not isinstance(value, bool):
                    return value
        return default

    def token_id(self, kind: str) -> int | None:
        """The placeholder of images, videos or sounds."""
        found = self.find(f"{kind}_token_id", f"{kind}_token_index", f"{kind}_soft_token_id")
        return found if isinstance(found, int) else None

    def normal(self, *shape: int) -> Tensor:
        """Random numbers."""
        return torch.randn(*shape, generator=self.random)

    def tokens(self, length: int | None = None, words: int | None = None) -> Tensor:
        """(B, length) token ids that are nothing special, with the placeholders of each row in front."""
        words = min(words or self.find("vocab_size", within="text", default=_WORDS), _WORDS)
        ids = torch.randint(min(10, words - 1), words, (self.batch, length or LENGTH), generator=self.random)
        placed = [torch.full((self.batch, n), self.token_id(k) or 0) for k, n in self.placeholders.items()]
        return torch.cat([ids[:, :1], *placed, ids[:, 1:]], 1)

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        size = self.find("image_size", "img_size", "input_size", within="vision", default=64)
        if isinstance(size, dict):
            size = [size.get("height", 64), size.get("width", 64)]
        height, width = (
            size[-2:] if isinstance(size, (list, tuple)) and len(size) > 1 else (integer(size), integer(size))
        )
        channels = self.find("num_channels", "in_channels", "in_chans", "input_channels", within="vision", default=3)
        return channels if isinstance(channels, int) and channels < 8 else 3, height, width

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return integer(self.find("patch_size", within="vision", default=16))


def integer(size: Any) -> int:
    return int(size[0]) if isinstance(size, (list, tuple)) else int(size)


def _levels(config: Any, name: str) -> list[tuple[str, Any]]:
    nested = [(k, v) for k, v in vars(config).items() if hasattr(v, "to_dict") and hasattr(v, "model_type")]
    return [(name, config), *(level for k, v in nested for level in _levels(v, f"{name}.{k}"))]

"""Models of transformers in local folders: `hf:DIR`, with a head by `hf:DIR@text`, `@image`, `@segment` or `@base`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utcompile.cli.preset import Preset
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject, Keywords

HEADS = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "segment": "AutoModelForSemanticSegmentation",
    "base": "AutoModel",
}
HEAD_OF_TASK = {
    "text": "text", "classify": "image", "multilabel": "image", "regress": "image", "segment": "segment",
}  # fmt: skip
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def split_head(name: str) -> tuple[Path, str | None]:
    """`DIR@text` as the folder and the head; a folder may have `@` in its name."""
    folder, at, head = name.rpartition("@")
    if at and head in HEADS:
        return Path(folder), head
    return Path(name), None


def with_head(spec: str, task: str) -> str:
    """A model's spec with the head that a task needs, where it names none and its own is another."""
    kind, _, name = spec.partition(":")
    if kind != "hf" or task not in HEAD_OF_TASK or split_head(name)[1] is not None:
        return spec
    return f"{spec}@{HEAD_OF_TASK[task]}"


class HuggingFace:
    """A folder with `config.json`, and with weights unless random ones will do."""

    runs_code = False

    def __init__(self, name: str) -> None:
        folder, self.head = split_head(name)
        self.folder = folder.resolve()
        self.spec = f"hf:{self.folder}{f'@{self.head}' if self.head else ''}"
        path = self.folder / "config.json"
        if not path.is_file():
            raise UtcError(
                "the folder contains no model of transformers",
                where=str(folder),
                why=f"there is no {path}",
                fix="give a local folder that `save_pretrained` wrote; names on the hub are not downloaded",
                code="model/unknown",
            )
        try:
            self.config: JsonObject = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UtcError(
                "the configuration cannot be read", where=str(path), why=str(error), code="model/build"
            ) from error

    def takes_num_classes(self) -> bool:
        """Whether a head of another size can be made."""
        return self._class_name() != "AutoModel"

    @property
    def is_vision(self) -> bool:
        """Whether its input is images."""
        return any(key in self.config for key in ("image_size", "num_channels", "patch_size", "patch_sizes"))

    def preset(self) -> Preset:
        """Size and normalisation of its images, from `preprocessor_config.json`."""
        size = self.config.get("image_size")
        path, how = self.folder / "preprocessor_config.json", Keywords()
        if path.is_file():
            try:
                how = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                how = {}
        stated = how.get("crop_size") or how.get("size") or size or 224
        if isinstance(stated, dict):
            stated = stated.get("height") or stated.get("shortest_edge") or 224
        height = stated[0] if isinstance(stated, list) else stated
        if isinstance(size, int):
            height = size  # what its position embeddings are made for
        channels, plain = int(self.config.get("num_channels", 3)), Preset()
        mean, std = how.get("image_mean", plain.mean), how.get("image_std", plain.std)
        kind = _RESAMPLING.get(how.get("resample", 3), "bicubic")
        return Preset(
            (channels, int(height), int(height)), tuple(mean), tuple(std), kind, float(how.get("crop_pct") or 1.0)
        )

    def inputs(self, batch: int, seed: int) -> dict[str, Tensor] | None:
        """Example inputs by name; None where they are images."""
        import torch

        if self.is_vision:
            return None
        length = min(16, int(self.config.get("max_position_embeddings", 16)))
        generator = torch.Generator().manual_seed(seed)
        words = min(100, int(self.config.get("vocab_size", 100)))
        ids = torch.randint(min(5, words - 1), words, (batch, length), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        """The model, with a new head of `num_classes` where this is given."""
        import transformers

        options: Keywords = {} if num_classes is None else {"num_labels": num_classes}
        name, folder = self._class_name(), str(self.folder)
        cls: Any = getattr(transformers, name, None)
        if cls is None:
            raise UtcError(
                f"transformers has no class {name!r}",
                where=str(self.folder / "config.json"),
                fix=f"name the head: {', '.join(f'hf:DIR@{head}' for head in HEADS)}",
                code="model/build",
            )
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # of a head that is new, as it should be
        transformers.logging.disable_progress_bar()
        try:
            if pretrained:
                model: nn.Module = cls.from_pretrained(
                    folder, local_files_only=True, ignore_mismatched_sizes=num_classes is not None, **options
                )
            else:
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)
                make = cls.from_config if name.startswith("Auto") else cls
                model = make(config)
        except Exception as error:  # transformers raises dozens of classes
            raise _unbuilt(self.spec, error, pretrained) from error
        finally:
            transformers.logging.set_verbosity(before)
        _settle(model)
        return model.float()

    def _class_name(self) -> str:
        if self.head is not None:
            return HEADS[self.head]
        names = self.config.get("architectures") or []
        return str(names[0]) if names else "AutoModel"


def _settle(model: nn.Module) -> None:
    """No cache, and a token to pad with: a classifier of a decoder takes one text at a time otherwise."""
    config: Any = model.config
    if getattr(config, "use_cache", False):
        config.use_cache = False
    if getattr(config, "pad_token_id", 0) is None and getattr(config, "eos_token_id", None) is not None:
        end = config.eos_token_id
        config.pad_token_id = end[0] if isinstance(end, list) else end


def _unbuilt(spec: str, error: Exception, pretrained: bool) -> UtcError:
    why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not pretrained:
        return UtcError(f"{spec} cannot be built", why=why, code="model/build")
    fix = "give a folder with the weights, or train from random weights with --no-pretrained"
    return UtcError(f"the weights of {spec} cannot be loaded", why=why, fix=fix, code="model/weights")

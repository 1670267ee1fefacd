"""`-m`: which model is meant, and how it is built again, bit for bit, when a run is folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utcompile.cli import output
from utcompile.cli.given_inputs import Inputs, read_example, sized_inputs
from utcompile.cli.hf import HuggingFace
from utcompile.cli.preset import Preset
from utcompile.cli.sources import Source, source_of
from utcompile.cli.weights import load_weights, read_weights
from utcompile.errors import UtcError
from utcompile.plain_data import Keywords

_MOST_PIXELS, _MOST_CLASSES = 2**27, 2**20  # of one image, and of a head


@dataclass(frozen=True)
class ModelChoice:
    """Everything that decides a model and its weights; a run's manifest keeps it.

    Attributes:
        spec: `timm:resnet50`, `file.py:factory` …
        num_classes: of a new head; None keeps the model's own.
        weights: a file to load; None where there is none.
        pretrained: whether the library's pretrained weights are fetched.
        seed: of whatever is random: all weights, or the new head.
        input_size: (C, H, W); None for the model's own.
        example_from: where example inputs come from: `file.npz` or `file.py:function`.
        sizes: of example inputs by name: `input_ids=2,16`. A run does not keep these two: it has its inputs' shapes.
        within: globs of the submodules that are tuned; none where the whole model is one graph.
    """

    spec: str
    num_classes: int | None = None
    weights: str | None = None
    pretrained: bool = False
    seed: int = 0
    input_size: tuple[int, ...] | None = None
    example_from: str | None = None
    sizes: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """What the spec names.

        Raises:
            UtcError: nothing of that kind, or of that name.
        """
        return source_of(self.spec)

    def preset(self) -> Preset:
        """Size and normalisation of the images, without building the model."""
        own = self.source.preset()
        if self.input_size is None:
            return own
        size = self.input_size if len(self.input_size) == 3 else (own.input_size[0], *self.input_size * 2)
        return replace(own, input_size=size)

    def build(self) -> nn.Module:
        """The model, in eval mode; the same for the same choice. The caller's random state stays as it was.

        Raises:
            UtcError: it cannot be built so, its weights cannot be fetched, or `weights` does not fit.
        """
        size = self.preset().input_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.source.build(self.num_classes, self.pretrained and self.weights is None, size)
        if self.weights is not None:
            tensors = read_weights(Path(self.weights))
            if kept := load_weights(model, tensors, self.weights, self.num_classes):
                output.progress(f"the new head keeps random values: {', '.join(kept)}")
        return model.eval()

    def example(self, batch: int = 2) -> Tensor:
        """Random images `(B, C, H, W)`, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(batch, *self.preset().input_size, generator=generator)

    @property
    def takes_images(self) -> bool:
        """Whether the example inputs are images; not where others are given, nor for models of texts."""
        source = self.source
        return (
            self.example_from is None
            and not self.sizes
            and not (isinstance(source, HuggingFace) and not source.is_vision)
        )

    def inputs(self, batch: int = 2) -> Inputs:
        """Example inputs of the model: those that were given, or images, or token ids for a model of texts.

        Raises:
            UtcError: they cannot be read or made.
        """
        if self.example_from is not None:
            return read_example(self.example_from)
        if self.sizes:
            return sized_inputs(self.sizes, self.seed)
        source = self.source
        texts = source.inputs(batch, self.seed) if isinstance(source, HuggingFace) else None
        return (self.example(batch),) if texts is None else texts

    def as_dict(self) -> dict[str, object]:
        """Plain data for a manifest; paths are absolute, so that the run may be folded from anywhere."""
        weights = str(Path(self.weights).resolve()) if self.weights else None
        size = list(self.preset().input_size)
        kept = {k: v for k, v in asdict(self).items() if k not in ("example_from", "sizes", "within")}
        parts = {"within": list(self.within)} if self.within else {}
        return {**kept, "spec": self.source.spec, "weights": weights, "input_size": size, **parts}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> ModelChoice:
        """Read a manifest's entry, which anybody may have written.

        Raises:
            UtcError: it is no such entry.
        """
        kinds: Keywords = {
            "spec": str,
            "num_classes": (int, type(None)),
            "weights": (str, type(None)),
            "pretrained": bool,
            "seed": int,
            "input_size": list,
        }
        good = isinstance(data, Mapping) and all(isinstance(data.get(k, ...), kind) for k, kind in kinds.items())
        within = data.get("within", []) if good else []
        if (
            not good
            or not isinstance(within, list)
            or not all(isinstance(glob, str) for glob in within)
            or len(data["input_size"]) != 3
            or not all(type(s) is int and s > 0 for s in data["input_size"])
            or not -(2**63) <= data["seed"] < 2**64
        ):
            raise UtcError(
                "the manifest does not say how the model is built",
                where=where,
                fix="name the model with -m",
                code="checkpoint/damaged",
            )
        if prod(data["input_size"]) > _MOST_PIXELS or not 0 < (data["num_classes"] or 1) <= _MOST_CLASSES:
            raise UtcError(
                "the manifest names a size that is too large",
                where=where,
                why=f"input_size is {data['input_size']}, num_classes {data['num_classes']}",
                fix="name the model with -m",
                code="checkpoint/damaged",
            )
        named = {k: data[k] for k in kinds if k != "input_size"}
        return cls(**named, input_size=tuple(data["input_size"]), within=tuple(within))

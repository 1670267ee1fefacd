"""Where a model comes from: timm, torchvision, a factory function, or the demo's embedded one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from torch import nn

from utcompile.cli.hf import HuggingFace
from utcompile.cli.hub_reach import offline_if_unreachable
from utcompile.cli.options import SPECS
from utcompile.cli.preset import Preset
from utcompile.cli.user_code import called, function_in
from utcompile.errors import UtcError, did_you_mean
from utcompile.plain_data import Keywords

_OFFLINE = "download them elsewhere and pass --weights FILE, or train from random weights with --no-pretrained"


class Source(Protocol):
    """Builds one model.

    Attributes:
        spec: how a manifest names it.
        runs_code: whether building it runs a user's own code.
    """

    @property
    def spec(self) -> str: ...

    @property
    def runs_code(self) -> bool: ...

    def preset(self) -> Preset:
        """Size and normalisation of its images."""

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        """Make it; random weights come from the global generator."""

    def takes_num_classes(self) -> bool:
        """Whether `build` can make a head of another size."""


def source_of(spec: str) -> Source:
    """What a text such as `timm:resnet50` names.

    Raises:
        UtcError: no such kind or name.
    """
    kind, colon, name = spec.rpartition(":") if ".py:" in spec else spec.partition(":")
    if not colon or not name or not kind:
        raise UtcError(f"{spec!r} names no model", fix=f"give {SPECS}", code="model/unknown")
    if kind == "timm":
        return _Timm(name)
    if kind == "torchvision":
        return _Torchvision(name)
    if kind == "hf":
        return HuggingFace(name)
    if kind == "demo":
        return _Demo(name)
    if kind.endswith(".py") or all(part.isidentifier() for part in kind.split(".")):
        return _Factory(kind, name)
    raise UtcError(f"{spec!r} names no model", fix=f"give {SPECS}", code="model/unknown")


class _Library:
    runs_code = False

    def takes_num_classes(self) -> bool:
        """All of them do."""
        return True


class _Timm(_Library):
    def __init__(self, name: str) -> None:
        import timm

        if not timm.is_model(name):
            fix = did_you_mean(name, timm.list_models())
            raise UtcError(
                f"timm has no model {name!r}", fix=f"{fix} List them with timm.list_models()", code="model/unknown"
            )
        self.name, self.spec = name, f"timm:{name}"
        try:
            self.config = timm.get_pretrained_cfg(name)
        except RuntimeError as error:  # `resnet50.nowhere`
            tags = [n for n in timm.list_pretrained() if n.partition(".")[0] == name.partition(".")[0]]
            fix = did_you_mean(name, tags)
            raise UtcError(f"timm has no weights {name!r}", why=str(error), fix=fix, code="model/weights") from error

    def preset(self) -> Preset:
        from timm.data import resolve_data_config

        config = resolve_data_config(pretrained_cfg=self.config.to_dict() if self.config else {})
        return Preset(**{k: config[k] for k in Preset.__dataclass_fields__})

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        import timm

        if pretrained and not (self.config and self.config.has_weights):
            raise UtcError(f"timm has no pretrained weights for {self.name!r}", fix=_OFFLINE, code="model/weights")
        own, options = self.preset().input_size, Keywords()
        if num_classes is not None:
            options["num_classes"] = num_classes
        if input_size[0] != own[0]:
            options["in_chans"] = input_size[0]
        if input_size[1:] != own[1:] and self.config and self.config.fixed_input_size:
            options["img_size"] = input_size[1:]
        try:
            with offline_if_unreachable() if pretrained else nullcontext():
                model: nn.Module = timm.create_model(self.name, pretrained=pretrained, **options)
        except Exception as error:  # the hub's client, its transport and timm raise dozens of classes
            raise _unbuilt(self.spec, error, pretrained, options) from error
        return model


class _Torchvision(_Library):
    def __init__(self, name: str) -> None:
        from torchvision import models

        known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
        if name not in known:
            raise UtcError(
                f"torchvision has no classification or segmentation model {name!r}",
                fix=did_you_mean(name, known),
                code="model/unknown",
            )
        self.name, self.spec = name, f"torchvision:{name}"
        self.weights, self._builder = models.get_model_weights(name).DEFAULT, models.get_model_builder(name)

    @property
    def _segments(self) -> bool:
        return "weights_backbone" in inspect.signature(self._builder).parameters

    def preset(self) -> Preset:
        transform = self.weights.transforms()
        if not hasattr(transform, "crop_size"):  # of segmentation
            height, mean, std = transform.resize_size[0], tuple(transform.mean), tuple(transform.std)
            return Preset((3, height, height), mean, std, "bilinear", 1.0)
        height = transform.crop_size[0]
        share = round(height / transform.resize_size[0], 4)
        mean, std = tuple(transform.mean), tuple(transform.std)
        return Preset((3, height, height), mean, std, transform.interpolation.value, share)

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        from torchvision import models

        from utcompile.cli.weights import load_weights

        options: dict[str, object] = {} if num_classes is None else {"num_classes": num_classes}
        if self._segments:
            options["weights_backbone"] = None
        if "init_weights" in inspect.signature(self._builder).parameters:
            options["init_weights"] = True  # the default of these warns
        if self.name.startswith("vit_") and input_size[1:] != self.preset().input_size[1:]:
            options["image_size"] = input_size[1]
        try:
            model: nn.Module = models.get_model(self.name, weights=None, **options)
            if pretrained:
                tensors = self.weights.get_state_dict(check_hash=True)
        except Exception as error:
            raise _unbuilt(self.spec, error, pretrained, options) from error
        if pretrained:
            if self._segments:  # what helps training and is not used
                tensors = {n: t for n, t in tensors.items() if not n.startswith("aux_classifier.")}
            load_weights(model, tensors, f"{self.spec} {self.weights.name}", num_classes)
        return model


class _Factory:
    runs_code = True

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        if module.endswith(".py"):
            self.module = str(Path(module).resolve())
        self.spec = f"{self.module}:{name}"

    def preset(self) -> Preset:
        return Preset()

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        factory, options = self._factory(), dict[str, object]()
        if num_classes is not None:
            if not _takes(factory, "num_classes"):
                raise UtcError(
                    f"the factory takes no num_classes, so a head of {num_classes} classes is not possible",
                    where=self.spec,
                    fix=f"write def {self.name}(num_classes=…), or leave out --num-classes where its head fits",
                    code="model/build",
                )
            options["num_classes"] = num_classes
        model = called(factory, self.spec, "factory", **options)
        if not isinstance(model, nn.Module):
            raise UtcError(
                f"the factory returned a {type(model).__name__}",
                where=self.spec,
                fix="return an nn.Module",
                code="model/build",
            )
        return model

    def takes_num_classes(self) -> bool:
        """Whether a head of another size can be made: the factory has the parameter."""
        return _takes(self._factory(), "num_classes")

    def _factory(self) -> Callable[..., object]:
        return function_in(self.module, self.name, "model")


class _Demo(_Library):
    def __init__(self, name: str) -> None:
        if name != "efficientnet_lite0":
            raise UtcError(f"the demo has no model {name!r}", fix="give demo:efficientnet_lite0", code="model/unknown")
        self.spec = f"demo:{name}"

    def preset(self) -> Preset:
        return Preset()

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        from utcompile.cli.demo_data import efficientnet_lite0

        return efficientnet_lite0(num_classes)


def _takes(factory: Callable[..., object], name: str) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def _unbuilt(spec: str, error: Exception, pretrained: bool, options: dict[str, object]) -> UtcError:
    why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if pretrained:
        return UtcError(
            f"the pretrained weights of {spec} cannot be loaded", why=why, fix=_OFFLINE, code="model/weights"
        )
    given = ", ".join(f"{k}={v}" for k, v in options.items()) or "its defaults"
    return UtcError(f"{spec} cannot be built with {given}", why=why, code="model/build")

"""Where a model comes from: timm, torchvision, a factory function, or the demo's embedded one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import nn

from utcompile.cli.options import SPECS
from utcompile.errors import UtcError, did_you_mean

_OFFLINE = "download them elsewhere and pass --weights FILE, or train from random weights with --no-pretrained"


@dataclass(frozen=True)
class Preset:
    """The images that a model was made for."""

    input_size: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875


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
    if kind == "demo":
        return _Demo(name)
    if kind.endswith(".py") or all(part.isidentifier() for part in kind.split(".")):
        return _Factory(kind, name)
    raise UtcError(f"{spec!r} names no model", fix=f"give {SPECS}", code="model/unknown")


class _Timm:
    runs_code = False

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
        own, options = self.preset().input_size, dict[str, Any]()
        if num_classes is not None:
            options["num_classes"] = num_classes
        if input_size[0] != own[0]:
            options["in_chans"] = input_size[0]
        if input_size[1:] != own[1:] and self.config and self.config.fixed_input_size:
            options["img_size"] = input_size[1:]
        try:
            model: nn.Module = timm.create_model(self.name, pretrained=pretrained, **options)
        except Exception as error:  # the hub's client, its transport and timm raise dozens of classes
            raise _unbuilt(self.spec, error, pretrained, options) from error
        return model


class _Torchvision:
    runs_code = False

    def __init__(self, name: str) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise UtcError(
                f"torchvision has no classification model {name!r}", fix=did_you_mean(name, known), code="model/unknown"
            )
        self.name, self.spec = name, f"torchvision:{name}"
        self.weights = models.get_model_weights(name).DEFAULT

    def preset(self) -> Preset:
        transform = self.weights.transforms()
        height = transform.crop_size[0]
        share = round(height / transform.resize_size[0], 4)
        mean, std = tuple(transform.mean), tuple(transform.std)
        return Preset((3, height, height), mean, std, transform.interpolation.value, share)

    def build(self, num_classes: int | None, pretrained: bool, input_size: tuple[int, ...]) -> nn.Module:
        from torchvision import models

        from utcompile.cli.weights import load_weights

        options: dict[str, object] = {} if num_classes is None else {"num_classes": num_classes}
        if "init_weights" in inspect.signature(models.get_model_builder(self.name)).parameters:
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
        try:
            model = factory(**options)
        except Exception as error:  # whatever a user's code raises
            raise UtcError(
                "the factory failed", where=self.spec, why=f"{type(error).__name__}: {error}", code="model/build"
            ) from error
        if not isinstance(model, nn.Module):
            raise UtcError(
                f"the factory returned a {type(model).__name__}",
                where=self.spec,
                fix="return an nn.Module",
                code="model/build",
            )
        return model

    def _factory(self) -> Callable[..., object]:
        try:
            module = _module_of_file(self.module) if self.module.endswith(".py") else _module(self.module)
        except UtcError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise UtcError(
                "the module of the model cannot be imported", where=self.module, why=why, code="model/build"
            ) from error
        factory: object = getattr(module, self.name, None)
        if not callable(factory):
            known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise UtcError(
                f"there is no function {self.name!r}",
                where=self.module,
                fix=did_you_mean(self.name, known),
                code="model/unknown",
            )
        return factory


class _Demo:
    runs_code = False

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


def _module(name: str) -> ModuleType:
    folder = str(Path.cwd())  # as `python -m` does
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _module_of_file(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise UtcError("there is no such Python file", where=path, code="model/unknown")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as `python file.py` does
    # Under a name that no installed package has: the file may have the name of one.
    spec = importlib.util.spec_from_file_location(f"utcompile_model_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _unbuilt(spec: str, error: Exception, pretrained: bool, options: dict[str, object]) -> UtcError:
    why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if pretrained:
        return UtcError(
            f"the pretrained weights of {spec} cannot be loaded", why=why, fix=_OFFLINE, code="model/weights"
        )
    given = ", ".join(f"{k}={v}" for k, v in options.items()) or "its defaults"
    return UtcError(f"{spec} cannot be built with {given}", why=why, code="model/build")

"""The base of all tuners: a config that a rule file fills in, and a small module that is built for a site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.tuners.bottleneck import Bottleneck
from utcompile.tuners.inner import Inner
from utcompile.tuners.precision import changed_in_own_dtype, in_own_dtype
from utcompile.tuners.recompute import remember
from utcompile.tuners.sites import Form, Port

Affine = tuple[torch.Tensor, torch.Tensor | None]  # a weight and a bias
LARGEST = 2**16  # the largest rank, width or length; no layer of today is wider


class TunerConfig(BaseModel):
    """The fields that a rule file may set; a subclass adds its fields and a literal `kind`.

    Attributes:
        free: fields in which tasks on one base may differ (`Tuner.inner`): the size of the inner axis, those of
            `result_factor`, and those that matter in training alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    free: ClassVar[frozenset[str]] = frozenset()

    kind: str

    def result_factor(self) -> float:
        """The fixed factor on the tuner's result."""
        return 1.0

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Refuse a size above `LARGEST`, before memory is allocated for it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for size in value if isinstance(value, list | tuple) else (value,):
                if type(size) is int and abs(size) > LARGEST and "seed" not in name:
                    raise UtcError(
                        f"{name} is {size:,}",
                        why=f"no size of a tuner is above {LARGEST:,}",
                        fix=f"give {name} a smaller number",
                        code="tuner/option",
                    )
        return self


@dataclass(frozen=True)
class ChannelMap:
    """The linear map `v -> matrix · v + shift` of the channels at every position, in float64 on the CPU.

    Attributes:
        axis: the axis of the channels.
        matrix: `(C_out, C_in)`, or `(C,)` where it is diagonal.
        shift: `(C_out,)`.
    """

    axis: int
    matrix: torch.Tensor
    shift: torch.Tensor


class Tuner(nn.Module):
    """A small trainable module that changes what one frozen operation computes.

    A subclass has `config_class` and `forms`, and builds itself in `build(config, site)`. For values, `forward` takes
    the source value and returns what is added to the target (`parallel`) or what replaces it (`sequential`). For
    `weight`, `changed` takes the parameters named in `roles` and returns their replacements. For `tokens`, `forward`
    takes keys and values and returns the keys and values that are put before them. For a stage of a `chain`, `forward`
    takes its value and the state before, and returns its state.

    A tuner also contains its fold: `changed` is run once in float64 and absorbed; a tuner of values that is one linear
    map returns it from `channel_map`, and a bottleneck is returned from `bottleneck`.

    Attributes:
        identity_at_start: whether the outputs of the model are the base's before training; `compile` proves it.
        roles: the parameters of the operation that a `weight` tuner reads and changes.
        how: for a `weight` tuner, `reparametrised` (the operation runs with the changed parameters) or `branch` (the
            operation runs unchanged, and `forward(x, y)` adds the update, computed from its input x, to its result y).
        length: for `tokens`, the number of learned keys and values.
        reads_stream: for `tokens`, whether the tuner yields tokens of the stream, which the frozen projections turn
            into keys and values; its `forward` then takes no argument.
        reads_parameters: whether `forward` is overridden for `weight` too, and calls `super().forward` there. Such a
            class puts `in_own_dtype` on the methods that read values, for bases in half precision.
        takes_complex: whether `changed` is right for a complex weight, with complex parameters of the tuner.
        state: for `chain`, shape and channel axis of what the stage yields.
        joins: for `chain`, whether the result of the last stage is added to the target of the chain, instead of
            replacing it.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[TunerConfig]]
    forms: ClassVar[tuple[Form, ...]]
    roles: tuple[str, ...] = ("weight",)
    how: Literal["branch", "reparametrised"] = "reparametrised"
    identity_at_start: bool = True
    reads_stream: ClassVar[bool] = False
    reads_parameters: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True
    length: int = 0
    state: Port | None = None
    joins: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in cls.__dict__ and not cls.reads_parameters:
            cls.forward = in_own_dtype(cls.forward)  # type: ignore[method-assign]

    @classmethod
    def build(cls, config: Any, site: Any) -> Tuner:
        """Make the tuner for one site.

        Args:
            config: an instance of `config_class`.
            site: the `TunerSite` of a form in `forms` (`ValueSite`, `WeightSite` …).

        Raises:
            UtcError: the tuner does not fit the site.
        """
        raise NotImplementedError

    def start(self, *parameters: torch.Tensor | None) -> None:
        """For `weight`: set what depends on the frozen parameters. Called once, when the tuner is inserted."""

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        """For `weight`: the changed parameters of `roles`, one tensor or a tuple, in the dtypes of the arguments.

        An argument is None where the operation lacks the parameter; a tensor returned for it is added to the operation.
        """
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """For `weight`, reparametrised: the parameters with which the operation runs."""
        return remember(changed_in_own_dtype(self, *args), self, args)

    def inner(self) -> Inner | None:
        """The axis by which the tuners of tasks may differ in one ONNX file; None where there is none."""
        return None

    def channel_map(self) -> ChannelMap | None:
        """For `parallel` and `sequential`: the linear map of channels that the tuner computes, or None."""
        return None

    def bottleneck(self) -> Bottleneck | None:
        """For `parallel`: the bottleneck that the tuner computes, or None; it can widen neighbouring layers.

        Raises:
            UtcError: it is a bottleneck that cannot widen a layer, for the reason given.
        """
        return None


_REGISTRY: dict[str, type[Tuner]] = {}


def register_tuner(name: str) -> Callable[[type[Tuner]], type[Tuner]]:
    """Class decorator that registers a `Tuner`, so that rule files can write `kind: name`.

    Raises:
        UtcError: the name is registered already, or the class lacks `config_class` or `forms`.
    """

    check_type(name, str, "name", "a tuner's kind")

    def register(cls: type[Tuner]) -> type[Tuner]:
        known = _REGISTRY.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise UtcError(
                f"a tuner kind {name!r} is registered already",
                why=f"by {known.__module__}.{known.__qualname__}",
                fix="choose another name",
                code="extend/tuner",
            )
        missing = [a for a in ("config_class", "forms") if not hasattr(cls, a)]
        if missing:
            raise UtcError(
                f"tuner {cls.__qualname__} lacks {' and '.join(missing)}",
                fix="set them as class attributes",
                code="extend/tuner",
            )
        cls.kind = name
        _REGISTRY[name] = cls
        return cls

    return register


@cache  # searching all installed packages opens a file per package, and rule files need kinds often
def _load_plugins() -> None:
    for entry in entry_points(group="utcompile.tuners"):
        if entry.name not in _REGISTRY:
            entry.load()


def tuner_kinds() -> tuple[str, ...]:
    """The registered kinds, plugins included."""
    _load_plugins()
    return tuple(sorted(_REGISTRY))


def tuner_class(kind: str) -> type[Tuner]:
    """The tuner registered under a kind."""
    if kind not in _REGISTRY:
        _load_plugins()
    if kind not in _REGISTRY:
        raise UtcError(f"unknown tuner kind {kind!r}", fix=did_you_mean(kind, tuner_kinds()), code="tuner/unknown")
    return _REGISTRY[kind]


def config_for(kind: str) -> type[TunerConfig]:
    """The config class of a kind."""
    return tuner_class(kind).config_class

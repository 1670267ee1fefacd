"""What every tuner is: a config that a rule file fills in, and a small module that is built from a site."""

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
from utcompile.tuners.precision import changed_in_own_dtype, in_own_dtype
from utcompile.tuners.recompute import remember
from utcompile.tuners.sites import Form, Port

LARGEST = 2**16  # of ranks, widths, lengths: above the widest layers of today


class TunerConfig(BaseModel):
    """The fields that a rule file may set; subclasses add theirs and a literal `kind`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Raise where a whole number is no size that a tuner may have: nothing may be allocated for it."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for size in value if isinstance(value, list | tuple) else (value,):
                if type(size) is int and abs(size) > LARGEST and "seed" not in name:
                    raise UtcError(
                        f"{name} is {size:,}",
                        why=f"no size of a tuner is above {LARGEST:,}",
                        fix=f"give {name} a smaller number",
                    )
        return self


@dataclass(frozen=True)
class ChannelMap:
    """What a linear tuner does to every position: `v -> matrix · v + shift` along the channels, in float64 on the CPU.

    Attributes:
        axis: where the channels are.
        matrix: `(C_out, C_in)`, or `(C,)` where it is diagonal.
        shift: `(C_out,)`.
    """

    axis: int
    matrix: torch.Tensor
    shift: torch.Tensor


class Tuner(nn.Module):
    """A small trainable module beside a frozen operation.

    A subclass states `config_class` and `forms` and builds itself in `build(config, site)`. Beside values, its
    `forward` takes the source value and returns what is added (`parallel`) or what replaces it (`sequential`). For
    `weight`, its `changed` takes the parameters named in `roles` and returns what takes their place. A `tokens` tuner
    takes keys and values and returns those that are put before them; a stage of a `chain` takes its value and the state
    before, and returns its own state.

    It carries its own fold: `changed`, run in float64, is absorbed as it stands; a tuner of values that is linear says
    so in `channel_map`, and one that is a bottleneck in `bottleneck`.

    Attributes:
        identity_at_start: whether the model's outputs are the base's until it is trained; `compile` proves it.
        roles: the operation's parameters that a `weight` tuner reads and changes.
        how: of a `weight` tuner, `reparametrised` (the operation runs with the changed parameters) or `branch` (it runs
            as it is, and `forward(x, y)` adds the tuner's share, computed from its input x, to its result y).
        length: for `tokens`, how many keys and values it yields.
        reads_stream: for `tokens`, whether it yields tokens of the stream, which the frozen projections then turn into
            keys and values; its `forward` takes nothing.
        reads_parameters: whether its `forward` is for `weight` too, and calls this class's; then it takes care of half
            precision itself, by `in_own_dtype` on what reads values.
        takes_complex: whether `changed` is right for a complex weight, with parameters that are complex then.
        state: for `chain`, what the stage yields.
        joins: for `chain`, whether the last stage's result is added to the chain's target; else it replaces it.
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and not cls.reads_parameters:
            cls.forward = in_own_dtype(cls.forward)  # type: ignore[method-assign]

    @classmethod
    def build(cls, config: Any, site: Any) -> Tuner:
        """Make the tuner for one site; a `UtcError` says why it does not fit.

        Args:
            config: an instance of `config_class`.
            site: the `TunerSite` of a form in `forms` (`ValueSite`, `WeightSite` …).
        """
        raise NotImplementedError

    def start(self, *parameters: torch.Tensor | None) -> None:
        """For `weight`: set what depends on the frozen parameters; called once, when the tuner is inserted."""

    def changed(self, *args: Any, **kwargs: Any) -> Any:
        """For `weight`: the parameters of `roles` as the tuner makes them, one tensor or a tuple, in the dtypes given.

        A parameter that the operation lacks is None; a tensor in its place is added to the operation.
        """
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """For `weight`, reparametrised: what the operation reads instead of its own parameters."""
        return remember(changed_in_own_dtype(self, *args), self, args)

    def channel_map(self) -> ChannelMap | None:
        """For `parallel` and `sequential`: what the tuner computes, where that is one linear map of channels."""
        return None

    def bottleneck(self) -> Bottleneck | None:
        """For `parallel`: what the tuner computes, where that is a bottleneck; then it can widen layers next to it.

        Raises:
            UtcError: it is one that cannot, for the reason given.
        """
        return None


_REGISTRY: dict[str, type[Tuner]] = {}


def register_tuner(name: str) -> Callable[[type[Tuner]], type[Tuner]]:
    """Class decorator: makes a `Tuner` known to rule files under `kind: name`.

    Raises:
        UtcError: the name is taken, or the class lacks `config_class` or `forms`.
    """

    check_type(name, str, "name", "a tuner's kind")

    def register(cls: type[Tuner]) -> type[Tuner]:
        known = _REGISTRY.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise UtcError(
                f"a tuner kind {name!r} is registered already",
                why=f"by {known.__module__}.{known.__qualname__}",
                fix="choose another name",
            )
        missing = [a for a in ("config_class", "forms") if not hasattr(cls, a)]
        if missing:
            raise UtcError(
                f"tuner {cls.__qualname__} lacks {' and '.join(missing)}", fix="set them as class attributes"
            )
        cls.kind = name
        _REGISTRY[name] = cls
        return cls

    return register


@cache  # the look through all installed packages opens a file of each, and rule files ask for kinds all the time
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
        raise UtcError(f"unknown tuner kind {kind!r}", fix=did_you_mean(kind, tuner_kinds()))
    return _REGISTRY[kind]


def config_for(kind: str) -> type[TunerConfig]:
    """The config class of a kind."""
    return tuner_class(kind).config_class

"""The site of a tuner: one type per form of insertion.

A tuner's `build` gets the type of site of each form that the tuner lists in `forms`:

    `parallel`, `sequential`   `ValueSite`
    `weight`                   `WeightSite`
    `tokens`                   `TokensSite`
    `stream_tokens`            `StreamTokensSite`
    `chain`                    `ChainSite`
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Operation, Value

Form = Literal["parallel", "sequential", "weight", "tokens", "stream_tokens", "chain"]
FORMS: tuple[Form, ...] = get_args(Form)

# all sites had these attributes before sites had types; tuners written then read them for every form
_ABSENT: Mapping[str, object] = {
    "operation": None,
    "weight_shape": (),
    "parameters": {},
    "direct": True,
    "rows": (),
    "held": "",
    "heads": 0,
    "repeats": 1,
    "previous": None,
    "is_last": False,
}


@dataclass(frozen=True)
class Port:
    """A value that a tuner reads or writes.

    Attributes:
        value: its shape, dtype and device.
        channel_axis: the axis of its channels; None where it is unknown.
        name: the name of the capture in the rule, for messages.
        grid: height and width of the feature map from which tokens `(B, N, C)` were made; None where it is unknown.
        windows: whether axis -3 of `(…, S, d)` divides the positions into windows, so that it has no heads.
    """

    value: Value
    channel_axis: int | None
    name: str
    grid: tuple[int, int] | None = field(default=None, repr=False, compare=False)
    windows: bool = field(default=False, repr=False, compare=False)

    @property
    def channels(self) -> int:
        """The number of channels.

        Raises:
            UtcError: the axis is unknown, or its size varies."""
        size = self.value.shape[self.channel_axis] if self.channel_axis is not None else None
        if not isinstance(size, int):
            raise UtcError(
                f"the channel axis of '{self.name}' {self.value} is unknown",
                why="no operation that makes or reads the value shows which axis has the channels",
                fix="place the tuner at a value that a linear, convolution or norm makes or reads",
            )
        return size

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis."""
        return self.channel_axis == self.value.rank - 1


@dataclass(frozen=True, kw_only=True)
class TunerSite:
    """The site from which a tuner of any form is built: a rule never states a hidden size.

    Attributes:
        source: the value that the tuner reads (`x`, `v`, or the input of the tuned operation).
        target: the value that the tuner changes (`y`, `v`, or the tuned operation's result).
        captures: the operations of the match by name, for `same as a`.
        shared: the modules that `share` has made so far, for all sites of one tuned model.
    """

    source: Port
    target: Port
    captures: Mapping[str, Operation] = field(default_factory=dict)
    shared: dict[Hashable, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    @property
    def form(self) -> Form:
        """The form's word in rule files."""
        raise NotImplementedError

    def takes(self, forms: Sequence[str], reads_stream: bool) -> bool:
        """Whether a tuner with these class attributes can be built for this form."""
        return self.form in forms

    if not TYPE_CHECKING:  # a tuner that is typed for its forms does not need it

        def __getattr__(self, name: str) -> object:
            """The default of an attribute that only sites of another form have."""
            if name in _ABSENT:
                return _ABSENT[name]
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}")

    def share(self, key: Hashable, make: Callable[..., nn.Module], *args: object) -> nn.Module:
        """Return one module for all sites of a model that use one key; `make(*args)` makes it the first time.

        As a submodule of each tuner it stays one module when the model is moved, cast, copied or pickled. A plan counts
        its parameters at every site.
        """
        if key not in self.shared:
            self.shared[key] = make(*args)
        return self.shared[key]


@dataclass(frozen=True, kw_only=True)
class ValueSite(TunerSite):
    """`parallel: x -> y` or `sequential: v`.

    Attributes:
        replaces: whether the result of the tuner replaces the target (`sequential`) or is added to it (`parallel`).
    """

    replaces: bool

    @property
    def form(self) -> Form:
        """`sequential` or `parallel`."""
        return "sequential" if self.replaces else "parallel"


@dataclass(frozen=True, kw_only=True)
class WeightSite(TunerSite):
    """`weight: h`.

    Attributes:
        operation: the tuned operation.
        weight_shape: the shape of the tuned weight; empty where the operation has no weight.
        parameters: role to shape of the parameters that the tuner changes; None where the operation lacks the role.
        direct: whether the operation reads the parameter itself, and not a tensor computed from it.
        rows: for a config's `slices`, the rows of the weight for each slice.
        held: the reason why no update can be added to the weight, so that only a branch fits; empty otherwise.
    """

    operation: Operation
    weight_shape: tuple[int, ...] = ()
    parameters: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    direct: bool = True
    rows: tuple[tuple[int, ...], ...] = ()
    held: str = ""

    @property
    def form(self) -> Form:
        """`weight`."""
        return "weight"


@dataclass(frozen=True, kw_only=True)
class TokensSite(TunerSite):
    """`tokens: [k, v]`.

    Attributes:
        heads: the number of sets of keys per sample: source and target are `(…, heads, S, d)` or, with the batch in
            front of the heads, `(B·heads, S, d)`. For a tuner that `reads_stream`, the source is the stream.
        repeats: the number of neighbouring heads that share one set of keys (grouped-query attention).
    """

    heads: int
    repeats: int = 1

    @property
    def form(self) -> Form:
        """`tokens`."""
        return "tokens"


@dataclass(frozen=True, kw_only=True)
class StreamTokensSite(TunerSite):
    """`stream_tokens: x`: source and target are the stream `(B, N, C)` that the learned tokens enter."""

    @property
    def form(self) -> Form:
        """`stream_tokens`."""
        return "stream_tokens"

    def takes(self, forms: Sequence[str], reads_stream: bool) -> bool:
        """Whether the tuner yields tokens of the stream; such a tuner is built from the stream's channels alone."""
        return reads_stream


@dataclass(frozen=True, kw_only=True)
class ChainSite(TunerSite):
    """One stage of `chain: v -> z`.

    Attributes:
        previous: the state of the stage before, or the value that the chain begins with; None where there is neither.
        is_last: whether this stage brings its state to `target`.
    """

    previous: Port | None = None
    is_last: bool = False

    @property
    def form(self) -> Form:
        """`chain`."""
        return "chain"

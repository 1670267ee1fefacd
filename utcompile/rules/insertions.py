"""The insertions that a rule may state: one type for each form, and how each is read from a rule file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

from pydantic import Field, model_validator

from utcompile.rules.entries import Entry, Label, TextOr, TunerMapping, problem
from utcompile.rules.passage import Passage
from utcompile.rules.syntax import Mark
from utcompile.rules.yaml12 import Node
from utcompile.tuners import FORMS, Form, TunerConfig


@dataclass(frozen=True)
class TunerSpec:
    """The tuner of an insertion: its name under `tuners:`, None where it is written in place, and its config."""

    name: str | None
    config: TunerConfig
    mark: Mark


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """What the insertions of all forms have in common.

    Attributes:
        target: the capture that the tuner changes; the values, for tokens.
        tuner: the tuner.
        mark: where the insertion is written.
    """

    target: str
    tuner: TunerSpec
    mark: Mark

    @property
    def form(self) -> Form:
        """The form's word."""
        raise NotImplementedError

    @property
    def named(self) -> tuple[str, ...]:
        """The captures that the form's word names, in the order of the rule file."""
        return (self.target,)


@dataclass(frozen=True, kw_only=True)
class ValueInsertion(Insertion):
    """`{parallel: x -> y, tuner: u}` or `{sequential: v, for: op, …}`.

    Attributes:
        source: what the tuner reads; for `sequential` the target itself.
        replaces: whether its result replaces the target (`sequential`); else it is added (`parallel`).
        reader: the capture whose operation alone reads the changed value; None for all readers.
    """

    source: str
    replaces: bool
    reader: str | None = None

    @property
    def form(self) -> Form:
        """`sequential` or `parallel`."""
        return "sequential" if self.replaces else "parallel"

    @property
    def named(self) -> tuple[str, ...]:
        """`v`, or `x` and `y`."""
        return (self.target,) if self.replaces else (self.source, self.target)


@dataclass(frozen=True, kw_only=True)
class WeightInsertion(Insertion):
    """`{weight: h, …}`.

    Attributes:
        all_uses: whether a tied weight may be tuned, each of its names by its own tuner.
    """

    all_uses: bool = False

    @property
    def form(self) -> Form:
        """`weight`."""
        return "weight"


@dataclass(frozen=True, kw_only=True)
class TokensInsertion(Insertion):
    """`{tokens: [k, v], …}`.

    Attributes:
        source: the keys.
    """

    source: str

    @property
    def form(self) -> Form:
        """`tokens`."""
        return "tokens"

    @property
    def named(self) -> tuple[str, ...]:
        """Keys and values."""
        return self.source, self.target


@dataclass(frozen=True, kw_only=True)
class StreamTokensInsertion(Insertion):
    """`{stream_tokens: x, …}`."""

    @property
    def form(self) -> Form:
        """`stream_tokens`."""
        return "stream_tokens"


@dataclass(frozen=True, kw_only=True)
class ChainInsertion(Insertion):
    """`{chain: v -> z, from: x, …}`.

    Attributes:
        source: what each stage reads.
        start: the capture of the first match with which the chain begins; None where nothing precedes its stages.
    """

    source: str
    start: str | None = None

    @property
    def form(self) -> Form:
        """`chain`."""
        return "chain"

    @property
    def named(self) -> tuple[str, ...]:
        """What each stage reads, and what the last one changes."""
        return self.source, self.target


AnyInsertion = ValueInsertion | WeightInsertion | TokensInsertion | StreamTokensInsertion | ChainInsertion


class InsertEntry(Entry):
    """One tuner in one of the forms: parallel, sequential, weight, tokens, stream_tokens or chain."""

    parallel: str | None = Field(None, description="x -> y: the tuner reads x, and its result is added to y")
    sequential: str | None = Field(None, description="v: the tuner's result takes the place of v")
    weight: str | None = Field(None, description="h: the tuner changes the weight of the operation that makes h")
    tokens: list[str] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="[k, v]: learned tokens stand before the keys and values of the attention that reads k and v",
    )
    stream_tokens: str | None = Field(
        None, description="x: learned tokens enter the stream of tokens x once and live through all layers after it"
    )
    chain: str | None = Field(
        None, description="v -> z: a side network with one stage at each match's v, whose result replaces or joins z"
    )
    from_: str | None = Field(
        None, alias="from", description="with chain: x, the value of the first match with which the side network begins"
    )
    for_: str | None = Field(None, alias="for", description="with sequential: only this operation reads the new value")
    tuner: TextOr[Label, TunerMapping] = Field(description="the name of a tuner of this file, or one in place")
    all_uses: bool = Field(
        False, description="with weight: a tied weight may be tuned, each of its names by a tuner of its own"
    )

    @model_validator(mode="after")
    def _one_form(self) -> InsertEntry:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            what = f"insert has {' and '.join(given)} at once" if given else "insert has no form"
            raise problem(given[1] if given else None, what, f"give one of: {', '.join(FORMS)}")
        for key, form, is_given in (
            ("for", "sequential", self.for_ is not None),
            ("from", "chain", self.from_ is not None),
            ("all_uses", "weight", self.all_uses),
        ):
            if is_given and form != self.form:
                raise problem(key, f"'{key}' does not go with {self.form}", f"it goes with {form}")
        return self

    @property
    def form(self) -> Form:
        """The word of the form that is given."""
        return next(form for form in FORMS if getattr(self, form) is not None)


class Names(Protocol):
    """Reads the names of captures, and checks that the match offers them."""

    def word(self, passage: Passage) -> str:
        """One capture's name."""

    def arrow(self, passage: Passage, form: str) -> tuple[str, str]:
        """The two captures of `x -> y`."""

    def optional(self, node: Node | None) -> str | None:
        """One capture's name, where one is given."""


def read_insertion(entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> AnyInsertion:
    """The insertion that an entry states.

    Args:
        entry: its shape checked.
        node: the same with the place of everything.
        names: reads captures.
        tuner: reads the tuner, after the captures.

    Raises:
        UtcError: a name is no capture, or there is no such tuner.
    """
    passage, mark = node.at(entry.form).passage, node.mark
    match entry.form:  # the captures are checked first, the tuner last
        case "parallel":
            source, target = names.arrow(passage, entry.form)
            return ValueInsertion(source=source, target=target, replaces=False, tuner=tuner(), mark=mark)
        case "sequential":
            target = names.word(passage)
            reader = names.optional(node.get("for"))
            return ValueInsertion(source=target, target=target, replaces=True, reader=reader, tuner=tuner(), mark=mark)
        case "weight":
            target = names.word(passage)
            return WeightInsertion(target=target, all_uses=entry.all_uses, tuner=tuner(), mark=mark)
        case "tokens":
            source, target = (names.word(name.passage) for name in node.at(entry.form).items())
            return TokensInsertion(source=source, target=target, tuner=tuner(), mark=mark)
        case "stream_tokens":
            return StreamTokensInsertion(target=names.word(passage), tuner=tuner(), mark=mark)
        case "chain":
            source, target = names.arrow(passage, entry.form)
            start = names.optional(node.get("from"))
            return ChainInsertion(source=source, target=target, start=start, tuner=tuner(), mark=mark)
        case unknown:
            assert_never(unknown)

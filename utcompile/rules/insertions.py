"""The insertions of a rule: one type per form, or per two forms of one kind, each with how it is read from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, get_args

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
    """The base of all insertions.

    Attributes:
        forms: the words of the forms that the type is for.
        target: the capture that the tuner changes; the values, for tokens.
        tuner: the tuner.
        mark: where the insertion is written.
    """

    forms: ClassVar[tuple[Form, ...]]
    target: str
    tuner: TunerSpec
    mark: Mark

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """Read an entry; the captures are checked first, the tuner last."""
        raise NotImplementedError

    @property
    def form(self) -> Form:
        """The form's word."""
        return self.forms[0]

    @property
    def named(self) -> tuple[str, ...]:
        """The captures that the form's word names, in the order of the rule file."""
        return (self.target,)


@dataclass(frozen=True, kw_only=True)
class ValueInsertion(Insertion):
    """`{parallel: x -> y, tuner: u}` or `{sequential: v, for: op, …}`.

    Attributes:
        source: the capture that the tuner reads; for `sequential` the target itself.
        replaces: whether the result of the tuner replaces the target (`sequential`) or is added to it (`parallel`).
        reader: the capture whose operation alone reads the changed value; None for all readers.
    """

    forms = ("parallel", "sequential")
    source: str
    replaces: bool
    reader: str | None = None

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """`x -> y`, or `v` and `for: op`."""
        passage, replaces = node.at(entry.form).passage, entry.sequential is not None
        source, target = (names.word(passage),) * 2 if replaces else names.arrow(passage, entry.form)
        reader = names.optional(node.get("for"))
        return cls(source=source, target=target, replaces=replaces, reader=reader, tuner=tuner(), mark=node.mark)

    @property
    def form(self) -> Form:
        """`parallel` or `sequential`."""
        return self.forms[self.replaces]

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

    forms = ("weight",)
    all_uses: bool = False

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """`h`."""
        target = names.word(node.at(entry.form).passage)
        return cls(target=target, all_uses=entry.all_uses, tuner=tuner(), mark=node.mark)


@dataclass(frozen=True, kw_only=True)
class TokensInsertion(Insertion):
    """`{tokens: [k, v], …}`.

    Attributes:
        source: the keys.
    """

    forms = ("tokens",)
    source: str

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """`[k, v]`."""
        source, target = (names.word(name.passage) for name in node.at(entry.form).items())
        return cls(source=source, target=target, tuner=tuner(), mark=node.mark)

    @property
    def named(self) -> tuple[str, ...]:
        """Keys and values."""
        return self.source, self.target


@dataclass(frozen=True, kw_only=True)
class StreamTokensInsertion(Insertion):
    """`{stream_tokens: x, …}`."""

    forms = ("stream_tokens",)

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """`x`."""
        return cls(target=names.word(node.at(entry.form).passage), tuner=tuner(), mark=node.mark)


@dataclass(frozen=True, kw_only=True)
class ChainInsertion(Insertion):
    """`{chain: v -> z, from: x, …}`.

    Attributes:
        source: the capture that each stage reads.
        start: the capture of the first match with which the chain begins; None where nothing precedes its stages.
    """

    forms = ("chain",)
    source: str
    start: str | None = None

    @classmethod
    def read(cls, entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> Self:
        """`v -> z` and `from: x`."""
        source, target = names.arrow(node.at(entry.form).passage, entry.form)
        start = names.optional(node.get("from"))
        return cls(source=source, target=target, start=start, tuner=tuner(), mark=node.mark)

    @property
    def named(self) -> tuple[str, ...]:
        """The captures that each stage reads, and that the last stage changes."""
        return self.source, self.target


AnyInsertion = ValueInsertion | WeightInsertion | TokensInsertion | StreamTokensInsertion | ChainInsertion
_KINDS: Mapping[Form, type[AnyInsertion]] = {form: kind for kind in get_args(AnyInsertion) for form in kind.forms}


class InsertEntry(Entry):
    """One tuner in one of the forms: parallel, sequential, weight, tokens, stream_tokens or chain."""

    parallel: str | None = Field(None, description="x -> y: the tuner reads x, and its result is added to y")
    sequential: str | None = Field(None, description="v: the result of the tuner replaces v")
    weight: str | None = Field(None, description="h: the tuner changes the weight of the operation that makes h")
    tokens: list[str] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="[k, v]: learned tokens are put before the keys and values of the attention that reads k and v",
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
    tuner: TextOr[Label, TunerMapping] = Field(description="the name of a tuner of this file, or a tuner in place")
    all_uses: bool = Field(
        False, description="with weight: a tied weight may be tuned, each of its names by its own tuner"
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
                raise problem(key, f"'{key}' cannot be combined with {self.form}", f"use it with {form}")
        return self

    @property
    def form(self) -> Form:
        """The word of the form that is given."""
        return next(form for form in FORMS if getattr(self, form) is not None)


class Names(Protocol):
    """A reader of the names of captures, which checks that the match offers them."""

    def word(self, passage: Passage) -> str:
        """The name of one capture."""

    def arrow(self, passage: Passage, form: str) -> tuple[str, str]:
        """The two captures of `x -> y`."""

    def optional(self, node: Node | None) -> str | None:
        """The name of one capture, where one is given."""


def read_insertion(entry: InsertEntry, node: Node, names: Names, tuner: Callable[[], TunerSpec]) -> AnyInsertion:
    """The insertion that an entry states.

    Args:
        entry: the entry, its shape checked.
        node: the node of the entry, with the place of everything.
        names: reads captures.
        tuner: reads the tuner, after the captures.

    Raises:
        UtcError: a name is not that of a capture, or there is no tuner of a name.
    """
    return _KINDS[entry.form].read(entry, node, names, tuner)

"""The typed shape of a rule file: pydantic models, from which its JSON Schema comes too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticKnownError

from utcompile.rules.entries import (
    Count,
    Entry,
    Glob,
    Identifier,
    Label,
    Many,
    Positive,
    Sites,
    TextOr,
    TunerMapping,
    problem,
)
from utcompile.rules.insertions import InsertEntry


def _one(value: object) -> object:
    if type(value) is not int or value != 1:  # Literal alone accepts true and 1.0, which are equal to 1
        raise PydanticKnownError("literal_error", {"expected": "1"})
    return value


class ScopeEntry(Entry):
    """One enclosing call; both globs must match it where both are given."""

    module: Glob | None = Field(None, description="glob of module paths: * is one segment, ** any number")
    cls: Glob | None = Field(None, alias="class", description="glob of class names")

    @model_validator(mode="after")
    def _not_empty(self) -> ScopeEntry:
        if self.module is None and self.cls is None:
            raise problem(
                None, "a scope names a module, a class, or both", "write {module: blocks.*} or {class: Block}"
            )
        return self


class MatchEntry(Entry):
    """A match that is not a pattern: calls of a module, single operations, or a parameter."""

    module: Glob | None = Field(None, description="glob of module paths; one site per call")
    cls: Glob | None = Field(None, alias="class", description="glob of class names; one site per call")
    op: str | None = Field(None, description="operations, such as conv2d(groups=1) | linear; captures x and h")
    parameter: Glob | None = Field(None, description="glob of parameters that no module owns; captures h")

    @model_validator(mode="after")
    def _one_kind(self) -> MatchEntry:
        given = [key for key in ("op", "parameter") if getattr(self, key) is not None]
        given += ["module or class"] * (self.module is not None or self.cls is not None)
        fix = "write {op: …}, {parameter: …}, or {module: …, class: …}"
        if not given:
            raise problem(None, "an empty match", fix)
        if len(given) > 1:
            raise problem(None, f"a match by {' and '.join(sorted(given))} at once", fix)
        return self


class SelectEntry(Entry):
    """Which matches are taken, in graph order."""

    first: Positive | None = Field(None, description="the first n")
    last: Positive | None = Field(None, description="the last n")
    every: Positive | None = Field(None, description="every n-th of these, from the first")
    indices: list[int] | None = Field(None, min_length=1, description="by number, from 0; -1 is the last")

    @model_validator(mode="after")
    def _at_most_one(self) -> SelectEntry:
        given = [key for key in ("first", "last", "indices") if getattr(self, key) is not None]
        if len(given) > 1:
            raise problem(given[1], f"select has {' and '.join(given)} at once", "keep one of them")
        if self.indices is not None and len(set(self.indices)) < len(self.indices):
            raise problem("indices", "select names an index twice")
        return self


class ExpectEntry(Entry):
    """How many sites a rule must have, counted after select."""

    at_least: Count | None = Field(None, description="at least this many; 1 by default")
    exactly: Count | None = Field(None, description="exactly this many")
    at_most: Positive | None = Field(None, description="no more than this many")
    optional: bool = Field(False, description="true: the rule may have no site")

    @model_validator(mode="after")
    def _consistent(self) -> ExpectEntry:
        for other in ("at_least", "at_most"):
            if self.exactly is not None and getattr(self, other) is not None:
                raise problem(other, f"expect has exactly and {other} at once", "keep one of them")
        if self.at_most is not None and (self.at_least or 1) > self.at_most:
            raise problem("at_most", f"no number is at least {self.at_least or 1} and at most {self.at_most}")
        return self


class RuleEntry(Entry):
    """One rule."""

    name: Label = Field(description="unique in the file; part of the identity of its sites")
    match: TextOr[str, MatchEntry] = Field(description="a named pattern, pattern text, or a mapping")
    where: list[str] = Field([], description="comparisons that must all hold, such as h.channels >= 4 * x.channels")
    inside: Many[ScopeEntry] = Field([], description="calls that must enclose the match: all of them")
    not_inside: Many[ScopeEntry] = Field([], description="calls that must not enclose the match: none of them")
    except_: Many[str] = Field([], alias="except", description="named patterns; sites that they cover are left out")
    select: SelectEntry | None = Field(None, description="which matches are taken, in graph order")
    insert: InsertEntry = Field(description="the tuner, and where it goes")
    expect: ExpectEntry | None = Field(None, description="how many sites there must be, counted after select")
    on_refusal: Literal["error", "skip"] = Field(
        "error",
        description="a site that refuses the tuner is an error, or is skipped and listed in the plan",
    )

    @model_validator(mode="after")
    def _whole_chain(self) -> RuleEntry:
        if self.on_refusal == "skip" and self.insert.chain is not None:
            raise problem(
                "on_refusal", "'on_refusal: skip' cannot be combined with chain", "a side network needs all its stages"
            )
        return self


class TestEntry(Entry):
    """One model, and the sites that must be found in it."""

    __test__ = False  # no test class for pytest to collect

    model: str = Field(description="such as timm:resnet18")
    sites: dict[str, Sites] = Field(
        description="by rule name: the number of its sites, a list of their paths, or numbers by glob"
    )
    vars: dict[str, object] = Field({}, description="variables, instead of the file's values")


class IncludeEntry(Entry):
    """One included file, and values for its variables."""

    file: str = Field(description="a .yaml file below this one's folder, or the name of shipped rules")
    vars: dict[str, object] = Field(
        {}, description="values for variables of that file, instead of the values that it gives"
    )


Includes = Annotated[
    Many[TextOr[str, IncludeEntry]],
    Field(description="files below this one's folder, or names of shipped rules, that become part of this one"),
]


class Header(Entry):
    """The part of a file that is read before its variables are known."""

    include: Includes = Field([])
    vars: dict[Identifier, object] = Field({}, description="values for $name")


class RuleFile(Entry):
    """A rule file of utcompile: where tuners go in a frozen model."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [key]} for key in ("rules", "train", "include", "patterns", "tuners", "vars")],
        }
    )

    version: Annotated[Literal[1], BeforeValidator(_one)] = Field(description="version of the rule language")
    name: Label = Field(description="a short name")
    cite: str | None = Field(None, description="paper and table or equation")
    description: str | None = Field(None, description="the purpose, in a sentence or two")
    folds: Many[Literal["absorbed", "widened", "constant", "kept"]] = Field(
        [], description="the result of folding; a remark for readers, like the description"
    )
    include: Includes = Field([])
    vars: dict[Identifier, object] = Field({}, description="values for $name; the caller may give others")
    patterns: dict[Identifier, Many[str]] = Field({}, description="named patterns: one text, or a list of spellings")
    tuners: dict[Label, TunerMapping] = Field({}, description="tuners by name")
    rules: list[RuleEntry] = Field(
        [], description="the rules, applied in this order; none for a probe, which has `train:` alone"
    )
    train: list[str] = Field(
        [],
        description="parameters to train in addition: pattern:head, module:head.*, parameter:**.bias, untied:NAME",
    )
    tests: list[TestEntry] = Field([], description="models, and the sites each rule must find")

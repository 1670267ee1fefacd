"""`RuleSet`: a whole rule file, loaded from a path, a shipped name or YAML text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Literal

from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.rules.build import Builder, train_line
from utcompile.rules.files import find, read
from utcompile.rules.include import File, Included, Sources, claim
from utcompile.rules.measured import Measured, all_measured
from utcompile.rules.model import Rule, RuleTest, Train
from utcompile.rules.passage import Passage, short
from utcompile.rules.saved import Saved
from utcompile.rules.schema import RuleFile
from utcompile.rules.schema_errors import validate
from utcompile.rules.syntax import Mark, Pattern
from utcompile.rules.variables import Value, Variables, check_value
from utcompile.rules.yaml12 import Node

Folded = Literal["absorbed", "widened", "constant", "kept"]


@dataclass(frozen=True)
class RuleSet:
    """The rules of one file and of those it includes, typed and checked.

    Attributes:
        name: the name that the file gives itself.
        path: the file; None where the rules came as text.
        text: the file's text, as it was read.
        cite: the paper that the rules follow.
        description: what they are for.
        folds: the result of folding, as the file states it.
        vars: the variables, with the values that apply.
        rules: in file order, those of an included file before those of the file that includes it.
        patterns: every named pattern that may be called: the built-in ones and those of the files.
        train: what is trained in addition to the tuners.
        tests: models, and the sites each rule must find in them; those of the file itself.
        included: the texts of the included files, by the names under which `load` takes them back.
        trains_instead: the lines that the caller gave instead of the files' own `train:`; None where there are none.
        measured: what `how: measured` found, by the ids of sites: there nothing is measured again.
    """

    name: str
    path: Path | None
    text: str
    cite: str | None
    description: str | None
    folds: tuple[Folded, ...]
    vars: Mapping[str, Value]
    rules: tuple[Rule, ...]
    patterns: Mapping[str, Pattern]
    train: tuple[Train, ...]
    tests: tuple[RuleTest, ...]
    included: Mapping[str, str] = field(default_factory=dict)
    trains_instead: tuple[str, ...] | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        source: RuleSet | Path | str,
        vars: Mapping[str, object] | None = None,
        included: Mapping[str, str] | None = None,
        train: Sequence[str] | None = None,
        measured: Mapping[str, object] | None = None,
    ) -> RuleSet:
        """Load rules.

        Args:
            source: a rule set, a path, the name of shipped rules (`u_tuning/dual`), or YAML text, which is known by
                having more than one line; or the folder of a checkpoint, for the rules that it was compiled with.
            vars: values for the file's variables, instead of the values that the file gives.
            included: texts of files that the rules include; a text without a file has them from here or not at all.
            train: what is trained in addition to the tuners, instead of the files' `train:`; nothing for an empty list.
            measured: what `how: measured` found before, by the ids of sites, as a manifest has it.

        Raises:
            UtcError: anything in the file is wrong; the error has the place.

        Example:
            >>> rules = RuleSet.load('''
            ... version: 1
            ... name: lora-on-linears
            ... vars: {r: 8}
            ... rules:
            ...   - {name: all, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: $r}}}
            ... ''', vars={"r": 4})
            >>> rules.rules[0].insert.form, rules.rules[0].insert.tuner.config.r
            ('weight', 4)
        """
        check_type(vars, (Mapping, NoneType), "vars", "a mapping from names to values")
        if (saved := Saved.of(source)) is not None:
            check_type(saved.vars, (Mapping, NoneType), "vars", "a mapping from names to values")
            known = saved.measured if measured is None and not vars else measured  # other values make other tuners
            every = {**(saved.vars or {}), **(vars or {})}
            lines = saved.train if train is None else train
            return cls.load(saved.text, every, {**_texts(saved.included), **_texts(included)}, lines, known)
        found = cls._load(source, dict(vars or {}), _texts(included))
        if train is None and isinstance(source, RuleSet):
            train = source.trains_instead
        if measured is not None:
            found = replace(found, measured=all_measured(measured))
        return found if train is None else found.training(train)

    def training(self, lines: Sequence[str]) -> RuleSet:
        """The same rules, with other lines of `train:`.

        Raises:
            UtcError: a line has no kind and name of what to train.

        Example:
            >>> RuleSet.load("lora/all_linear").training(["module:lm_head"]).train[0].glob
            'lm_head'
        """
        if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
            what = f"`train=` is a list of texts, not {lines!r}"
            raise UtcError(
                what, fix="write train=['pattern:head'], or train=[] to train the tuners alone", code="rule/include"
            )
        mark = Mark("train", 1, 1)

        def named(name: str, where: str) -> None:
            if name not in self.patterns:
                raise UtcError(
                    f"unknown pattern '{short(name)}'",
                    where=where,
                    fix=did_you_mean(name, self.patterns),
                    code="rule/unknown-name",
                )

        found = _union(train_line(Passage.plain(line, mark), mark, named) for line in lines)
        return replace(self, train=found, trains_instead=tuple(lines))

    @classmethod
    def _load(cls, source: RuleSet | Path | str, given: dict[str, object], texts: dict[str, str]) -> RuleSet:
        if isinstance(source, RuleSet):
            again = {**source.vars, **given}
            return _parse(source.text, source.path, again, {**source.included, **texts}) if given or texts else source
        if isinstance(source, str) and "\n" in source:
            return _parse(source, None, given, texts)
        if isinstance(source, str | Path):
            path = find(source)
            return _parse(read(path, str(path)), path, given, texts)
        what = f"rules must be a RuleSet, a path, a shipped name or YAML text, not {type(source).__name__}"
        raise UtcError(what, code="rule/include")


def _texts(included: Mapping[str, str] | None) -> dict[str, str]:
    """The texts of included files; they may come out of a checkpoint, and be anything."""
    if included is None:
        return {}
    if isinstance(included, Mapping) and all(isinstance(word, str) for item in included.items() for word in item):
        return dict(included)
    raise UtcError("the texts of included files must be a mapping from names to texts", code="rule/include")


def _parse(text: str, path: Path | None, given: Mapping[str, object], texts: Mapping[str, str]) -> RuleSet:
    shown = str(path) if path else "<rules>"
    whole = Included(text, shown, Sources(path.parent if path else None, texts))
    *_, file = whole.files.values()
    values = _values(file, whole.values, given)
    built: dict[str, Builder] = {}
    taken: dict[str, dict[str, Mark]] = {"pattern": {}, "tuner": {}, "rule": {}}
    for part in whole.files.values():
        seen = [built[key] for key in part.sees]
        known = {name for builder in seen for name in builder.variables.values} | part.root.at("vars").entries().keys()
        variables = Variables({name: value for name, value in values.items() if name in known})
        root = variables.fill(part.root)
        entry = validate(RuleFile, root, variables.problem)
        _claim_names(root, taken)
        built[part.key] = Builder(entry, root, variables, seen)
    top = built[file.key]
    top.check_whole()
    return RuleSet(
        name=top.file.name,
        path=path,
        text=text,
        cite=top.file.cite,
        description=top.file.description,
        folds=tuple(top.file.folds),
        vars=values,
        rules=tuple(rule for builder in built.values() for rule in builder.rules),
        patterns=dict(top.patterns),
        train=_union(entry for builder in built.values() for entry in builder.train),
        tests=top.tests,
        included=whole.texts,
    )


def _values(file: File, values: Mapping[str, Value], given: Mapping[str, object]) -> dict[str, Value]:
    """The values of all variables; the caller's go before those of the files."""
    found = dict(values)
    for name, value in given.items():
        if name not in found:
            node = file.root.get("vars")
            where = str(node.mark) if node else None
            raise UtcError(
                f"unknown variable '{name}'", where=where, fix=did_you_mean(name, found), code="rule/unknown-name"
            )
        found[name] = check_value(value, name, None)
    return found


def _claim_names(root: Node, taken: Mapping[str, dict[str, Mark]]) -> None:
    for kind in ("pattern", "tuner"):
        for name, mark in root.at(f"{kind}s").keys.items():
            claim(taken[kind], kind, name, mark)
    for rule in root.at("rules").items():
        label = rule.at("name")
        claim(taken["rule"], "rule", str(label.content), label.mark)


def _union(entries: Iterable[Train]) -> tuple[Train, ...]:
    """The lines of `train:`, each once: included files often name the same head."""
    first: dict[tuple[str, str], Train] = {}
    for entry in entries:
        first.setdefault((entry.kind, entry.glob), entry)
    return tuple(first.values())

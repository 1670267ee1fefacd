"""From a validated rule file to typed rules: names resolved, texts parsed, each with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules.entries import GLOB_FIX
from utcompile.rules.expression import MAX_WORD
from utcompile.rules.globs import glob_problem
from utcompile.rules.insertions import AnyInsertion, InsertEntry, TunerSpec, read_insertion
from utcompile.rules.library import check_calls, library_patterns, parse_library, passages
from utcompile.rules.model import (
    Expect,
    Match,
    MatchModule,
    MatchOperation,
    MatchParameter,
    MatchPattern,
    Rule,
    RuleTest,
    Scope,
    Select,
    Train,
)
from utcompile.rules.names import CALLABLE, CLASSES, OPERATIONS
from utcompile.rules.passage import Passage, short
from utcompile.rules.pattern import parse_heads, parse_spelling
from utcompile.rules.schema import (
    ExpectEntry,
    MatchEntry,
    RuleEntry,
    RuleFile,
    SelectEntry,
)
from utcompile.rules.schema_errors import validate
from utcompile.rules.syntax import Mark, Pattern
from utcompile.rules.variables import Value, Variables, check_value
from utcompile.rules.where import parse_comparison
from utcompile.rules.yaml12 import Node
from utcompile.tuners import SAME_AS, config_for, tuner_kinds

_ARROW = re.compile(r"\s*([A-Za-z_]\w*)\s*->\s*([A-Za-z_]\w*)\s*")
_WORD = re.compile(r"\s*([A-Za-z_]\w*)\s*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ALTERNATIVES = re.compile(r"\s*[A-Za-z_]\w*(\s*\|\s*[A-Za-z_]\w*)+\s*")


class Builder:
    """Builds the typed parts of one file, in the order in which they depend on one another.

    Args:
        file: the file, its shape checked.
        root: the same with the place of everything.
        variables: those that the file may use.
        included: all files that it includes, and that those include; their names may be used too.
    """

    def __init__(self, file: RuleFile, root: Node, variables: Variables, included: Sequence[Builder] = ()) -> None:
        self.file, self.root, self.variables, self.included = file, root, variables, included
        self.patterns = self._patterns()
        self.tuners: dict[str, TunerSpec] = {name: spec for other in included for name, spec in other.tuners.items()}
        self.tuners |= {name: tuner(node, name) for name, node in root.at("tuners").entries().items()}
        self.rules = self._rules()
        self.train = tuple(self._train(node) for node in root.at("train").items())
        self.tests = tuple(self._test(index) for index in range(len(file.tests)))

    def check_whole(self) -> None:
        """The checks of a loaded file that an included file need not pass.

        Raises:
            UtcError: there are no rules, or something is declared that has no effect.
        """
        if not any(builder.rules or builder.train for builder in (*self.included, self)):
            if (given := self.root.get("rules")) is not None:
                raise UtcError("'rules' must be a list of 1 or more", where=str(given.mark), why="it is a list of 0")
            raise UtcError(
                "the rule file lacks the key 'rules'",
                where=str(self.root.mark),
                fix="add rules: …; or train: alone, for a probe",
            )
        self._refuse_idle()

    def _patterns(self) -> Mapping[str, Pattern]:
        library = {**library_patterns(), **{k: v for other in self.included for k, v in other.patterns.items()}}
        node = self.root.at("patterns")
        texts = {
            name: tuple(self.variables.expand(passage) for passage in passages(entry))
            for name, entry in node.entries().items()
        }
        return {**library, **parse_library(texts, node.keys, library)}

    def _rules(self) -> tuple[Rule, ...]:
        first: dict[str, Node] = {}
        for index, entry in enumerate(self.file.rules):
            node = self.root.at("rules", index, "name")
            if entry.name in first:
                why = f"the rule in line {first[entry.name].mark.line} has the name too"
                raise UtcError(
                    f"the rule name '{entry.name}' is taken", where=str(node.mark), why=why, fix="choose another"
                )
            first[entry.name] = node
        return tuple(self._rule(entry, self.root.at("rules", index)) for index, entry in enumerate(self.file.rules))

    def _rule(self, entry: RuleEntry, node: Node) -> Rule:
        match = self._match(entry, node.at("match"))
        captures, lines = Captures(match), node.at("where").items()
        return Rule(
            name=entry.name,
            mark=node.mark,
            match=match,
            where=tuple(parse_comparison(self.variables.expand(line.passage), captures.names) for line in lines),
            inside=tuple(Scope(scope.module, scope.cls) for scope in entry.inside),
            not_inside=tuple(Scope(scope.module, scope.cls) for scope in entry.not_inside),
            exclude=tuple(self._named(str(word.content), str(word.mark)).name for word in node.at("except").listed()),
            select=_select(entry.select),
            insert=self._insertion(entry.insert, node.at("insert"), captures),
            expect=_expect(entry.expect),
            skips=entry.on_refusal == "skip",
        )

    def _match(self, entry: RuleEntry, node: Node) -> Match:
        if isinstance(entry.match, MatchEntry):
            return self._match_mapping(entry.match, node)
        passage = node.passage
        if _ALTERNATIVES.fullmatch(passage.text):  # ffn | gated_ffn: the spellings of both
            words = [(found[0], str(passage.mark(found.start()))) for found in _NAME.finditer(passage.text)]
            parts = [self._named(word, where) for word, where in words]
            return MatchPattern(
                Pattern(" | ".join(p.name for p in parts), tuple(s for p in parts for s in p.spellings))
            )
        if (word := entry.match.strip()).isidentifier() and len(word) <= MAX_WORD:
            return MatchPattern(self._named(word, str(passage.mark(passage.text.find(word)))))
        spelling = parse_spelling(self.variables.expand(passage), CALLABLE, self.patterns)
        pattern = Pattern(entry.name, (spelling,))
        check_calls(pattern, self.patterns)
        return MatchPattern(pattern)

    def _named(self, name: str, where: str) -> Pattern:
        if name in self.patterns:
            return self.patterns[name]
        fix = did_you_mean(name, self.patterns)
        if name in OPERATIONS or name in CLASSES:
            fix = f"to match one operation, write match: {{op: {name}}}"
        raise UtcError(f"unknown pattern '{short(name)}'", where=where, fix=fix)

    def _match_mapping(self, entry: MatchEntry, node: Node) -> Match:
        if entry.op is not None:
            passage = self.variables.expand(node.at("op").passage)
            return MatchOperation(parse_heads(passage, {*OPERATIONS, *CLASSES}, self.patterns))
        if entry.parameter is not None:
            return MatchParameter(entry.parameter)
        return MatchModule(entry.module, entry.cls)

    def _insertion(self, entry: InsertEntry, node: Node, captures: Captures) -> AnyInsertion:
        def tuner() -> TunerSpec:
            spec = self._tuner(entry, node.at("tuner"))
            captures.check_config(spec, node.at("tuner"))
            return spec

        return read_insertion(entry, node, captures, tuner)

    def _tuner(self, entry: InsertEntry, node: Node) -> TunerSpec:
        if not isinstance(entry.tuner, str):
            return tuner(node, None)
        if entry.tuner in self.tuners:
            return self.tuners[entry.tuner]
        fix = did_you_mean(entry.tuner, self.tuners)
        if entry.tuner in tuner_kinds():
            fix = f"{entry.tuner} is a kind: write tuner: {{kind: {entry.tuner}}}, or name it under tuners:"
        raise UtcError(f"unknown tuner '{entry.tuner}'", where=str(node.mark), fix=fix)

    def _train(self, node: Node) -> Train:
        return train_line(node.passage, node.mark, self._named)

    def _test(self, index: int) -> RuleTest:
        entry, node = self.file.tests[index], self.root.at("tests", index)
        rules = [rule.name for builder in (*self.included, self) for rule in builder.rules]
        for name, mark in node.at("sites").keys.items():
            if name not in rules:
                raise UtcError(f"unknown rule '{name}'", where=str(mark), fix=did_you_mean(name, rules))
        values: dict[str, Value] = {}
        for name, value in entry.vars.items():
            where = str(node.at("vars").keys[name])
            if name not in self.variables.values:
                fix = did_you_mean(name, self.variables.values)
                raise UtcError(f"unknown variable '{name}'", where=where, fix=fix)
            values[name] = check_value(value, name, where)
        sites = {name: dict.fromkeys(at) if isinstance(at, list) else at for name, at in entry.sites.items()}
        return RuleTest(entry.model, sites, values)

    def _refuse_idle(self) -> None:
        """Refuse a declared name that nothing uses, which is probably a mistake."""
        used = {rule.insert.tuner.name for rule in self.rules}
        for name, node in self.root.at("tuners").entries().items():
            if name not in used:
                fix = f"write tuner: {name} in a rule, or remove it"
                raise UtcError(f"the tuner '{name}' is never used", where=str(node.mark), fix=fix)
        for name, mark in self.root.at("vars").keys.items():
            if name not in self.variables.used:
                fix = f"write ${name} where it belongs, or remove it"
                raise UtcError(f"the variable '{name}' is never used", where=str(mark), fix=fix)


def train_line(passage: Passage, mark: Mark, named: Callable[[str, str], object]) -> Train:
    """`pattern:head`, `module:head.*`, `parameter:**.bias` or `untied:lm_head.weight`.

    Args:
        passage: the text.
        mark: its place.
        named: called with a name and its place; raises where there is no pattern of that name.
    """
    kind, colon, glob = passage.text.partition(":")
    if kind not in ("pattern", "module", "parameter", "untied") or not colon:
        fix = "write pattern:head, module:head.*, parameter:**.bias or untied:lm_head.weight"
        raise UtcError(f"'{short(passage.text)}' is no line of `train:`", where=str(mark), fix=fix)
    where = str(passage.mark(len(kind) + 1))
    if kind == "pattern":
        named(glob, where)
    elif why := glob_problem(glob):
        raise UtcError(f"'{short(glob)}' is not a glob: {why}", where=where, fix=GLOB_FIX)
    return Train(kind, glob, mark)  # type: ignore[arg-type]


class Captures:
    """The names that a match offers, with the checks of the places that use them."""

    def __init__(self, match: Match) -> None:
        self.names: Collection[str] = match.captures
        self.partial: frozenset[str] = frozenset()
        if isinstance(match, MatchPattern):
            everywhere = frozenset[str]().union(*(spelling.names for spelling in match.pattern.spellings))
            self.partial = everywhere - match.captures

    def check(self, name: str, where: str) -> str:
        """The name, if the match offers it."""
        if name in self.names:
            return name
        why = "not every spelling of the pattern binds it" if name in self.partial else None
        raise UtcError(
            f"the match offers no capture '{short(name)}'", where=where, why=why, fix=did_you_mean(name, self.names)
        )

    def word(self, passage: Passage) -> str:
        """The name of one capture."""
        found = _WORD.fullmatch(passage.text)
        if not found:
            fix = "write the name of one capture"
            raise UtcError(f"'{short(passage.text)}' is not the name of a capture", where=str(passage.start), fix=fix)
        return self.check(found[1], str(passage.mark(found.start(1))))

    def optional(self, node: Node | None) -> str | None:
        """The name of one capture, where one is given."""
        return None if node is None or node.content is None else self.word(node.passage)

    def arrow(self, passage: Passage, form: str) -> tuple[str, str]:
        """The two captures of `x -> y`."""
        found = _ARROW.fullmatch(passage.text)
        if not found:
            what = f"'{short(passage.text)}' names no source and target"
            raise UtcError(what, where=str(passage.start), fix=f"write {form}: x -> y")
        source, target = (self.check(found[group], str(passage.mark(found.start(group)))) for group in (1, 2))
        return source, target

    def check_config(self, spec: TunerSpec, node: Node) -> None:
        """Check the captures in the fields of a tuner, such as `activation: same as a`."""
        for key, value in spec.config.model_dump().items():
            if isinstance(value, str) and (found := SAME_AS.fullmatch(value)):
                field = node.get(key)  # of a tuner in place; for a named tuner the error is where the rule uses it
                self.check(found[1], str(field.passage.mark(found.start(1)) if field else node.mark))


def tuner(node: Node, name: str | None) -> TunerSpec:
    """The config of a tuner mapping, by its kind."""
    kind = node.get("kind")
    kinds = tuner_kinds()
    if kind is None:
        fix = f"add kind: one of {', '.join(kinds)}"
        raise UtcError("a tuner lacks its kind", where=str(node.mark), fix=fix)
    if kind.content not in kinds:
        fix = did_you_mean(str(kind.content), kinds)
        raise UtcError(f"unknown tuner kind '{short(kind.content)}'", where=str(kind.mark), fix=fix)
    return TunerSpec(name, validate(config_for(str(kind.content)), node), node.mark)


def _select(entry: SelectEntry | None) -> Select:
    if entry is None:
        return Select()
    indices = tuple(entry.indices) if entry.indices is not None else None
    return Select(entry.first, entry.last, entry.every, indices)


def _expect(entry: ExpectEntry | None) -> Expect:
    if entry is None:
        return Expect()
    least = 1 if entry.at_least is None else entry.at_least
    return Expect(least, entry.exactly, entry.at_most, entry.optional)

"""`RuleSet`: a whole rule file, loaded from a path, a shipped name or YAML text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules import yaml12
from utcompile.rules.build import Builder
from utcompile.rules.model import Rule, RuleTest, Train
from utcompile.rules.schema import RuleFile
from utcompile.rules.schema_errors import validate
from utcompile.rules.syntax import Pattern
from utcompile.rules.variables import Variables, check_value

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class RuleSet:
    """The rules of one file, typed and checked.

    Attributes:
        name: the file's own name for itself.
        path: the file; None where the rules came as text.
        text: the file's text, as it was read.
        cite: the paper that the rules follow.
        description: what they are for.
        vars: the variables, with the values that are in force.
        rules: in file order.
        patterns: every named pattern that may be called: the built-in ones and the file's own.
        train: what stays trainable beside the tuners.
        tests: models, and the sites each rule must find in them.
    """

    name: str
    path: Path | None
    text: str
    cite: str | None
    description: str | None
    vars: Mapping[str, Any]
    rules: tuple[Rule, ...]
    patterns: Mapping[str, Pattern]
    train: tuple[Train, ...]
    tests: tuple[RuleTest, ...]

    @classmethod
    def load(cls, source: RuleSet | Path | str, vars: Mapping[str, Any] | None = None) -> RuleSet:
        """Load rules.

        Args:
            source: a rule set, a path, the name of shipped rules (`u_tuning/dual`), or YAML text, which is known by
                having more than one line.
            vars: values for the file's variables, instead of its own.

        Raises:
            UtcError: with the place in the file, for anything that is wrong.

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
        given = dict(vars or {})
        if isinstance(source, RuleSet):
            return _parse(source.text, source.path, {**source.vars, **given}) if given else source
        if isinstance(source, str) and "\n" in source:
            return _parse(source, None, given)
        if isinstance(source, str | Path):
            path = _find(source)
            return _parse(_read(path), path, given)
        what = f"rules must be a RuleSet, a path, a shipped name or YAML text, not {type(source).__name__}"
        raise UtcError(what)


def shipped_rules() -> dict[str, Path]:
    """The rule files that come with utcompile, by name: `u_tuning/dual`."""
    folder = _PACKAGE / "_shipped_rules"
    if not folder.is_dir():  # a checkout, where they stand at the top
        folder = _PACKAGE.parent / "rules"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def _find(source: str | Path) -> Path:
    path = Path(source)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that the file system cannot have
        pass
    if isinstance(source, Path):
        raise UtcError(f"no rule file {str(source)!r:.200}", fix="check the path")
    shipped = shipped_rules()
    if source in shipped:
        return shipped[source]
    why = "it is neither a file nor the name of shipped rules; YAML text would have more than one line"
    raise UtcError(f"no rules {source!r:.200}", why=why, fix=did_you_mean(source, shipped))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(yaml12.MAX_BYTES + 1)
        size = len(content) if len(content) <= yaml12.MAX_BYTES else path.stat().st_size
    except OSError as error:
        raise UtcError("the rule file cannot be read", where=str(path), why=error.strerror) from None
    yaml12.check_size(size, str(path))
    return yaml12.decode(content, str(path))


def _parse(text: str, path: Path | None, given: Mapping[str, Any]) -> RuleSet:
    root = yaml12.load(text, str(path) if path else "<rules>")
    _check_mapping(root)
    variables = Variables(_values(root, given))
    root = variables.fill(root)
    file = validate(RuleFile, root)
    built = Builder(file, root, variables)
    return RuleSet(
        name=file.name,
        path=path,
        text=text,
        cite=file.cite,
        description=file.description,
        vars=variables.values,
        rules=built.rules,
        patterns=dict(built.patterns),
        train=built.train,
        tests=built.tests,
    )


def _check_mapping(root: yaml12.Node) -> None:
    if not isinstance(root.content, dict):
        fix = "begin with version: 1, name: … and rules: …"
        raise UtcError("a rule file is a mapping", where=str(root.mark), fix=fix)


def _values(root: yaml12.Node, given: Mapping[str, Any]) -> dict[str, Any]:
    node = root.get("vars")
    declared = node.entries() if node else {}
    values = {name: check_value(entry.data, name, str(entry.mark)) for name, entry in declared.items()}
    for name, value in given.items():
        if name not in values:
            where = str(node.mark) if node else None
            raise UtcError(f"unknown variable '{name}'", where=where, fix=did_you_mean(name, values))
        values[name] = check_value(value, name, None)
    return values

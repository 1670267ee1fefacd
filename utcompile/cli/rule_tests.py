"""`utcompile rules test`: the `tests:` of rule files, on real architectures with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.errors import UtcError, did_you_mean

if TYPE_CHECKING:
    from utcompile.plan import Plan
    from utcompile.recording import CapturedModule
    from utcompile.rules import RuleSet, RuleTest

Result = dict[str, object]


def load_files(path: str | None) -> tuple[dict[str, RuleSet], list[Result]]:
    """The rule files that a path names, and a failure for each file of a folder that cannot be read.

    Args:
        path: a file, a folder, or shipped rules; None for all shipped.

    Raises:
        UtcError: nothing of that name, a folder without rule files, or a single file that is no rule file.
    """
    from utcompile.rules import RuleSet, shipped_rules

    shipped = shipped_rules()
    if path is None:
        return {name: RuleSet.load(file) for name, file in shipped.items()}, []
    if Path(path).is_dir():
        return _folder(Path(path))
    if path not in shipped and not Path(path).is_file():
        raise UtcError(f"no rules {path!r}", fix=did_you_mean(path, shipped), code="rule/not-found")
    return {path: RuleSet.load(path)}, []


def _folder(folder: Path) -> tuple[dict[str, RuleSet], list[Result]]:
    from utcompile.rules import RuleSet

    found = sorted(folder.rglob("*.yaml"))
    if not found:
        raise UtcError(
            "the folder contains no rule file", where=str(folder), fix="rule files end in .yaml", code="rule/not-found"
        )
    loaded, failed = {}, []
    for file in found:
        try:
            loaded[str(file)] = RuleSet.load(file)
        except UtcError as error:
            if not _is_part(file):
                failed.append(_failure(str(file), None, _line(error)))
    return loaded, failed


def _is_part(file: Path) -> bool:
    """Whether a file is one that others include: patterns, tuners or variables, without rules."""
    from utcompile.rules.yaml12 import load

    try:
        keys = load(file.read_bytes(), str(file)).keys.keys()
    except (UtcError, OSError):
        return False
    return bool(keys & {"patterns", "tuners", "vars"}) and not keys & {"rules", "include"}


def run_tests(files: dict[str, RuleSet]) -> Iterator[Result]:
    """Yield a result per rule of which a test states something; the tests of one model are together.

    A model that cannot be built or captured, and rules that cannot be matched, are one failed result a test.
    """
    tests = [(name, rules, entry) for name, rules in files.items() for entry in rules.tests]
    for spec in dict.fromkeys(model_of(rules, entry) for _, rules, entry in tests):  # one model in memory at a time
        model = _captured(spec)
        for name, rules, entry in tests:
            if model_of(rules, entry) == spec:
                yield from (
                    [_failure(name, entry.model, model)] if isinstance(model, str) else _run(name, rules, entry, model)
                )


def model_of(rules: RuleSet, entry: RuleTest) -> str:
    """The model of a test. A Python file is looked for next to the rule file, and then in the current folder."""
    file, suffix, factory = entry.model.rpartition(".py:")
    if suffix and rules.path is not None and (beside := rules.path.parent / f"{file}.py").is_file():
        return f"{beside}:{factory}"
    return entry.model


def _captured(spec: str) -> CapturedModule | str:
    """The model, or why there is none."""
    import utcompile as utc
    from utcompile.cli.models import ModelChoice

    try:
        choice = ModelChoice(spec)
        return utc.capture(choice.build(), (choice.example(),), verify="shapes")
    except UtcError as error:
        return _line(error)
    except Exception as error:  # a library's own way to refuse, or one that is not installed
        return f"{spec} cannot be built: {type(error).__name__}: {error}".partition("\n")[0]


def _run(name: str, rules: RuleSet, entry: RuleTest, model: CapturedModule) -> Iterator[Result]:
    from utcompile.matching.places import places
    from utcompile.matching.verdict import by_rule, judge

    try:
        plan = _lenient(rules, entry, model)
    except UtcError as error:
        yield _failure(name, entry.model, _line(error))
        return
    modules, found = places(plan.view), by_rule(plan.sites)
    verdicts = [judge(rule, expected, found.get(rule, ()), modules) for rule, expected in entry.sites.items()]
    for verdict in verdicts:
        near = [] if verdict.passed or verdict.noisy else _near(plan, verdict.rule)
        text = {"text": str(verdict), "details": [*verdict.details(), *near]}
        about = {"rules": name, "model": entry.model, **verdict.to_dict(), "passed": verdict.passed, "error": None}
        yield {**about, "near": near, **text}
    if all(verdict.passed and verdict.found for verdict in verdicts):
        try:  # what the rules themselves expect
            _match(rules, entry, model)
        except UtcError as error:
            yield _failure(name, entry.model, _line(error))


def _match(rules: RuleSet, entry: RuleTest, model: CapturedModule) -> Plan:
    import utcompile as utc

    return utc.match(model, rules, entry.vars or None)


def _lenient(rules: RuleSet, entry: RuleTest, model: CapturedModule) -> Plan:
    """The plan, also where a rule finds fewer or more sites than it expects itself: that is what is tested."""
    import utcompile as utc
    from utcompile.rules import Expect, RuleSet

    loaded = RuleSet.load(rules, vars=entry.vars or None)
    any_number = Expect(optional=True, at_least=0)
    return utc.match(model, replace(loaded, rules=tuple(replace(r, expect=any_number) for r in loaded.rules)))


def _near(plan: Plan, rule: str) -> list[str]:
    """The nearest miss of a rule that found too little."""
    (found,) = [r for r in plan.explanation().rules if r.rule == rule]
    return [f"nearly   {near}" for near in found.near[:1]]


def _failure(rules: str, model: str | None, error: str | None) -> Result:
    about: Result = {"rules": rules, "model": model, "rule": None, "expected": None, "found": None}
    return {
        **about,
        "missing": [],
        "noisy": [],
        "sites": [],
        "passed": False,
        "error": error,
        "near": [],
        "text": error,
        "details": [],
    }


def _line(error: UtcError) -> str:
    """An error on one line: where, what, and why or what to do."""
    place = f"{error.where}: " if error.where else ""
    more = error.why or error.fix
    return f"{place}{error.what}{f' ({more})' if more else ''}".replace("\n", " ")

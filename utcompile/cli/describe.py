"""What a rule file does, in words: for `utcompile rules list` and `show`, and for the table of the shipped ones."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utcompile.rules import Match, Rule, RuleSet

_LABEL = 11
WIDTH = 80  # prose is read in narrow columns, however wide the terminal


def summary(rules: RuleSet) -> list[str]:
    """A rule file in two lines or so: what it does; what becomes of it in folding, its variables, its source."""
    sentence = (rules.description or "").partition(". ")[0].strip().removesuffix(".")
    folds = f"{' and '.join(rules.folds)} when folded" if rules.folds else ""
    facts = " · ".join(filter(None, (folds, values(rules), rules.cite or "")))
    return [*_wrapped(sentence, " " * 4), *_wrapped(facts, " " * 4)]


def about(rules: RuleSet) -> list[str]:
    """All that a rule file says, in words."""
    lines = _wrapped(rules.description or "", "  ") + [""] * bool(rules.description)
    for label, entries in _facts(rules).items():
        for index, entry in enumerate(entries):
            first = f"  {'' if index else label:<{_LABEL}}"
            lines += _wrapped(entry, first, " " * (len(first) + 2))
    return lines


def as_data(name: str, rules: RuleSet) -> dict[str, object]:
    """The same as plain data, for JSON."""
    keys = ("cite", "description", "folds", "vars")
    inserts = [{"name": r.name, "tuner": r.insert.tuner.config.kind, "inserts": insertion(r)} for r in rules.rules]
    tests = [{"model": test.model, "sites": test.sites, "vars": test.vars} for test in rules.tests]
    more = {"rules": inserts, "train": _trained(rules), "tests": tests, "included": list(rules.included)}
    return {"name": name, **{key: getattr(rules, key) for key in keys}, **more}


def values(rules: RuleSet) -> str:
    """The variables with their values."""
    return ", ".join(f"{name}={value}" for name, value in rules.vars.items())


def insertion(rule: Rule, quote: str = "") -> str:
    """What a rule inserts, and where.

    Example:
        >>> from utcompile.rules import RuleSet
        >>> [insertion(rule) for rule in RuleSet.load("lora/all_linear").rules]
        ['lora weight h at every linear but head']
    """
    insert = rule.insert
    target = " -> ".join(insert.named)
    where = matched(rule.match, quote)
    less = f" but {' and '.join(f'{quote}{n}{quote}' for n in rule.exclude)}" if rule.exclude else ""
    few = " (the first)" if rule.select.first == 1 else ""
    return f"{insert.tuner.config.kind} {insert.form} {quote}{target}{quote} at {where}{less}{few}"


def matched(match: Match, quote: str = "") -> str:
    """What a rule looks for: `every linear`, `ffn or gated_ffn`."""
    from utcompile.rules import MatchModule, MatchOperation, MatchPattern

    match match:
        case MatchOperation(heads=heads):
            return "every " + " or ".join(head.name for head in heads)
        case MatchPattern(pattern=pattern):
            return " or ".join(f"{quote}{name}{quote}" for name in pattern.name.split(" | "))
        case MatchModule(module=module, cls=cls):
            return " ".join(filter(None, ("modules", module, f"of class {cls}" if cls else "")))
    return f"parameters {match.parameter}"


def _facts(rules: RuleSet) -> dict[str, list[str]]:
    tests = [
        f"{test.model}: {', '.join(f'{name} {count}' for name, count in test.sites.items())}"
        + "".join(f", with {name}={value}" for name, value in test.vars.items())
        for test in rules.tests
    ]
    facts = {
        "rules": [f"{rule.name}: {insertion(rule)}" + _conditions(rule) for rule in rules.rules],
        "trains": [", ".join(("the tuners", *_trained(rules)))],
        "folds": [" and ".join(rules.folds)] if rules.folds else [],
        "variables": [values(rules)] if rules.vars else [],
        "includes": list(rules.included),
        "cite": [rules.cite] if rules.cite else [],
        "tests": tests,
    }
    return {label: lines for label, lines in facts.items() if lines}


def _conditions(rule: Rule) -> str:
    return "".join(f", where {line.text}" for line in rule.where)


def _trained(rules: RuleSet) -> list[str]:
    return [f"{entry.kind}:{entry.glob}" for entry in rules.train]


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    later = first if later is None else later
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)

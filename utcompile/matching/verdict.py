"""The result of a rule's test: missing and noisy sites by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from utcompile.matching.sites import Site
from utcompile.rules import ExpectedSites, glob_match
from utcompile.text import counted, listed

ROOT = "(root)"  # how a test names the root module


@dataclass(frozen=True)
class Verdict:
    """A rule in one model, compared with its test.

    Attributes:
        rule: the rule's name.
        expected: the sites of the test: a number, or globs of paths with numbers (None: one or more).
        found: the paths of the sites, one per site.
        missing: paths that should have a site and have none; or a glob with numbers, where it is unknown which of its
            paths are missing.
        noisy: paths with a site, or with more sites, that the test does not state.
    """

    rule: str
    expected: ExpectedSites
    found: tuple[str, ...]
    missing: tuple[str, ...]
    noisy: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the sites are those of the test."""
        if isinstance(self.expected, int):
            return len(self.found) == self.expected
        return not self.missing and not self.noisy

    @property
    def wanted(self) -> str:
        """The sites of the test, in words.

        >>> Verdict("r", {"blocks.*": 12, "head": None}, (), (), ()).wanted
        '12 at blocks.*, head'
        """
        if isinstance(self.expected, int):
            return str(self.expected)
        return ", ".join(glob if n is None else f"{n} at {glob}" for glob, n in self.expected.items()) or "none"

    def __str__(self) -> str:
        return f"{self.rule}: expected {self.wanted}, found {len(self.found)}"

    def details(self) -> list[str]:
        """Lines that name missing and noisy paths; for a number alone, the paths that were found."""
        lines = [f"Missing  {path}" for path in self.missing] + [f"Noisy    {path}" for path in self.noisy]
        if not lines and self.found:
            lines.append(f"found at {listed(self.found, 12)}")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        expected = self.expected if isinstance(self.expected, int) else dict(self.expected)
        lists = {"missing": list(self.missing), "noisy": list(self.noisy), "sites": list(self.found)}
        return {"rule": self.rule, "expected": expected, "found": len(self.found), **lists}


def judge(rule: str, expected: ExpectedSites, paths: Sequence[str], modules: Iterable[str]) -> Verdict:
    """Compare the paths of a rule's sites with what its test states.

    Args:
        rule: the rule's name.
        expected: a number of sites; or a number by glob, None for one or more. Every site must lie at one of the globs.
        paths: the paths of the rule's sites, one per site.
        modules: the paths of the model's modules, among which those without a site are looked for.

    Example:
        >>> judge("r", {"blocks.0": None, "blocks.1": None}, ["blocks.1", "head"], []).details()
        ['Missing  blocks.0', 'Noisy    head']
    """
    found = tuple(path or ROOT for path in paths)
    if isinstance(expected, int):
        return Verdict(rule, expected, found, (), ())
    missing: list[str] = []
    noisy = [path for path in found if not any(glob_match(glob, path) for glob in expected)]
    known = [path or ROOT for path in modules]
    for glob, number in expected.items():
        here = [path for path in found if glob_match(glob, path)]
        if number is None:
            missing += [] if here else _without(glob, here, known, None)
        elif len(here) < number:
            missing += _without(glob, here, known, number - len(here))
        elif len(here) > number:
            noisy += here if not number else _beyond(glob, here, number)
    return Verdict(rule, expected, found, tuple(dict.fromkeys(missing)), tuple(dict.fromkeys(noisy)))


def _without(glob: str, here: Sequence[str], known: Sequence[str], number: int | None) -> list[str]:
    """The modules that a glob names and that have no site, where these are the ones that are missing."""
    if "*" not in glob:
        return [glob if number is None or not here else f"{glob}: {counted(number, 'site')} more"]
    free = [path for path in known if glob_match(glob, path) and path not in here]
    if number is not None and len(free) == number:
        return free
    if number is None:
        return [glob]
    among = f", among {listed(free)}" if free else ""
    return [f"{glob}: {len(here)} of {len(here) + number}{among}"]


def _beyond(glob: str, here: Sequence[str], number: int) -> list[str]:
    if "*" not in glob:
        return [f"{glob}: {len(here)} sites, not {number}"]
    return [f"{glob}: {len(here)} sites, not {number}: {listed(here)}"]


def by_rule(sites: Iterable[Site]) -> Mapping[str, list[str]]:
    """The paths of a plan's sites by rule."""
    found: dict[str, list[str]] = {}
    for site in sites:
        found.setdefault(site.rule, []).append(site.path)
    return found

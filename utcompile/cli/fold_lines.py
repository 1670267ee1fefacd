"""A folding report for a terminal: one line for the sites of repeated blocks that folded alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utcompile.cli.names import rule_names
from utcompile.errors import UtcError
from utcompile.text import alike, columns, run

if TYPE_CHECKING:
    from utcompile.folding import FoldReport
    from utcompile.folding.report import FoldedSite

_DIGITS = re.compile(r"\d+")


def report_lines(report: FoldReport) -> str:
    """The table and the summary, with one line for sites that are alike; errors are the largest of theirs."""
    found = _alike((*report.sites, *report.base))
    if not found:
        return summary_lines(report)
    head, *_ = report.rows()
    rows = [(head[0], "n", *head[1:]), *(_row(sites) for sites in found)]
    return "\n".join([*(line.rstrip() for line in columns(rows, 0)), summary_lines(report)])


def summary_lines(report: FoldReport) -> str:
    """What became of all tuners, and why some were kept, once for those that are alike."""
    whole = [line for line in report.summary().split("\n") if not line.startswith("  ")]
    for sites in _alike(report.sites):
        if sites[0].reason:
            word = "kept " if sites[0].status == "kept" else ""
            more = f" ({len(sites)} alike)" if len(sites) > 1 else ""
            whole.append(f"  {word}{_name(sites)}: {sites[0].reason}{more}")
    return "\n".join(whole)


def _alike(sites: Sequence[FoldedSite]) -> list[list[FoldedSite]]:
    groups: dict[tuple[object, ...], list[FoldedSite]] = {}
    for site in sites:
        rule, _, path = site.id.partition("/")
        where = path.rpartition("/")[0]
        told = site.row()[2:4] if site.status != "kept" else ()
        key = (rule, alike(where), site.status, told, f"{site.retained:.1%}", _DIGITS.sub("*", site.reason))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _row(sites: Sequence[FoldedSite]) -> tuple[str, ...]:
    worst = max(sites, key=lambda site: site.max_error).row()
    cells = [cell or "-" for cell in worst[2:]]
    known = [site.dtype_error for site in sites if site.dtype_error is not None]
    if sites[0].status != "kept" and known:
        cells[3] = f"{max(known):.0e}" if len(known) == len(sites) else "?"
    return (_name(sites), str(len(sites)), worst[1], *cells)


def _name(sites: Sequence[FoldedSite]) -> str:
    """`rule/path` with the span of the numbers; the whole id where there is one site, with `(root)` for no path."""
    if len(sites) == 1:
        return sites[0].id.replace("//", "/(root)/")
    rule, _, _ = sites[0].id.partition("/")
    return f"{rule}/{run([site.id.partition('/')[2].rpartition('/')[0] for site in sites])}"


@contextmanager
def sibling_named(rules: str) -> Iterator[None]:
    """Where tuners cannot be folded and the shipped rules have a file that can, the error names it.

    Args:
        rules: the name in the rule file: `dual`.
    """
    try:
        yield
    except UtcError as error:
        found = [name for name in rule_names() if name.rpartition("/")[2] == f"{rules}_foldable"]
        if error.code != "fold/kept" or not found:
            raise
        fix = f"fold without --strict, or train with {' or '.join(found)}"
        raise UtcError(error.what, where=error.where, why=error.why, fix=fix, code="fold/kept") from error

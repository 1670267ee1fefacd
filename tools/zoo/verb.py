"""`python -m tools.zoo`: capture every model of timm, torchvision and transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.zoo.rows import STATUSES, Row, RowFile, Task, smallest_of_each_class
from utcompile.cli import output
from utcompile.cli.options import Json, examples

if TYPE_CHECKING:
    from tools.zoo.pool import Limits

LIBRARIES = ("timm", "torchvision", "transformers")
MODES = ("auto", "shapes", "full", "classes", "none")
EXAMPLES = examples(
    "python -m tools.zoo --page docs/zoo.md",
    "python -m tools.zoo --library timm --only 'vit_*' --verify shapes --jobs 4",
    "python -m tools.zoo --retry failed --retry 'timed out'",
)

# verification by library for --verify auto: of every model, and then of one model of each class
_AUTO = {"timm": ("shapes", "full"), "torchvision": ("shapes", "full"), "transformers": ("full", None)}


def zoo(
    library: Annotated[
        list[str] | None, typer.Option("--library", metavar="NAME", help="timm, torchvision or transformers; all.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="GLOB", help="Models whose name matches; all by default.")
    ] = None,
    verify: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="auto: shapes of all, values of the smallest model of each class. shapes, full: of all. "
            "classes: only the smallest of each class, values. none: only build.",
        ),
    ] = "auto",
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Worker processes.")] = 1,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The rows, one per line, appended as they come.")
    ] = Path("build/zoo.jsonl"),
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Forget the rows there are.")] = False,
    retry: Annotated[
        list[str] | None, typer.Option("--retry", metavar="STATUS", help="Do rows of this status again.")
    ] = None,
    limit_seconds: Annotated[
        float, typer.Option("--limit-seconds", metavar="S", min=1, help="For one model; then it is ended.")
    ] = 300.0,
    limit_gb: Annotated[
        float, typer.Option("--limit-gb", metavar="GB", min=1, help="Memory of a worker; then it is ended.")
    ] = 10.0,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Write the rows as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Capture every model of timm, torchvision and transformers, and say what came of each.

    Each runs in a worker process: a crash, a hang or a flood of memory costs one row. A run that was interrupted goes
    on where it stopped. Failures leave the exit code at 0: they are results.
    """
    from tools.zoo.pool import Limits

    libraries = _chosen("--library", library or LIBRARIES, LIBRARIES)
    _chosen("--verify", [verify], MODES)
    again = _chosen("--retry", retry or (), STATUSES)
    file = RowFile(out)
    if fresh:
        file.clear()
    file.mend()
    limits = Limits(seconds=limit_seconds, memory=limit_gb * 1e9)
    stale = {key for key, row in file.read().items() if row.status in again}
    wanted = [
        (lib, name) for lib in libraries for name in _names(lib) if not only or any(fnmatch(name, g) for g in only)
    ]
    for round_ in (1, 2):
        rows = file.read()
        tasks = list(_tasks(wanted, rows, verify, round_))
        left = [t for t in tasks if t.key in stale or not _is_done(rows.get(t.key), t.verify)]
        _run(left, file, jobs, limits)
        stale -= {t.key for t in left if round_ == 1 and t.verify == "full"}
    chosen = [row for key, row in file.read().items() if key in set(wanted)]
    if page:
        from tools.zoo.page import page as text

        page.write_text(text(file.read().values()), encoding="utf-8")
    if json:
        output.emit([asdict(row) for row in chosen])
        return
    _summary(chosen)


def _tasks(wanted: list[tuple[str, str]], rows: dict[tuple[str, str], Row], verify: str, round_: int) -> Iterable[Task]:
    """Yield the tasks of a round: first every model; then, by what was found, the smallest model of each class."""
    if round_ == 1:
        for library, name in wanted:
            first = _AUTO[library][0] if verify == "auto" else "none" if verify == "classes" else verify
            yield Task(library, name, first)
        return
    among = set(wanted)
    for row in smallest_of_each_class(r for key, r in rows.items() if key in among):
        if verify == "classes" or (verify == "auto" and _AUTO[row.library][1]):
            yield Task(row.library, row.name, "full")


def _is_done(row: Row | None, verify: str) -> bool:
    order = ("none", "shapes", "full")
    return row is not None and (row.status == "not built" or order.index(row.verify) >= order.index(verify))


def _run(tasks: list[Task], file: RowFile, jobs: int, limits: Limits) -> None:
    from tools.zoo.pool import run_tasks
    from tools.zoo.work import work

    before = file.read()
    for i, found in enumerate(run_tasks(tasks, work, jobs, limits), 1):
        row = kept(before.get(found.key), found)
        file.append(row)
        what = (
            row.status if row.status in ("ok", "built") else f"{row.status}: {row.reason.partition(chr(10))[0][:160]}"
        )
        output.progress(f"{i}/{len(tasks)}  {row.library}:{row.name}  {row.capture_seconds:.1f} s  {what}")


def kept(before: Row | None, row: Row) -> Row:
    """The row that counts: a model that was captured stays captured where comparing its values needs more than a limit.

    Example:
        >>> ok, large = Row("timm", "m", "ok"), Row("timm", "m", "failed", reason="it took more than 10 GB")
        >>> kept(ok, large).status, kept(ok, large).note
        ('ok', 'values were not compared: it took more than 10 GB')
    """
    if before is None or before.status not in ("ok", "opaque") or not row.reason.startswith("it took more than"):
        return row
    note = f"values were not compared: {row.reason}"
    return replace(before, verify=row.verify, note="; ".join(filter(None, (before.note, note))))


def _names(library: str) -> list[str]:
    if library == "transformers":
        from tools.zoo.hugging_face import names

        return names()
    from tools.zoo import models

    listed: Callable[[], list[str]] = getattr(models, f"{library}_names")
    return listed()


def _chosen(option: str, given: Iterable[str], known: Iterable[str]) -> list[str]:
    for word in given:
        if word not in known:
            raise typer.BadParameter(f"{word!r} is none of {', '.join(known)}", param_hint=option)
    return list(given)


def _summary(rows: list[Row]) -> None:
    from tools.zoo.page import counts

    for library in LIBRARIES:
        found = [r for r in rows if r.library == library]
        if found:
            told = ", ".join(f"{n} {status}" for status, n in counts(found).items())
            output.say(f"{library}: {len(found)} models: {told}")

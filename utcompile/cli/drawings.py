"""Pictures and pages that verbs write: checked before any work, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.files import check_target, replace_file, reported
from utcompile.text import counted

if TYPE_CHECKING:
    from utcompile.plan import Plan
    from utcompile.plan_of_parts import PartsPlan

DrawingFile = Annotated[
    Path | None, typer.Option("--svg", metavar="FILE", help="Draw what is inserted, as an SVG file.")
]
PageFile = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Write a page with the drawing, to search and to click; it works offline."
    ),
]


def check_targets(*files: Path | None) -> None:
    """Raise where a file cannot be written: called before any work is done."""
    for file in files:
        if file is not None:
            check_target(file)


def draw(plan: Plan, svg: Path | None, html: Path | None) -> None:
    """Write the drawing and the page of a plan, where a file is named."""
    if svg is None and html is None:
        return
    from utcompile.report import plan_page, svg_of

    for file, made in ((svg, svg_of), (html, plan_page)):
        if file is not None:
            write_page(file, made(plan))
            output.progress(f"written: {file}")


def draw_parts(plan: PartsPlan, html: Path | None) -> None:
    """Write the page of the parts of a model, where a file is named."""
    if html is None:
        return
    from utcompile.report import parts_page

    sites, parts = counted(len(plan.sites), "site"), counted(len(plan.plans), "part")
    about = f"{plan.ruleset.name} in {parts}: {sites}, {plan.parameters:,} parameters to train"
    write_page(html, parts_page(plan.plans or plan.empty, about))
    output.progress(f"written: {html}")


def write_page(file: Path, text: str) -> None:
    """Write a text file whole, or not at all."""
    with reported("the file cannot be written", file):
        replace_file(file.absolute(), text.encode())

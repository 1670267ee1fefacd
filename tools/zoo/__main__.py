"""`python -m tools.zoo`: the command, and what becomes of an error."""

from __future__ import annotations

import sys

import typer

from tools.zoo.verb import EXAMPLES, zoo
from utcompile.cli import output
from utcompile.errors import UtcError

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)
app.command(epilog=EXAMPLES)(zoo)

if __name__ == "__main__":
    try:
        app()
    except UtcError as error:
        output.fail(error)
        sys.exit(1)

"""The application: its verbs, and what becomes of an error."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from utcompile.cli import output
from utcompile.cli.bench import EXAMPLES as BENCH
from utcompile.cli.bench import bench
from utcompile.cli.compare import EXAMPLES as COMPARE
from utcompile.cli.compare import compare
from utcompile.cli.demo import EXAMPLES as DEMO
from utcompile.cli.demo import demo
from utcompile.cli.evaluate import EXAMPLES as EVALUATE
from utcompile.cli.evaluate import evaluate
from utcompile.cli.explain import EXAMPLES as EXPLAIN
from utcompile.cli.explain import explain
from utcompile.cli.export import EXAMPLES as EXPORT
from utcompile.cli.export import export
from utcompile.cli.fold import EXAMPLES as FOLD
from utcompile.cli.fold import fold
from utcompile.cli.inspect import EXAMPLES as INSPECT
from utcompile.cli.inspect import inspect
from utcompile.cli.options import examples
from utcompile.cli.predict import EXAMPLES as PREDICT
from utcompile.cli.predict import predict
from utcompile.cli.report import EXAMPLES as REPORT
from utcompile.cli.report import report
from utcompile.cli.rules import app as rules
from utcompile.cli.suggest import EXAMPLES as SUGGEST
from utcompile.cli.suggest import suggest
from utcompile.cli.train import EXAMPLES as TRAIN
from utcompile.cli.train import train
from utcompile.cli.verify import EXAMPLES as VERIFY
from utcompile.cli.verify import verify
from utcompile.errors import UtcError

_BUG = 70  # EX_SOFTWARE: neither the user's error (1) nor a wrong command (2)


class _Group(TyperGroup):
    """Turns a `UtcError` of any verb into its text and exit code 1, and Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UtcError as error:
            output.fail(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            output.progress("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="utcompile",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "utcompile demo",
        "utcompile inspect -m timm:resnet50",
        "utcompile train -m timm:resnet50 -r lora/all_conv -d photos/ -o run/",
        "utcompile export run/ -o model.onnx",
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"utcompile {version('utcompile')}")
        raise typer.Exit


@app.callback()
def _utcompile(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Tune a frozen model where rules say, fold the tuners away, ship a proven ONNX file."""


app.command(epilog=INSPECT)(inspect)
app.command(epilog=SUGGEST)(suggest)
app.command(epilog=EXPLAIN)(explain)
app.command(epilog=TRAIN)(train)
app.command(epilog=EVALUATE)(evaluate)
app.command(epilog=FOLD)(fold)
app.command(epilog=EXPORT)(export)
app.command(epilog=VERIFY)(verify)
app.command(epilog=PREDICT)(predict)
app.command(epilog=BENCH)(bench)
app.command(epilog=REPORT)(report)
app.command(epilog=COMPARE)(compare)
app.add_typer(rules, name="rules")
app.command(epilog=DEMO)(demo)


def main() -> None:
    """The entry point. An exception that is no `UtcError` is a bug of utcompile, and is reported as one."""
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.stderr.write("\nThis is a bug in utcompile. Please report it, with the lines above and the command.\n")
        sys.exit(_BUG)

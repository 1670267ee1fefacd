"""`utcompile rules`: the shipped rules, their texts, and whether they find what they say."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.complete import complete_model, complete_rules
from utcompile.cli.drawings import check_targets
from utcompile.cli.early import check_model, check_rule_path, check_rules
from utcompile.cli.options import Json, examples
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

_SCHEMA_LINE = re.compile(r"\A# yaml-language-server: [^\n]*\n")

app = typer.Typer(
    help="The shipped rules: list, show and test them.",
    no_args_is_help=True,
    epilog=examples("utcompile rules list", "utcompile rules show u_tuning/dual", "utcompile rules test my_rules.yaml"),
)


@app.command(
    "list",
    epilog=examples("utcompile rules list", "utcompile rules list -m timm:resnet50", "utcompile rules list --json"),
)
def list_rules(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Only those that fit this model, with their costs, by name (`utcompile suggest` ranks them).",
            autocompletion=complete_model,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the shipped rules: what they do, what folds, their variables, their source."""
    if model is not None:
        _list_fitting(model, json)
        return
    from utcompile.cli import describe
    from utcompile.rules import RuleSet, shipped_rules

    loaded = {name: RuleSet.load(path) for name, path in shipped_rules().items()}
    if json:
        output.emit([describe.as_data(name, rules) for name, rules in loaded.items()])
        return
    for name, rules in loaded.items():
        output.say(name, "bold")
        output.say("\n".join(describe.summary(rules)))


def _list_fitting(model: str, json: bool) -> None:
    from utcompile.cli.suggest import grouped, table

    check_model(model)
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.suggestions import suggestions

    fitting, refused = suggestions(ModelChoice(model))
    if json:
        output.emit({"fitting": [vars(s) for s in fitting], "refused": refused})
        return
    output.stdout().print(table(fitting))
    for line in grouped(refused):
        output.say(line, "dim")


@app.command(
    "show",
    epilog=examples(
        "utcompile rules show lora/all_conv",
        "utcompile rules show --about u_tuning/dual",
        "utcompile rules show u_tuning/dual > mine.yaml",
    ),
)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Shipped rules, or a rule file.", autocompletion=complete_rules)
    ],
    about: Annotated[bool, typer.Option("--about", help="Describe them, without their text.")] = False,
    json: Json = False,
) -> None:
    """Show rules: in words and as text on a terminal, their text alone where it goes into a file."""
    check_rules(name)
    from rich.syntax import Syntax

    from utcompile.cli import describe
    from utcompile.rules import RuleSet, shipped_rules

    rules, console = RuleSet.load(name), output.stdout()
    text = rules.text
    if rules.path in shipped_rules().values():
        text = _SCHEMA_LINE.sub("", text)  # it names the schema by a path that leads nowhere from a copy
    if json:
        output.emit({**describe.as_data(name, rules), "text": text})
        return
    if about or console.is_terminal:
        output.say(name, "bold")
        output.say("\n".join(describe.about(rules)))
    if about:
        return
    if console.is_terminal:
        console.print()
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)


@app.command(
    "test", epilog=examples("utcompile rules test", "utcompile rules test u_tuning/dual", "utcompile rules test rules/")
)
def test(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]", help="A rule file, a folder of them, or shipped rules; by default all shipped."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run the `tests:` of rule files: the sites each rule finds in models of random weights."""
    check_rule_path(path)
    from utcompile.cli.rule_tests import load_files, run_tests

    files, results = load_files(path)
    for result in [] if json else results:
        _show(result)
    for result in run_tests(files):
        results.append(result)
        if not json:
            _show(result)
    failed = [r for r in results if not r["passed"]]
    if json:
        data = [{k: v for k, v in r.items() if k not in ("text", "details")} for r in results]
        output.emit({"passed": not failed, "results": data})
    else:
        untested = [name for name, rules in files.items() if not rules.tests]
        of_files = f"{len(files)} rule file{'s' * (len(files) != 1)}"
        output.say(f"{len(results) - len(failed)} of {len(results)} as expected, in {of_files}")
        if untested:
            output.say(f"without tests: {', '.join(untested)}")
    if failed:
        raise typer.Exit(1)


def _show(result: JsonObject) -> None:
    verdict = "ok" if result["passed"] else "ERROR" if result["error"] else "DIFFERS"
    about = "  ".join(part for part in (result["rules"], result["model"], result["text"]) if part)
    output.say(f"{verdict:8}{about}", "" if result["passed"] else "red")
    for line in result["details"] if not result["passed"] else ():
        output.say(f"          {line}")


@app.command("schema", epilog=examples("utcompile rules schema -o rules.schema.json"))
def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")] = None,
) -> None:
    """Write the JSON Schema of rule files, with which an editor completes and checks them.

    It knows the registered tuners, those of plugins too. A rule file names it in its first line:
    `# yaml-language-server: $schema=rules.schema.json`.
    """
    check_targets(out)
    from utcompile.rules import json_schema

    text = json_module.dumps(json_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UtcError(
            "the schema cannot be written", where=str(out), why=error.strerror, code="path/invalid"
        ) from None

"""`make docs`: bring the generated tables of README and docs and the JSON Schema up to date, and check every link.

    python docs/build.py            write the tables, then check
    python docs/build.py --check    change nothing; a table that is out of date is a problem

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; `PARTS` says what makes it. A link is
checked where it leads to a file of this repository; so is every path in backticks that looks like one of its files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:utcompile|rules|docs|benchmarks|examples|tests)/[\w./*-]*)`")


def shipped_rules_table() -> str:
    """Every shipped rule file: what it inserts where, its source, and whether it folds."""
    from utcompile.cli.describe import insertion, values
    from utcompile.rules import RuleSet, shipped_rules

    rows = ["| rules | inserts | vars | source | folds |", "|---|---|---|---|---|"]
    for name in shipped_rules():
        rules = RuleSet.load(name)
        inserts = "; ".join(insertion(rule, quote="`") for rule in rules.rules)
        rows.append(f"| `{name}` | {inserts} | {values(rules)} | {rules.cite} | {' and '.join(rules.folds)} |")
    return "\n".join(rows)


def patterns_table() -> str:
    """Every named pattern with the names that all of its spellings bind."""
    from utcompile.rules import library_patterns

    rows = ["| pattern | offers | spellings |", "|---|---|---|"]
    for name, pattern in library_patterns().items():
        rows.append(f"| `{name}` | {' '.join(f'`{n}`' for n in sorted(pattern.names))} | {len(pattern.spellings)} |")
    return "\n".join(rows)


def operations_table() -> str:
    """The words that a pattern may call."""
    from utcompile.rules.names import CLASSES, OPERATIONS_BY_GROUP, STRUCTURAL

    rows = ["| word | meaning |", "|---|---|"]
    for group, words in {"classes": CLASSES, "structure": STRUCTURAL, **OPERATIONS_BY_GROUP}.items():
        rows.append(f"| **{group}** | |")
        rows += [f"| `{word}` | {_cell(meaning)} |" for word, meaning in words.items()]
    return "\n".join(rows)


def attributes_table() -> str:
    """What `where:` may ask of a capture."""
    from utcompile.rules.where import ATTRIBUTES

    return "\n".join(
        ["| attribute | meaning |", "|---|---|", *(f"| `.{k}` | {_cell(v)} |" for k, v in ATTRIBUTES.items())]
    )


def tuners_table() -> str:
    """The fields of every shipped tuner's config."""
    from utcompile.tuners import tuner_class

    rows = ["| kind | field | default | meaning |", "|---|---|---|---|"]
    for kind in ("adapter", "lora", "prefix"):
        for name, field in tuner_class(kind).config_class.model_fields.items():
            if name != "kind":
                rows.append(f"| `{kind}` | `{name}` | `{field.default}` | {_cell(field.description or '')} |")
    return "\n".join(rows)


def verbs_table() -> str:
    """The verbs of the command line."""
    rows = ["| verb | what it does |", "|---|---|"]
    for name, command in _commands():
        rows.append(f"| `utcompile {name}` | {_cell((command.help or '').strip().splitlines()[0])} |")
    return "\n".join(rows)


def options_tables() -> str:
    """The arguments and options of every verb, as its `--help` has them."""
    parts = []
    for name, command in _commands():
        rows = ["| | | |", "|---|---|---|"]
        for parameter in command.params:
            if "--help" in parameter.opts:
                continue
            words = [*parameter.opts, *parameter.secondary_opts]
            is_option = words[0].startswith("-")
            shown = ", ".join(f"`{w}`" for w in words) if is_option else f"`{parameter.metavar}`"
            default = "required" if parameter.required else _default(parameter)
            rows.append(f"| {shown} | {_cell(getattr(parameter, 'help', None) or '')} | {default} |")
        if len(rows) > 2:
            parts.append("\n".join([f"### utcompile {name}", "", *rows]))
    return "\n\n".join(parts)


def _default(parameter: Any) -> str:
    value = parameter.default
    if value in (None, False, "") or callable(value) or "Sentinel" in type(value).__name__:
        return ""
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _commands() -> Iterator[tuple[str, Any]]:
    import typer

    from utcompile.cli.app import app

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", c) for inner, c in command.commands.items())
        else:
            yield name, command


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {
    "rules": shipped_rules_table,
    "patterns": patterns_table,
    "operations": operations_table,
    "attributes": attributes_table,
    "tuners": tuners_table,
    "verbs": verbs_table,
    "options": options_tables,
}


def generate(text: str, page: str, problems: list[str]) -> str:
    """A page with its generated parts made anew."""

    def made(found: re.Match[str]) -> str:
        if found[2] not in PARTS:
            problems.append(f"{page}: nothing makes the part {found[2]!r}")
            return found[0]
        return f"{found[1]}{PARTS[found[2]]()}\n{found[4]}"

    return _PART.sub(made, text)


def broken_links(path: Path, text: str) -> Iterator[str]:
    """Relative links and named files that lead nowhere."""
    page = path.relative_to(ROOT)
    prose = _FENCE.sub("", text)
    for link in _LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists():
            yield f"{page}: the link {link} leads nowhere"
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target.read_text(encoding="utf-8")):
            yield f"{page}: {link} names no heading"
    for name in _PATH.findall(prose):
        if not any(ROOT.glob(name.rstrip("/"))):
            yield f"{page}: there is no {name}"


def _anchors(text: str) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def check(*, write: bool) -> list[str]:
    """Everything that is wrong; with `write`, generated parts are brought up to date first."""
    problems: list[str] = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        fresh = generate(text, path.name, problems)
        if fresh != text and write:
            path.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            problems.append(f"{path.relative_to(ROOT)}: a generated part is out of date; run make docs")
        problems += broken_links(path, fresh)
    fresh, schema = _schema(), ROOT / "rules" / "rules.schema.json"
    if write:
        schema.write_text(fresh, encoding="utf-8")
    elif not schema.is_file() or schema.read_text(encoding="utf-8") != fresh:
        problems.append(f"{schema.relative_to(ROOT)}: out of date; run make docs")
    return problems


def _schema() -> str:
    """The JSON Schema that is shipped beside the rule files, which name it in their first lines."""
    from utcompile.rules import json_schema, shipped_kinds

    return json.dumps(json_schema(shipped_kinds()), indent=2) + "\n"


def main() -> int:
    """Check, and say what is wrong."""
    problems = check(write="--check" not in sys.argv[1:])
    print("\n".join(problems) or f"{len(PAGES)} pages: links and generated parts are right")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

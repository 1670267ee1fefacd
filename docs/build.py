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
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
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
        inserts = "; ".join(insertion(rule, quote="`") for rule in rules.rules) or "no tuner"
        rows.append(f"| `{name}` | {inserts} | {values(rules)} | {rules.cite or ''} | {' and '.join(rules.folds)} |")
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


# A rule file that is right, and mistakes in it: what is written instead of what.
_RIGHT = """\
version: 1
name: mine
vars: {dim: 8}
tuners: {u: {kind: adapter, dim: $dim, activation: same as a}}
rules:
  - name: r
    match: ffn
    where: [h.channels >= 4 * x.channels]
    inside: {module: "blocks.**"}
    select: {first: 2}
    insert: {parallel: n -> y, tuner: u}
train: ["pattern:head"]
"""
_MISTAKES = (
    ("match: ffn", "match: fnn"),
    ("match: ffn", "match: linear"),
    ("match: ffn", "match: y = linea(x)"),
    ("match: ffn", "match: {op: liner}"),
    ("parallel: n -> y", "paralel: n -> y"),
    ("parallel: n -> y", "parallel: z -> y"),
    ("parallel: n -> y", "parallel: n"),
    ("tuner: u", "tuner: adapter"),
    ("kind: adapter", "kind: adaptor"),
    ("dim: $dim", "dim: $dmi"),
    ("dim: $dim", "dim: 16"),
    ("dim: $dim", "dim: ten"),
    ("h.channels >=", "h.chanels >="),
    ("h.channels >= 4 * x.channels", "h.channels > 3 and x.rank == 3"),
    ('"blocks.**"', '"blocks.a**"'),
    ("{first: 2}", "{first: 2, last: 1}"),
    ("{first: 2}", "{first: 0}"),
    ('["pattern:head"]', "[head]"),
    ("train:", "trian:"),
    ("version: 1", "version: 2"),
)


def errors_table() -> str:
    """Mistakes in a rule file, and what is said of each."""
    from utcompile.errors import UtcError
    from utcompile.rules import RuleSet

    RuleSet.load(_RIGHT)
    rows = ["| instead of | written | said | fix |", "|---|---|---|---|"]
    for right, wrong in _MISTAKES:
        assert _RIGHT.count(right) == 1, right
        try:
            RuleSet.load(_RIGHT.replace(right, wrong))
        except UtcError as error:
            place = str(error.where).removeprefix("<rules>:")
            why = f": {error.why}" if error.why else ""
            said = f"{place}: {error.what}{why}"
            rows.append(f"| `{_cell(right)}` | `{_cell(wrong)}` | {_cell(said)} | {_cell(error.fix or '')} |")
        else:
            raise AssertionError(wrong)
    return "\n".join(rows)


def limits_table() -> str:
    """What bounds a rule file."""
    from utcompile.rules import expression, include, pattern, yaml12

    rows = {
        "size of a file, and of all that it includes": f"{yaml12.MAX_BYTES // 1024} KiB",
        "values in it, aliases counted in full": f"{yaml12.MAX_NODES:,}",
        "depth of lists and mappings": yaml12.MAX_DEPTH,
        "aliases": yaml12.MAX_ALIASES,
        "characters of a key": yaml12.MAX_KEY,
        "digits of a number": yaml12.MAX_DIGITS,
        "included files": include.MAX_FILES,
        "depth of files that include one another": include.MAX_DEPTH,
        "characters of a pattern's or comparison's text": f"{expression.MAX_CHARACTERS:,}",
        "nesting of calls in it": expression.MAX_NESTING,
        "characters of a word in it": expression.MAX_WORD,
        "operations of a pattern": pattern.MAX_STEPS,
        "operations of a `path`": pattern.MAX_PATH,
    }
    return "\n".join(["| of | at most |", "|---|---|", *(f"| {name} | {most} |" for name, most in rows.items())])


def keys_tables() -> str:
    """The keys of every mapping of a rule file, from the models that check it."""
    from utcompile.rules import schema

    parts = []
    for title, model in (
        ("The file", schema.RuleFile),
        ("An entry of `include`", schema.IncludeEntry),
        ("A rule", schema.RuleEntry),
        ("`match` where it is a mapping", schema.MatchEntry),
        ("`inside`, `not_inside`", schema.ScopeEntry),
        ("`select`", schema.SelectEntry),
        ("`insert`", schema.InsertEntry),
        ("`expect`", schema.ExpectEntry),
        ("An entry of `tests`", schema.TestEntry),
    ):
        rows = [f"**{title}**", "", "| key | | meaning |", "|---|---|---|"]
        for name, field in model.model_fields.items():
            needed = "required" if field.is_required() else ""
            rows.append(f"| `{field.alias or name}` | {needed} | {_cell(field.description or '')} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def tuners_table() -> str:
    """The fields of every shipped tuner's config."""
    from utcompile.tuners import tuner_class, tuner_kinds

    rows = ["| kind | field | default | meaning |", "|---|---|---|---|"]
    for kind in tuner_kinds():
        if not tuner_class(kind).__module__.startswith("utcompile."):
            continue
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

    from utcompile.cli.program import app

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", c) for inner, c in command.commands.items())
        else:
            yield name, command


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def codes_tables() -> str:
    """The codes of errors by area: what each means, and what to do."""
    from utcompile.error_codes import AREAS, CODES

    parts = []
    for area, title in AREAS.items():
        rows = [f"## {title}", "", "| code | what it means | what to do |", "|---|---|---|"]
        codes = {code: meaning for code, meaning in CODES.items() if code.startswith(f"{area}/")}
        rows += [f"| `{code}` | {_cell(meaning.what)} | {_cell(meaning.fix)} |" for code, meaning in codes.items()]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def vera_file() -> str:
    """The tuner of `examples/vera.py`, as it stands there."""
    return f"```python\n{(ROOT / 'examples' / 'vera.py').read_text(encoding='utf-8')}```"


def fold_cases(*names: str) -> Callable[[], str]:
    """The numbered cases of some folds: the equation of each, when it holds, and what goes wrong otherwise."""

    def table() -> str:
        from utcompile.folding import registered_folds
        from utcompile.folding.folds import BASE_FOLDS

        every = {fold.name: fold for fold in (*registered_folds(), *BASE_FOLDS)}
        rows = ["| case | conditions | counter-example without it |", "|---|---|---|"]
        for case in (case for name in names for case in every[name].cases):
            head = f"{case.number}. {case.equation}" if case.equation else ""
            rows.append(f"| {_cell(head)} | {_cell(case.condition)} | {_cell(case.counter_example)} |")
        return "\n".join(rows)

    return table


PARTS: dict[str, Callable[[], str]] = {
    "rules": shipped_rules_table,
    "patterns": patterns_table,
    "operations": operations_table,
    "attributes": attributes_table,
    "tuners": tuners_table,
    "vera": vera_file,
    "errors": errors_table,
    "codes": codes_tables,
    "limits": limits_table,
    "keys": keys_tables,
    "verbs": verbs_table,
    "options": options_tables,
    "fold_weights": fold_cases("absorb_weight", "dequantize"),
    "fold_maps": fold_cases("absorb_map"),
    "fold_widen": fold_cases("widen"),
    "fold_constants": fold_cases("constant_tokens"),
    "fold_base": fold_cases("constants", "batch_norms", "move_biases"),
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

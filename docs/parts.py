"""The generated parts of README and docs: a function per part, and the public names that the API reference lists."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


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
    """The attributes of a capture that `where:` can compare."""
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
    """Mistakes in a rule file, each with its message."""
    from utcompile.errors import UtcError
    from utcompile.rules import RuleSet

    RuleSet.load(_RIGHT)
    rows = ["| instead of | written | message | fix |", "|---|---|---|---|"]
    for right, wrong in _MISTAKES:
        assert _RIGHT.count(right) == 1, right
        try:
            RuleSet.load(_RIGHT.replace(right, wrong))
        except UtcError as error:
            place = str(error.where).removeprefix("<rules>:")
            why = f": {error.why}" if error.why else ""
            message = f"{place}: {error.what}{why}"
            rows.append(f"| `{_cell(right)}` | `{_cell(wrong)}` | {_cell(message)} | {_cell(error.fix or '')} |")
        else:
            raise AssertionError(wrong)
    return "\n".join(rows)


def limits_table() -> str:
    """The bounds of a rule file."""
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


def tuners_text() -> str:
    """Every shipped tuner: the docstring of its class, its forms, and the fields of its config."""
    from utcompile.tuners import tuner_class, tuner_kinds

    parts = []
    for kind in tuner_kinds():
        cls = tuner_class(kind)
        if not cls.__module__.startswith("utcompile."):
            continue
        forms = ", ".join(f"`{form}`" for form in cls.forms)
        parts += [f"## {kind}", *_sections(inspect.getdoc(cls) or ""), f"**Forms.** {forms}."]
        fields = [item for item in cls.config_class.model_fields.items() if item[0] != "kind"]
        rows = [f"| `{name}` | `{field.default}` | {_cell(field.description or '')} |" for name, field in fields]
        if rows:
            parts.append("\n".join(["| field | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _sections(docstring: str) -> Iterator[str]:
    """A tuner's docstring as paragraphs: the first sentence, then each section after its name in bold, with links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", docstring)
    first, *parts = re.split(r"^([A-Z]\w*):\n", text, flags=re.MULTILINE)
    yield first.strip()
    for name, section in zip(parts[::2], parts[1::2], strict=True):
        yield f"**{name}.** {inspect.cleandoc(section)}"


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


# The folds of each table of docs/folding.md.
FOLDS = {
    "fold_weights": ("absorb_weight", "dequantize"),
    "fold_maps": ("absorb_map",),
    "fold_widen": ("widen",),
    "fold_constants": ("constant_tokens",),
    "fold_base": ("constants", "batch_norms", "move_biases"),
}


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


# The public names by section. Those without a module are in `utcompile` itself, and each of these must be here.
API: dict[str, tuple[str, ...]] = {
    "Capture, match, insert": (
        "compile",
        "capture",
        "capture_parts",
        "CapturedModule",
        "CapturedParts",
        "match",
        "Plan",
        "PartsPlan",
        "TunedModule",
        "disable_tuners",
        "recording.CaptureReport",
        "matching.Site",
        "rewrite.TunedSite",
        "split_prefix",
    ),
    "Rules": ("RuleSet",),
    "Checkpoints": (
        "save_tuners",
        "load_tuners",
        "load_task",
        "set_task",
        "save_peft",
        "load_peft",
        "peft_rules",
    ),
    "Fold and export": ("fold", "FoldReport", "export_onnx", "ExportResult", "OnnxModel", "add_task", "UtcError"),
    "Training and evaluation": (
        *(f"train.{name}" for name in ("fit", "TrainResult", "load_data", "Data", "accuracy", "trainer_of_tuners")),
        *(
            f"deploy.{name}"
            for name in ("verify_onnx", "ParityReport", "accuracy_onnx", "latency", "Latency", "session")
        ),
    ),
    "Extending": (
        "register_tuner",
        *(f"tuners.{name}" for name in ("Tuner", "TunerConfig", "TunerSite", "ValueSite", "WeightSite", "TokensSite")),
        *(
            f"tuners.{name}"
            for name in (
                "sites.StreamTokensSite",
                "ChainSite",
                "Port",
                "ChannelMap",
                "Bottleneck",
                "Outputs",
                "outputs_of",
            )
        ),
        "register_operation",
        "register_fold",
        *(f"folding.{name}" for name in ("Fold", "Site", "Folding", "Case", "Patch", "Unfoldable", "FoldedSite")),
        *(f"graph.{name}" for name in ("operation", "Operation", "readers")),
        *(f"folding.{name}" for name in ("Replace", "Redirect", "Argument", "Added", "New", "Remove")),
    ),
}


def api_tables() -> str:
    """The public names, each with the first sentence of its docstring; the site shows the whole (`docs/hooks.py`)."""
    parts = []
    for title, names in API.items():
        rows = [f"| `{_shown(name)}` | {_cell(_summary(public(name)))} |" for name in names]
        comments = [f"<!-- ::: utcompile.{name} -->" for name in names]
        parts += [f"## {title}", "\n".join(["| name | |", "|---|---|", *rows]), "\n".join(comments)]
    return "\n\n".join(parts)


def _shown(name: str) -> str:
    return f"utcompile.{name}" if "." in name else f"utc.{name}"


def public(name: str) -> Any:
    """The thing that a name of `API` stands for; None where there is none."""
    module, _, attribute = f"utcompile.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute, None)


def _summary(thing: Any) -> str:
    return ("" if thing is None else inspect.getdoc(thing) or "").split("\n\n")[0]


PARTS: dict[str, Callable[[], str]] = {
    "rules": shipped_rules_table,
    "patterns": patterns_table,
    "operations": operations_table,
    "attributes": attributes_table,
    "tuners": tuners_text,
    "api": api_tables,
    "errors": errors_table,
    "codes": codes_tables,
    "limits": limits_table,
    "keys": keys_tables,
    "verbs": verbs_table,
    "options": options_tables,
    **{name: fold_cases(*folds) for name, folds in FOLDS.items()},
}

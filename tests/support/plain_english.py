"""Phrases that our text avoids, and where they are: in pages, rule files, docstrings, comments, messages and help texts.

python tests/support/plain_english.py [FILE OR FOLDER …]      list them, with what to write instead
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_COUNTED = (
    "adapter|bias|bytes|cost|entry|error|factor|file|FLOPs|job|line|magnitude|map|message|module|node|number|parameter|pass|"
    "process|proof|row|scalar|stage|test|time|token|tuner|value|verb|weight"
)
_UNITS = (
    "batch|block|call|channel|class|core|dimension|epoch|family|file|form|head|image|kind|layer|level|line|method|model|output|"
    "room|row|rule|sample|second|site|slice|stage|step|task|token|verb"
)


@dataclass(frozen=True)
class Phrase:
    """One kind of phrase: a regular expression, what to write instead, and an example of each."""

    pattern: str
    instead: str
    wrong: str
    right: str

    def found(self, text: str) -> Iterator[re.Match[str]]:
        """Every place of a text that has the phrase."""
        return re.finditer(self.pattern, text, re.IGNORECASE)


PHRASES = (
    Phrase(
        rf"\b(?:(?:a|an|one|once|twice|\d+(?:[.,]\d+)*)\s(?:(?:{_COUNTED})s?\s)?|(?:two|three|four|six|\d+)\s\w+s\s)an?\s(?:{_UNITS})\b",
        "per site, per layer",
        "a proof a site, one a layer",
        "a proof per site, one per layer; it has a layer, and the error of a site",
    ),
    Phrase(
        r"[,)*]\sagainst\b|\bagainst\s(?:all\sothers|none|those\b|plain\b|one\s)",
        "instead of …; compared with …",
        "one table, against four lists",
        "one table, instead of four lists; a guard against overflow",
    ),
    Phrase(
        r"\b(?:stands?|stood)\b(?!\sfor\b|[\s-](?:alone|ins?)\b)",
        "is in, is between, is next to",
        "what stands between them",
        "what is between them; a stand-in; `x` stands for the input",
    ),
    Phrase(r"\bbeside\b", "next to, parallel to", "an adapter beside an ffn", "an adapter parallel to an ffn; besides"),
    Phrase(
        r"\btold\b|\b(?:is|are|was|were|be|been|as|not)\ssaid\b",
        "is reported, is listed, is documented",
        "what is not found is told",
        "what is not found is reported",
    ),
    Phrase(
        r"\bheld\b(?!\sout\b|-out)|\bholds?\s(?:an?|the|its|all|every|no|one|two|both|nothing|what|them|this|only|neither)\b",
        "enforces, stores, contains, keeps",
        "a test holds the table",
        "a test enforces the table; the condition holds; images that are held out",
    ),
    Phrase(
        r"\bwants\b|\bask(?:s|ed)?\sfor\b",
        "needs, requires",
        "the pattern wants relu and asks for a name",
        "the pattern requires relu and needs a name; the place that you want",
    ),
    Phrase(r"\bnobody\b|\bwhoever\b", "no code, no caller, nothing", "where nobody reads it", "where no node reads it"),
    Phrase(
        r"(?<!\binstead\s)\bof\s(?:its|one's|their|his)\sown\b(?=\s*(?:$|[^\w\s`])|\s(?:and|are|for|in|is|that|to|where|with)\b)",
        "its own …, a custom …",
        "a head of its own",
        "its own head; one of its own parts, instead of its own",
    ),
    Phrase(
        r"\bthat\swhich\b|(?:^|[.!?]\s)What\s(?:is|are|was|were|has|cannot|lies|does)\s(?!it\b)[^.?!]*[.!]",
        "the name of the thing",
        "What is not covered stays.",
        "Everything else stays. What is wrong?",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One phrase in one place."""

    path: Path
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text!r}; write: {self.instead}"


def findings(path: Path) -> Iterator[Finding]:
    """All phrases in the text of one file."""
    read = {".md": _of_markdown, ".py": _of_python, ".yaml": _of_yaml}[path.suffix]
    for line, text in read(path.read_text(encoding="utf-8")):
        plain = re.sub(r"``.*?``|`[^`]*`", "`…`", text)
        for phrase in PHRASES:
            for match in phrase.found(plain):
                shown = " ".join(match[0].split())
                yield Finding(path, line + plain.count("\n", 0, match.start()), shown, phrase.instead)


def files(*places: str) -> list[Path]:
    """The pages, rule files and modules in some places of the repository."""
    found = []
    for place in places:
        path = ROOT / place
        found += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".md", ".py", ".yaml")]
    return sorted(found)


def _of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """A page without its code blocks, and without the parts that are generated from code."""

    def blank(found: re.Match[str]) -> str:
        return "\n" * found[0].count("\n")

    text = re.sub(r"^<!-- generated: .*?^<!-- end -->", blank, text, flags=re.MULTILINE | re.DOTALL)
    yield 1, re.sub(r"^```.*?^```", blank, text, flags=re.MULTILINE | re.DOTALL)


def _of_python(text: str) -> Iterator[tuple[int, str]]:
    """Comments, docstrings, and all other texts; what a text puts in is an ellipsis."""
    nodes = list(ast.walk(ast.parse(text)))
    inside = set()
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, re.sub(r"^\s*(?:>>>|\.\.\.).*$", "", node.value, flags=re.MULTILINE)
    yield from _of_comments(text)


def _of_comments(text: str) -> Iterator[tuple[int, str]]:
    """Comments; those on consecutive lines are one text."""
    block: list[str] = []
    start = before = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line != before + 1:
            yield start, "\n".join(block)
            block = []
        start, before = (start if block else line), line
        block.append(token.string.lstrip("# "))
    if block:
        yield start, "\n".join(block)


def _of_yaml(text: str) -> Iterator[tuple[int, str]]:
    """All of a rule file: its comments and descriptions; a pattern has none of the phrases."""
    yield 1, text.replace("#", " ")


if __name__ == "__main__":
    every = [str(finding) for path in files(*(sys.argv[1:] or ["utcompile"])) for finding in findings(path)]
    sys.stdout.write("\n".join([*every, f"{len(every)} findings"]) + "\n")

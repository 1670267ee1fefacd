"""`make docs`: bring the generated tables of README and docs and the JSON Schema up to date, and check every link.

    python docs/build.py            write the tables, then check
    python docs/build.py --check    change nothing; a table that is out of date is a problem

A generated part is between `<!-- generated: NAME -->` and `<!-- end -->`; `PARTS` in `docs/parts.py` says which
function makes it. Links to files of this repository are checked, and so is every path in backticks that looks like
one. A public name that the API reference does not list, or that has no docstring, is a problem. `make docs` then
builds the site.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the package of this checkout, and the file next to this one

from parts import API, FOLDS, PARTS, public  # noqa: E402  (found on that path)

_PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:utcompile|rules|docs|benchmarks|examples|tests)/[\w./*-]*)`")


def undocumented() -> Iterator[str]:
    """Public names that the API reference lacks, or that have no docstring; also members of public classes."""
    import utcompile

    listed = [name for names in API.values() for name in names]
    for name in sorted(set(utcompile.__all__) - set(listed)):
        yield f"docs/api.md: the public name utcompile.{name} is missing; add it to API in docs/parts.py"
    for name in listed:
        thing = public(name)
        if thing is None:
            yield f"docs/api.md: there is no utcompile.{name}; remove it from API in docs/parts.py"
            continue
        if not (thing.__doc__ or "").strip():
            yield f"utcompile.{name} has no docstring"
        members = vars(thing).items() if inspect.isclass(thing) else ()
        for member, value in members:
            value = getattr(value, "__func__", value)  # of a classmethod or staticmethod
            if not member.startswith("_") and _needs_text(value) and not (value.__doc__ or "").strip():
                yield f"utcompile.{name}.{member} has no docstring"


def imported() -> Iterator[str]:
    """Names that a page or an example imports from a part of the package, and that the API reference lacks."""
    listed = {f"utcompile.{name}" for names in API.values() for name in names}
    texts = {path: "".join(_PYTHON.findall(path.read_text(encoding="utf-8"))) for path in PAGES}
    texts |= {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.py"))}
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utcompile."):
                missing = [a.name for a in node.names if f"{node.module}.{a.name}" not in listed]
                yield from (f"{path.name}: {node.module}.{name} is not in the API reference" for name in missing)


def _needs_text(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property)


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


def folds_without_table() -> Iterator[str]:
    """Shipped folds whose cases no table shows."""
    from utcompile.folding import registered_folds
    from utcompile.folding.folds import BASE_FOLDS

    shown = {name for folds in FOLDS.values() for name in folds}
    for fold in (*registered_folds(), *BASE_FOLDS):
        if fold.name not in shown and type(fold).__module__.startswith("utcompile."):
            yield f"docs/parts.py: the fold {fold.name} is in no table; add it to FOLDS"


def strangers() -> Iterator[str]:
    """Pages that are missing in the navigation of `mkdocs.yml`, and entries of it that are no page."""
    from_root = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- [^:\n]+: ([\w/-]+\.md)$", text, re.MULTILINE))
    names = {path.relative_to(ROOT).as_posix() for path in PAGES}
    pages = {from_root.get(name, name.removeprefix("docs/")) for name in names}
    yield from (f"mkdocs.yml: the navigation lacks {name}" for name in sorted(pages - listed))
    yield from (f"mkdocs.yml: the navigation names {name}, which is no page" for name in sorted(listed - pages))


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
    problems += [*undocumented(), *imported(), *folds_without_table(), *strangers()]
    fresh, schema = _schema(), ROOT / "rules" / "rules.schema.json"
    if write:
        schema.write_text(fresh, encoding="utf-8")
    elif not schema.is_file() or schema.read_text(encoding="utf-8") != fresh:
        problems.append(f"{schema.relative_to(ROOT)}: out of date; run make docs")
    return problems


def _schema() -> str:
    """The JSON Schema that is shipped with the rule files, which name it in their first lines."""
    from utcompile.rules import json_schema, shipped_kinds

    return json.dumps(json_schema(shipped_kinds()), indent=2) + "\n"


def main() -> int:
    """Check, and print what is wrong."""
    problems = check(write="--check" not in sys.argv[1:])
    print("\n".join(problems) or f"{len(PAGES)} pages: links and generated parts are right")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

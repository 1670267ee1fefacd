"""The hooks of `mkdocs.yml`: pages of the root folder, and files that pages link to, become pages of the site.

Pages are written for the repository, where `README.md` is outside of `docs/` and `examples/vera.py` is a link to a
file. On the site, README, CONTRIBUTING and CHANGELOG are pages, and each other linked file is a page with its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages, and a page for each linked file that is not a page."""
    from mkdocs.structure.files import File, InclusionLevel

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, ROOT / source, page)))
    for path in sorted(_linked_files()):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").rstrip("\n")
        fenced = f"# {name}\n\n```{_LANGUAGES.get(path.suffix, 'text')}\n{text}\n```\n"
        file = File.generated(config, f"files/{name}.md", content=fenced)
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links of a page in `docs/` lead to pages of the site, and let the API reference show whole docstrings."""
    source = ROOT / "docs" / page.file.src_uri
    if not source.is_file():
        return markdown
    text = _bars(_moved(markdown, source, page.file.src_uri))
    return re.sub(r"<!-- (::: \S+) -->", r"\1\n", text)


def _bars(text: str) -> str:
    """A page whose tables have plain bars in code: GitHub needs `\\|` there, and mkdocs would show the backslash."""
    rows = re.compile(r"^\|.*$", re.MULTILINE)
    return rows.sub(lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]), text)


def _sources() -> list[Path]:
    return [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]


def _linked_files() -> set[Path]:
    found = set()
    for source in _sources():
        for link, _ in _LINK.findall(source.read_text(encoding="utf-8")):
            target = (source.parent / link).resolve()
            if target.is_file() and not _site_page(target):
                found.add(target)
    return found


def _site_page(target: Path) -> str | None:
    """The site's name of a file that is in it already."""
    name = target.relative_to(ROOT).as_posix()
    return PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else None)


def _moved(text: str, source: Path, page: str) -> str:
    """A page's text with each link to a file of the repository leading to its page of the site."""

    def led(found: re.Match[str]) -> str:
        target = (source.parent / found[1]).resolve()
        if not target.is_file():
            return found[0]
        name = _site_page(target) or f"files/{target.relative_to(ROOT).as_posix()}.md"
        return os.path.relpath(name, Path(page).parent) + (found[2] or "")

    return _LINK.sub(led, text)

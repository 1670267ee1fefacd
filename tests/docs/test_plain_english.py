"""No text has a phrase that our style replaces; rooms that are not done yet have no more than are listed."""

from __future__ import annotations

import pytest
from support.plain_english import PHRASES, ROOT, Phrase, files, findings

DONE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples")
# How many phrases a place still has, at most. A number may only fall; where it is 0, the line goes.
LEFT: dict[str, int] = {}


def _count(place: str) -> tuple[int, str]:
    every = [str(finding) for path in files(place) for finding in findings(path)]
    return len(every), "\n".join(every)


@pytest.mark.parametrize("place", DONE)
def test_done_places_have_no_such_phrase(place: str) -> None:
    count, shown = _count(place)
    assert count == 0, shown


def test_other_places_have_no_more_than_are_listed() -> None:
    rooms = {path.relative_to(ROOT).as_posix() for path in (ROOT / "utcompile").iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "utcompile").glob("*/__init__.py")}
    counts = {place: _count(place) for place in sorted({*rooms, "rules", "tools"})}
    more = {place: shown for place, (count, shown) in counts.items() if count > LEFT.get(place, 0)}
    assert not more, "\n".join(more.values())


@pytest.mark.parametrize("phrase", PHRASES, ids=[phrase.wrong for phrase in PHRASES])
def test_a_phrase_is_found_where_it_is_wrong_and_only_there(phrase: Phrase) -> None:
    assert list(phrase.found(phrase.wrong)) and not list(phrase.found(phrase.right))


def test_comments_docstrings_and_messages_are_read_and_code_is_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("support.plain_english.ROOT", tmp_path)
    module = tmp_path / "module.py"
    module.write_text(
        '"""It stands\nbeside the layer; `beside` is a name.\n\n>>> beside = 1\n"""\n'
        "beside = {1}  # nobody\n# reads it\n\nraise ValueError(f'the rule {beside} wants ' 'one a layer')\n"
    )
    assert [(finding.line, finding.text) for finding in findings(module)] == [
        (9, "one a layer"), (9, "wants"), (1, "stands"), (2, "beside"), (6, "nobody"),
    ]  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("```\nbeside\n```\nIt is\nheld.\n<!-- generated: x -->\nbeside\n<!-- end -->\n")
    assert [(finding.line, finding.text) for finding in findings(page)] == [(5, "held")]
    rules = tmp_path / "rules.yaml"
    rules.write_text("description: >-\n  Stands beside\n  an ffn.\n")
    assert [finding.text for finding in findings(rules)] == ["Stands", "beside"]

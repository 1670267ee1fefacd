"""No text has a phrase that our style replaces."""

from __future__ import annotations

import pytest
from support.plain_english import PHRASES, ROOT, Phrase, files, findings

ROOMS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "utcompile").iterdir() if path.suffix != ".typed")
PLACES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples", "rules", "tools", *ROOMS)


@pytest.mark.parametrize("place", [place for place in PLACES if "__pycache__" not in place])
def test_no_text_has_such_a_phrase(place: str) -> None:
    assert list(files(place))
    found = [str(finding) for path in files(place) for finding in findings(path)]
    assert found == []


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

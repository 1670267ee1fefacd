"""Whatever is in a rule file, loading it is little work, runs nothing, and ends in rules or in one short error at its place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.draws import examples
from support.malformed_rules import BASE, MALFORMED, Malformed
from support.work import bounded_by

from utcompile.errors import UtcError
from utcompile.rules import RuleSet, shipped_rules

EVENTS: list[tuple[str, tuple[object, ...]]] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if EVENTS is not None:
        EVENTS.append((event, arguments))


sys.addaudithook(_note)  # for good, so it only notes anything while `audited` asks


@contextmanager
def audited() -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """The audit events of a block: what it opens, imports, executes, starts or asks the system for."""
    global EVENTS
    EVENTS = []
    try:
        yield EVENTS
    finally:
        EVENTS = None


def refused(source: Path | str) -> str:
    """The message with which rules are refused; it is short, and comes after little work."""
    size = source.stat().st_size if isinstance(source, Path) and len(source.name) < 99 and source.is_file() else 0
    with bounded_by(size), pytest.raises(UtcError) as caught:
        RuleSet.load(source)
    message = str(caught.value)
    assert len(message) < 1000
    return message


def test_the_file_in_which_the_mistakes_are_made_is_right() -> None:
    assert [rule.name for rule in RuleSet.load(BASE).rules] == ["one", "two"]


def test_there_are_more_than_200_distinct_cases() -> None:
    assert len({case.content for case in MALFORMED}) == len({case.name for case in MALFORMED}) == len(MALFORMED) >= 200


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_a_malformed_file_is_one_short_error_at_its_place(case: Malformed, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(case.content)
    message = refused(path)
    assert message.startswith(f"{path}:{case.place}: "), message
    assert case.word in message


HARMLESS = {"compile", "builtins.id"}  # to parse is to `compile`


def test_no_file_imports_opens_or_runs_anything() -> None:
    RuleSet.load("version: 1\nname: t\ninclude: lora/all_linear\n")  # what is read and imported once and for all
    texts = [case.content.decode("utf-8", "surrogateescape") for case in MALFORMED] + [BASE]
    found = set()
    for text in texts:
        with audited() as events, suppress(UtcError):
            RuleSet.load(text + "\n")
        found |= {event for event, (name, *_) in events if (event, name) != ("open", "")}  # "" is no file
    assert found <= HARMLESS
    assert "compile" in found  # the guard does see what happens


def test_only_files_that_are_included_are_opened(tmp_path: Path) -> None:
    RuleSet.load(BASE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text(BASE)
    (tmp_path / "a.yaml").write_text("version: 1\nname: a\ninclude: sub/b.yaml\n")
    with audited() as events:
        assert RuleSet.load(tmp_path / "a.yaml").rules
    opened = [Path(str(arguments[0])) for event, arguments in events if event == "open"]
    assert opened == [tmp_path / "a.yaml", (tmp_path / "sub" / "b.yaml").resolve()]
    assert {event for event, _ in events} <= {*HARMLESS, "open"}


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "loop", "dangling", "device", "none", "a\0b", "x" * 5000, ".", ".."):
        path = tmp_path / f"{name}.yaml" if name.isalpha() else tmp_path / name
        assert refused(path).startswith("no rule file '")
        assert refused(str(path)).startswith("no rules '")
    path = tmp_path / "mine.yaml"
    path.write_text(BASE)
    monkeypatch.setattr(Path, "open", _denied)  # as root, no file is unreadable
    assert refused(path) == f"{path}:1:1: the rule file cannot be read\n  why: Permission denied"


def _denied(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


SHIPPED = [path.read_bytes() for path in shipped_rules().values()]
LINES = sorted({line for content in SHIPPED for line in content.splitlines(keepends=True)})
WORDS = sorted({word for content in SHIPPED for word in re.findall(rb"[\w$.>*-]+", content)})
ODD = [b"\t", b"\x00", b"\xff", b"\r", b"\xef\xbb\xbf", b"\xc2\x85", b"'", b'"', b": ", b"- ", b"{", b"}", b"[", b"]"]
ODD += [b"&a ", b"*a", b"<<: ", b"!!str ", b"|\n", b"---\n", b"...\n", b"#", b"%", b"@", b"~", b"on", b"010", b"1e-4"]
ODD += [b"$dim", b"9" * 70, b".inf", b"\\", b"lambda", b"include: ", b"lora/all_linear", b"../a.yaml", b"\n"]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A shipped file after a few edits of bytes, words or lines."""
    content = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["byte", "cut", "word", "line", "drop", "double", "indent"]))
        lines = content.splitlines(keepends=True)
        row = draw(st.integers(0, max(len(lines) - 1, 0)))
        at = draw(st.integers(0, len(content)))
        if kind == "byte":
            content = content[:at] + draw(st.sampled_from(ODD) | st.binary(max_size=3)) + content[at:]
        elif kind == "cut":
            content = content[:at] + content[at + draw(st.integers(1, 40)) :]
        elif kind == "word" and (found := [*re.finditer(rb"[\w$.>*-]+", content)]):
            span = draw(st.sampled_from(found)).span()
            content = content[: span[0]] + draw(st.sampled_from(WORDS + ODD)) + content[span[1] :]
        elif lines:
            new = {
                "line": [lines[row], draw(st.sampled_from(LINES))],
                "drop": [],
                "double": [lines[row]] * 2,
                "indent": [b" " * draw(st.integers(0, 6)) + lines[row].lstrip()],
            }.get(kind, [lines[row]])
            content = b"".join([*lines[:row], *new, *lines[row + 1 :]])
    return content


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rules") / "r.yaml"


@given(content=mutated())
@settings(max_examples=examples(75, full=400))
def test_a_mutated_file_is_rules_or_one_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        with bounded_by(len(content)):
            found = RuleSet.load(path)
        assert found.rules or found.train  # probe/linear, of which a mutation may leave what it was
    except UtcError as error:
        assert len(str(error)) < 1000
        file, line, column = re.fullmatch(r"(.*):(\d+):(\d+)", str(error.where)).groups()  # type: ignore[union-attr]
        assert Path(file) == path or Path(file) in shipped_rules().values()
        lines = re.split(r"\r\n|\r|\n", content.decode("utf-8", "replace"))
        assert int(line) <= len(lines) and (Path(file) != path or int(column) <= len(lines[int(line) - 1]) + 2)

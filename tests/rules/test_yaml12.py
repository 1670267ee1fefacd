"""YAML 1.2, its places, and its bounds."""

from __future__ import annotations

import math

import pytest
from support.work import bounded_by

from utcompile.errors import UtcError
from utcompile.rules.yaml12 import MAX_BYTES, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("+.5", 0.5),
        ("2.", 2.0),
        ("on", "on"),
        ("Yes", "Yes"),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'010'", "010"),
        ('"true"', "true"),
        ("0b11", "0b11"),
        ("+", "+"),
        ("x -> y", "x -> y"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = load(f"key: {text}").data["key"]
    assert found == value and type(found) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(load("key: .nan").data["key"])


def test_collections_aliases_and_styles() -> None:
    text = "a: &a [1, {b: c}]\nd: *a\ne: |\n  one\n  two\nf: >-\n  three\n  four\n"
    assert load(text).data == {"a": [1, {"b": "c"}], "d": [1, {"b": "c"}], "e": "one\ntwo\n", "f": "three four"}


def test_windows_line_ends_and_byte_order_mark() -> None:
    root = load(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - 2\r\n")
    assert root.data == {"a": 1, "b": [2]}
    assert str(root.at("b", 0).mark) == "<rules>:3:5"


def test_every_key_and_value_has_its_place() -> None:
    root = load("a: 1\nlist:\n  - x\n  - {k: v}\n", "r.yaml")
    assert str(root.mark) == "r.yaml:1:1"
    assert str(root.keys["list"]) == "r.yaml:2:1"
    assert str(root.at("list", 1).keys["k"]) == "r.yaml:4:6"
    assert str(root.at("list", 1, "k").mark) == "r.yaml:4:9"
    assert root.at("list", 7).content is None and root.at("nothing").items() == ()


def test_only_the_yaml_1_2_directive_is_accepted() -> None:
    assert load("%YAML 1.2\n---\na: 1\n").data == {"a": 1}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join(['*' + before] * 9)}]\n" for before, here in zip("abcdefg", "bcdefgh", strict=True)
)

MISTAKES = {
    "duplicate key": (
        "a: 1\nb: 2\na: 3",
        "<rules>:3:1: the key 'a' is there twice\n  why: line 1 has it too, and a mapping has each key once",
    ),
    "tab in the indentation": (
        "a:\n\tb: 1",
        "<rules>:2:1: a tab in the indentation\n  why: YAML is indented with spaces only\n"
        "  fix: replace the tab by spaces",
    ),
    "tab instead of a space": (
        "a: [1]\nb: [\t@]",
        "<rules>:2:5: this is not YAML: a tab where YAML needs a space\n"
        "  why: while scanning for the next token\n  fix: replace the tab by spaces",
    ),
    "a text that begins with @": (
        "a: @b",
        "<rules>:1:4: this is not YAML: found character '@' that cannot start any token\n"
        "  why: while scanning for the next token\n  fix: quote a text that begins with this character",
    ),
    "python tag": (
        "a: !!python/object/apply:os.system [ls]",
        "<rules>:1:4: tags are not supported: !!python/object/apply:os.system\n"
        "  fix: leave the tag out; quote a value that is to be text",
    ),
    "any tag": (
        "a: !mine b",
        "<rules>:1:4: tags are not supported: !mine\n  fix: leave the tag out; quote a value that is to be text",
    ),
    "merge key": (
        "a: &a {b: 1}\nc:\n  <<: *a\n",
        "<rules>:3:3: merge keys (<<) are not supported\n  fix: write the keys out, or use an alias for a whole value",
    ),
    "alias bomb": (
        BOMB,
        "<rules>:5:8: more than 10,000 values\n  why: an alias counts as all values of its anchor",
    ),
    "too many aliases": ("a: &a 1\nb: [" + "*a, " * 101 + "]", "<rules>:2:405: more than 100 aliases"),
    "anchor within itself": ("a: &a [*a]", "<rules>:1:8: the anchor &a contains itself"),
    "alias without anchor": ("a: *b", "<rules>:1:4: the alias *b has no anchor &b before it"),
    "anchor twice": ("a: &a 1\nb: &a 2", "<rules>:2:4: the anchor &a is defined twice"),
    "deep brackets": ("a: " + "[" * 5000, "<rules>:1:53: nested deeper than 50 levels"),
    "deep by aliases": (
        "a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30,
        "<rules>:2:34: nested deeper than 50 levels",
    ),
    "ten megabytes": (
        "a: b\n" * 2_000_000,
        "<rules>:1:1: the rule file is too large\n  why: it has 10,000,000 bytes, and the limit is 262,144",
    ),
    "too many values": (
        "[" + "1," * 30_000 + "]",
        "<rules>:1:20000: more than 10,000 values\n  why: an alias counts as all values of its anchor",
    ),
    "two documents": (
        "a: 1\n---\nb: 2",
        "<rules>:2:1: a second document\n  fix: a rule file is one document: remove the '---'",
    ),
    "empty": ("\n# nothing\n", "<rules>:1:1: the rule file is empty"),
    "YAML 1.1": ("%YAML 1.1\n---\na: 1", "<rules>:1:1: rule files are YAML 1.2, and this file is 1.1"),
    "a colon in a text": (
        "a: b: c",
        "<rules>:1:5: this is not YAML: mapping values are not allowed here\n"
        "  fix: check the indentation, and quote a text that has ': ' in it",
    ),
    "unclosed list": (
        "a: [1, 2\nb: c",
        "<rules>:2:2: this is not YAML: expected ',' or ']', but got ':'\n"
        "  why: while parsing a flow sequence, which began in line 1",
    ),
    "key that is a number": ("1: a", "<rules>:1:1: the key '1' is not a text\n  fix: put it in quotes"),
    "key that is a list": ("? [a]\n: b", "<rules>:1:3: a key must be one word, not a list, a mapping or an alias"),
    "long key": ("a" * 101 + ": 1", "<rules>:1:1: a key of more than 100 characters"),
    "long number": (
        "a: " + "9" * 5000,
        "<rules>:1:4: a number of 5,000 digits\n  fix: put it in quotes if it is text",
    ),
    "impossible escape": ('a: "\\UFFFFFFFF"', "<rules>:1:5: this is not YAML: a number in it is out of range"),
    "surrogate": ('a: "\\ud800"', "<rules>:1:4: a text has half of a surrogate pair in it"),
    "control character": ("a: \x01", "<rules>:1:4: the character U+0001 is not allowed in YAML"),
    "line break of YAML 1.1": ("a: b\x85c", "<rules>:1:5: the character U+0085 is not allowed in a rule file"),
    "not UTF-8": (b"a: 1\nb: \xff", "<rules>:2:4: the rule file is not UTF-8 text"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_short_error_at_a_place(name: str) -> None:
    text, message = MISTAKES[name]
    with bounded_by(len(text)), pytest.raises(UtcError) as caught:
        load(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "line",
    ["- a: 1\n", "a" * 300 + "\n", "#\n", "[]\n", "'\n", "? \n", "- - - - -\n", "&a\n", "- [[[[[[[[[\n", "{a: \n"],
)
def test_the_largest_text_is_read_or_refused_with_work_that_is_linear_in_it(line: str) -> None:
    text = line * (MAX_BYTES // len(line))
    try:
        with bounded_by(len(text)):
            load(text)
    except UtcError as error:
        assert len(str(error)) < 400

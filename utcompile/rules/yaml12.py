"""YAML 1.2 (core schema), loaded safely, with the place of every key and value.

pyyaml's resolver follows YAML 1.1, where `on` is true, `010` is eight and `1e-4` is a text. Only its event parser is
used here; scalars are resolved by the core schema of YAML 1.2. Size, depth, aliases and the number of nodes are bounded
while the events are read, so that no text costs more than a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

import yaml

from utcompile.errors import UtcError
from utcompile.rules.passage import Passage, Source, short
from utcompile.rules.syntax import Mark

MAX_BYTES = 256 * 1024
MAX_DEPTH = 50
MAX_ALIASES = 100
MAX_NODES = 10_000
MAX_KEY = 100
MAX_DIGITS = 64
_SHORT = 16 * 1024  # characters of a text whose nodes are kept; no shipped file is longer

Scalar = str | int | float | bool | None
Data: TypeAlias = "Scalar | list[Data] | dict[str, Data]"
_Content = Scalar | tuple["Node", ...] | dict[str, "Node"]
_Begin = yaml.ScalarEvent | yaml.CollectionStartEvent

_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL, _HEX = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Scalar] = MappingProxyType(
    {
        **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
        **dict.fromkeys(("true", "True", "TRUE"), True),
        **dict.fromkeys(("false", "False", "FALSE"), False),
        **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
        **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    }
)


@dataclass(frozen=True)
class Node:
    """A value of the file, with its place.

    `content` is a scalar, a tuple of nodes, or a dict from key to node; `keys` has the place of each key.
    """

    content: _Content
    mark: Mark
    keys: Mapping[str, Mark] = field(default_factory=dict)
    text: Passage | None = None  # of a text: the place of each of its characters
    size: int = 1  # nodes in it, aliases counted in full
    height: int = 0

    @property
    def data(self) -> Data:
        """The value as plain Python: scalars, lists and dicts."""
        match self.content:
            case tuple(items):
                return [item.data for item in items]
            case dict(entries):
                return {key: value.data for key, value in entries.items()}
            case scalar:
                return scalar

    @property
    def passage(self) -> Passage:
        """A text with the place of each of its characters."""
        return self.text or Passage.at(str(self.content), self.mark)

    def get(self, key: str | int) -> Node | None:
        """The node under a key or an index, or None."""
        if isinstance(self.content, dict) and isinstance(key, str):
            return self.content.get(key)
        if isinstance(self.content, tuple) and isinstance(key, int) and 0 <= key < len(self.content):
            return self.content[key]
        return None

    def at(self, *path: str | int) -> Node:
        """The node at a path of keys and indices, or a node with None."""
        node = self
        for key in path:
            node = node.get(key) or Node(None, node.mark)
        return node

    def nearest(self, *path: str | int) -> Node:
        """The node at a path of keys and indices; a step that leads nowhere is skipped."""
        node = self
        for key in path:
            node = node.get(key) or node
        return node

    def items(self) -> tuple[Node, ...]:
        """The nodes of a list."""
        return self.content if isinstance(self.content, tuple) else ()

    def listed(self) -> tuple[Node, ...]:
        """The nodes of a list, or the node itself if it is not a list; none for null."""
        alone = () if self.content is None else (self,)
        return self.items() if isinstance(self.content, tuple) else alone

    def entries(self) -> dict[str, Node]:
        """The nodes of a mapping."""
        return self.content if isinstance(self.content, dict) else {}


def load(text: str | bytes, file: str = "<rules>") -> Node:
    """Load one YAML 1.2 document.

    Raises:
        UtcError: with `file:line:column`, for anything that is not plain, small, safe YAML.

    Example:
        >>> load("lr: 1e-4\\nsteps: 010\\nmode: on").data
        {'lr': 0.0001, 'steps': 10, 'mode': 'on'}
        >>> str(load("a:\\n  - b: 1").at("a", 0, "b").mark)
        '<rules>:2:8'
    """
    plain = decode(text, file)
    return _kept(plain, file) if len(plain) <= _SHORT else _loaded(plain, file)


@lru_cache(maxsize=32)  # nodes never change, and one rule file is matched again and again
def _kept(text: str, file: str) -> Node:
    return _loaded(text, file)


def _loaded(text: str, file: str) -> Node:
    source = Source(file, text)
    _refuse_odd_characters(source)
    try:
        return _Composer(source).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except yaml.reader.ReaderError as error:
        where = str(source.mark(error.position))
        raise UtcError(f"the character U+{error.character:04X} is not allowed in YAML", where=where) from None
    except (ValueError, OverflowError):  # pyyaml lets these out for escapes such as "\UFFFFFFFF"
        place = re.search(r"\\U(?!0010|000)[0-9a-fA-F]{8}", source.text)
        where = str(source.mark(place.start() if place else 0))
        raise UtcError("this is not YAML: a number in it is out of range", where=where) from None


def check_size(size: int, file: str) -> None:
    """Raise if a file of `size` bytes is too large to be a rule file."""
    if size > MAX_BYTES:
        why = f"it has {size:,} bytes, and the limit is {MAX_BYTES:,}"
        raise UtcError("the rule file is too large", where=f"{file}:1:1", why=why)


def decode(text: str | bytes, file: str) -> str:
    """The text of a file: UTF-8, without a byte order mark, with `\\n` between its lines."""
    check_size(len(text), file)
    if isinstance(text, str):
        check_size(len(text.encode("utf-8", "surrogatepass")), file)
    else:
        text = _decode_bytes(text, file)
    return _plain(text)


def _plain(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _decode_bytes(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = _plain(content[: error.start].decode("utf-8"))
        where = str(Source(file, before).mark(len(before)))
        raise UtcError("the rule file is not UTF-8 text", where=where) from None


def _refuse_odd_characters(source: Source) -> None:
    if found := re.search(r"^ *(\t)", source.text, re.MULTILINE):
        raise UtcError(
            "a tab in the indentation",
            where=str(source.mark(found.start(1))),
            why="YAML is indented with spaces only",
            fix="replace the tab by spaces",
        )
    # In YAML 1.2 these three are no line breaks; pyyaml still counts lines by them, and every place would shift.
    if found := re.search("[\x85\u2028\u2029]", source.text):
        name = f"U+{ord(found.group()):04X}"
        raise UtcError(f"the character {name} is not allowed in a rule file", where=str(source.mark(found.start())))


def _syntax_error(error: yaml.MarkedYAMLError, source: Source) -> UtcError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None  # the composer and the parser always give one
    problem = str(error.problem or error.context)
    fix = None
    if r"'\t'" in problem:
        problem, fix = "a tab where YAML needs a space", "replace the tab by spaces"
    elif "mapping values are not allowed" in problem:
        fix = "check the indentation, and quote a text that has ': ' in it"
    elif "block end" in problem or "block mapping" in problem or "block collection" in problem:
        fix = "check the indentation of this line: entries of one list or mapping begin in one column"
    elif "cannot start any token" in problem:
        fix = "quote a text that begins with this character"
    why = None
    if error.context and error.context_mark and error.context_mark.line != mark.line:
        why = f"{error.context}, which began in line {error.context_mark.line + 1}"
    elif error.context:
        why = error.context
    return UtcError(f"this is not YAML: {problem}", where=str(source.mark(mark.index)), why=why, fix=fix)


class _Composer:
    """Builds nodes from pyyaml's events, and stops as soon as a bound is passed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.events: Iterator[yaml.Event] = iter(yaml.parse(source.text, Loader=yaml.SafeLoader))
        self.anchors: dict[str, Node | None] = {}  # None while the anchored node is still being built
        self.aliases = 0
        self.nodes = 0

    def document(self) -> Node:
        next(self.events)  # the start of the stream
        start = next(self.events)
        if not isinstance(start, yaml.DocumentStartEvent):
            raise UtcError("the rule file is empty", where=f"{self.source.file}:1:1")
        if start.version not in (None, (1, 2)):
            version = ".".join(map(str, start.version))
            raise self.error(start, f"rule files are YAML 1.2, and this file is {version}")
        node = self.node(next(self.events), depth=0)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self.error(after, "a second document", fix="a rule file is one document: remove the '---'")
        return node

    def node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        assert isinstance(event, _Begin)
        if event.tag is not None:
            fix = "leave the tag out; quote a value that is to be text"
            tag = short(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise self.error(event, f"tags are not supported: {tag}", fix=fix)
        self.count(event, 1)
        if event.anchor is not None:
            if event.anchor in self.anchors:
                raise self.error(event, f"the anchor &{short(event.anchor)} is defined twice")
            self.anchors[event.anchor] = None
        node = self.collection(event, depth + 1) if not isinstance(event, yaml.ScalarEvent) else self.scalar(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def collection(self, event: yaml.CollectionStartEvent, depth: int) -> Node:
        self.check_depth(event, depth)
        return self.sequence(event, depth) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(event, depth)

    def sequence(self, start: yaml.CollectionStartEvent, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth))
        return self.measured(start, tuple(items), {}, items)

    def mapping(self, start: yaml.CollectionStartEvent, depth: int) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event)
            if key in keys:
                why = f"line {keys[key].line} has it too, and a mapping has each key once"
                raise self.error(event, f"the key {short(key)!r} is there twice", why=why)
            keys[key] = self.mark(event)
            entries[key] = self.node(next(self.events), depth)
        return self.measured(start, entries, keys, list(entries.values()))

    def key(self, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error(event, "a key must be one word, not a list, a mapping or an alias")
        if event.style is None and event.value == "<<":
            fix = "write the keys out, or use an alias for a whole value"
            raise self.error(event, "merge keys (<<) are not supported", fix=fix)
        if len(event.value) > MAX_KEY:
            raise self.error(event, f"a key of more than {MAX_KEY} characters")
        node = self.node(event, depth=0)
        if not isinstance(node.content, str):
            raise self.error(event, f"the key {short(event.value)!r} is not a text", fix="put it in quotes")
        return node.content

    def scalar(self, event: yaml.ScalarEvent) -> Node:
        mark = self.mark(event)
        value = self.resolve(event) if event.style is None else event.value
        if not isinstance(value, str):
            return Node(value, mark)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(event, "a text has half of a surrogate pair in it")
        start, end = event.start_mark, event.end_mark
        assert start is not None and end is not None
        passage = Passage.aligned(value, self.source, start.index, end.index)
        return Node(value, mark, text=passage)

    def resolve(self, event: yaml.ScalarEvent) -> Scalar:
        value: str = event.value
        if value in _WORDS:
            return _WORDS[value]
        numeric = value[:1] in "+-.0123456789"
        if numeric and len(value) > MAX_DIGITS and (_INTEGER.fullmatch(value) or _FLOAT.fullmatch(value)):
            raise self.error(event, f"a number of {len(value):,} digits", fix="put it in quotes if it is text")
        if not numeric:
            return value
        if _INTEGER.fullmatch(value):
            return int(value)
        if _OCTAL.fullmatch(value):
            return int(value[2:], 8)
        if _HEX.fullmatch(value):
            return int(value[2:], 16)
        return float(value) if _FLOAT.fullmatch(value) else value

    def alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise self.error(event, f"more than {MAX_ALIASES} aliases")
        name = event.anchor
        if name not in self.anchors:
            raise self.error(event, f"the alias *{short(name)} has no anchor &{short(name)} before it")
        node = self.anchors[name]
        if node is None:
            raise self.error(event, f"the anchor &{short(name)} contains itself")
        self.count(event, node.size)
        self.check_depth(event, depth + node.height)
        return node

    def measured(self, event: yaml.Event, content: _Content, keys: dict[str, Mark], children: list[Node]) -> Node:
        size = 1 + sum(child.size for child in children)
        height = 1 + max((child.height for child in children), default=0)
        return Node(content, self.mark(event), keys, size=size, height=height)

    def count(self, event: yaml.Event, size: int) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            raise self.error(
                event, f"more than {MAX_NODES:,} values", why="an alias counts as all values of its anchor"
            )

    def check_depth(self, event: yaml.Event, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.error(event, f"nested deeper than {MAX_DEPTH} levels")

    def mark(self, event: yaml.Event) -> Mark:
        assert event.start_mark is not None
        return self.source.mark(event.start_mark.index)

    def error(self, event: yaml.Event, what: str, *, why: str | None = None, fix: str | None = None) -> UtcError:
        return UtcError(what, where=str(self.mark(event)), why=why, fix=fix)

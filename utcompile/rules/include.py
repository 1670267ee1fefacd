"""`include:`: the files of a rule set, each once and after what it includes itself.

An included file is named by its path, relative to the folder of the file that names it and below it, or is one of the
shipped rules. A path never leads out of that folder: not by `..`, not from the root, not through a symbolic link. How
many files there are, how deep they include one another and how large they are together is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules import yaml12
from utcompile.rules.files import is_file, read, shipped_rules
from utcompile.rules.passage import short
from utcompile.rules.schema import Header
from utcompile.rules.schema_errors import validate
from utcompile.rules.syntax import Mark
from utcompile.rules.variables import Value, check_value
from utcompile.rules.yaml12 import Node

MAX_FILES = 20
MAX_DEPTH = 5
_SUFFIXES = (".yaml", ".yml")
_FIX = "name a file below this one's folder, such as shared/tuners.yaml, or shipped rules, such as lora/all_linear"


@dataclass(frozen=True)
class File:
    """One file of a rule set.

    Attributes:
        key: the path below the first file's folder, or the name of shipped rules; empty for the first file itself.
        root: its content.
        sees: the keys of all files that it includes, directly or through other files.
    """

    key: str
    root: Node
    sees: tuple[str, ...]


@dataclass
class Sources:
    """Where included files come from.

    Attributes:
        folder: of the first file; None where the rules came as text.
        texts: given texts by key; they are used instead of files.
    """

    folder: Path | None
    texts: Mapping[str, str]

    @cached_property
    def shipped(self) -> Mapping[str, Path]:
        """The shipped rules; looked for only where a file includes something."""
        return shipped_rules()

    def key(self, name: str, includer: str, where: str) -> str:
        """The key of a file as `includer` names it."""
        if not name.endswith(_SUFFIXES):
            return self._shipped(name, name, where)
        parts = [part for part in name.split("/") if part != "."]
        why = _problem(name, parts)
        if why is not None:
            raise UtcError(f"'{short(name)}' cannot be included", where=where, why=why, fix=_FIX)
        path = "/".join([*includer.split("/")[:-1], *parts])
        if includer and not includer.endswith(_SUFFIXES):  # the files next to a shipped file are shipped too
            return self._shipped(path.rpartition(".")[0], name, where)
        return path

    def _shipped(self, key: str, name: str, where: str) -> str:
        if key in self.shipped or key in self.texts:
            return key
        what = f"no shipped rules '{short(name)}' to include"
        fix = did_you_mean(key, self.shipped)
        raise UtcError(what, where=where, why="the name of a file ends in .yaml", fix=fix)

    def read(self, key: str, where: str) -> tuple[str, str]:
        """The name in messages and the text of a file."""
        if key in self.texts:
            return key, yaml12.decode(self.texts[key], key)
        if not key.endswith(_SUFFIXES):
            path = self.shipped[key]
            return str(path), read(path, str(path))
        if self.folder is None:
            why = "these rules were given as text, and a text has no folder in which the file could be"
            fix = "load the rules from a file, or include shipped rules"
            raise UtcError(f"'{short(key)}' cannot be included", where=where, why=why, fix=fix)
        path = self.folder / key
        shown = str(path)
        try:
            real, folder = path.resolve(strict=True), self.folder.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links, before Python 3.13
            raise UtcError(f"no file '{short(key)}' to include", where=where, fix="check the path") from None
        if not real.is_relative_to(folder):
            why = "a symbolic link leads out of the folder of the rule file"
            raise UtcError(f"'{short(key)}' cannot be included", where=where, why=why, fix=_FIX)
        if not is_file(real):
            raise UtcError(f"'{short(key)}' cannot be included", where=where, why="it is no file", fix=_FIX)
        return shown, read(real, shown)


def _problem(name: str, parts: list[str]) -> str | None:
    """The reason why a path does not name a file below a folder on every system; None where it does."""
    if name.startswith("/") or ":" in name:
        return "a path is relative to the file that includes it"
    if ".." in parts:
        return "a path must not lead out of the folder with .."
    if "\\" in name:
        return "the parts of a path are joined by /"
    if "$" in name:
        return "a path has no variables"
    if "" in parts or not name.isprintable():
        return "it is not a path"
    return None


class Included:
    """A file with all that it includes.

    Attributes:
        files: each once and after those it includes; the last is the file itself.
        texts: of the included files, by key.
        values: the variables of all files, with the values that their files and those that include them give.
    """

    def __init__(self, text: str, shown: str, sources: Sources) -> None:
        self.sources = sources
        self.files: dict[str, File] = {}
        self.texts: dict[str, str] = {}
        self.values: dict[str, Value] = {}
        self._declared: dict[str, Mark] = {}
        self._given: dict[tuple[str, str], tuple[Value, Mark]] = {}  # (file, variable) -> value and its place
        self._size = self._nodes = 0
        self._file(text, (("", shown),))

    def _file(self, text: str, trail: tuple[tuple[str, str], ...]) -> None:
        """Read a text; `trail` has the key and the shown name of each file on the way to it, its own last."""
        key, shown = trail[-1]
        root = yaml12.load(text, shown)
        if not isinstance(root.content, dict):
            fix = "begin with version: 1, name: … and rules: …"
            raise UtcError("a rule file is a mapping", where=str(root.mark), fix=fix)
        self._size, self._nodes = self._size + len(text), self._nodes + root.size
        self._check_size(str(root.mark))
        _check_header(root)
        seen = [key for entry in root.at("include").listed() for key in self._include(entry, trail)]
        self._declare(root)
        self.files[key] = File(key, root, tuple(dict.fromkeys(seen)))

    def _include(self, entry: Node, trail: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        """Read what one entry names, unless that is done; the keys that come with it."""
        node = entry.get("file") or entry
        where = str(node.mark)
        key = self.sources.key(str(node.content), trail[-1][0], where)
        if key not in self.files:
            self._read(key, trail, where)
        seen = (*self.files[key].sees, key)
        self._give(entry, key, seen)
        return seen

    def _read(self, key: str, trail: tuple[tuple[str, str], ...], where: str) -> None:
        if len(trail) > MAX_DEPTH:
            raise UtcError(f"files that include one another more than {MAX_DEPTH} deep", where=where)
        if len(self.texts) == MAX_FILES:
            raise UtcError(f"more than {MAX_FILES} included files", where=where)
        shown, text = self.sources.read(key, where)
        names = [name for _, name in trail]
        if shown in names:
            circle = [*names[names.index(shown) :], shown]
            why = " → ".join(short(Path(name).name) for name in circle)
            raise UtcError(f"'{short(key)}' includes itself", where=where, why=why, fix="remove one of these includes")
        self.texts[key] = text
        self._file(text, (*trail, (key, shown)))

    def _check_size(self, where: str) -> None:
        for number, most, unit in (
            (self._size, yaml12.MAX_BYTES, "characters"),
            (self._nodes, yaml12.MAX_NODES, "values"),
        ):
            if number > most:
                why = f"the files read so far have more than {most:,} {unit} together"
                raise UtcError("this file and those it is included with are too large", where=where, why=why)

    def _declare(self, root: Node) -> None:
        node = root.at("vars")
        for name, value in node.entries().items():
            checked = check_value(value.data, name, str(value.mark))
            claim(self._declared, "variable", name, node.keys[name])
            self.values[name] = checked

    def _give(self, entry: Node, key: str, seen: tuple[str, ...]) -> None:
        """The values that an entry gives to variables of its file, or of a file that this file includes."""
        node = entry.at("vars")
        for name, value in node.entries().items():
            mark = node.keys[name]
            names = [n for other in seen for n in self.files[other].root.at("vars").entries()]
            if name not in names:
                what = f"unknown variable '{short(name)}' of '{short(key)}'"
                raise UtcError(what, where=str(mark), fix=did_you_mean(name, names))
            checked = check_value(value.data, name, str(value.mark))
            first, place = self._given.setdefault((key, name), (checked, mark))
            if first != checked:
                what = f"'{short(key)}' is included twice, and '{short(name)}' has two values"
                raise UtcError(what, where=str(mark), why=f"{place} gives it another", fix="give it one value")
            self.values[name] = checked


def claim(taken: dict[str, Mark], kind: str, name: str, mark: Mark) -> None:
    """Note the place of a name.

    Raises:
        UtcError: another file has the name too; what a file includes is merged with it, and a name means one thing.
    """
    first = taken.setdefault(name, mark)
    if first.file != mark.file:
        what = f"the {kind} '{short(name)}' is there twice"
        why = f"{first} has it too, and what is included becomes part of the whole"
        raise UtcError(what, where=str(mark), why=why, fix="give one of them another name")


def _check_header(root: Node) -> None:
    """Check the shape of `include:` and `vars:`."""
    given = {key: root.at(key) for key in Header.model_fields if key in root.entries()}
    validate(Header, Node(given, root.mark, {key: root.keys[key] for key in given}))

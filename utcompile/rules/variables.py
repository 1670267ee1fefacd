"""`$name`: the variables of a rule file, which are replaced before anything else is read.

As a whole scalar `$name` becomes the variable's value and keeps its type. Within the text of a pattern or of a
comparison it becomes a literal: `conv2d(x, groups=$g)` with `g: 4` is `conv2d(x, groups=4)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules.expression import check_length
from utcompile.rules.passage import Passage, short
from utcompile.rules.yaml12 import Node, Scalar

Value = Scalar | list[Scalar]  # of a variable

_WHOLE = re.compile(r"\$([A-Za-z_]\w*)")
# Comments and quoted words are read as one piece each, so that a `$` inside them is not taken for a variable.
_PART = re.compile(r"""(?P<comment>\#[^\n]*)|(?P<quoted>"[^"\n]*"|'[^'\n]*')|\$(?P<name>[A-Za-z_]\w*)""")
_PROSE = frozenset({"name", "cite", "description", "folds", "include", "vars"})


def check_value(value: object, name: str, where: str | None) -> Value:
    """A variable's value: a number, a text, a boolean, null, or a list of these; tuples become lists."""
    if isinstance(value, list | tuple):
        return [_scalar(item, name, where) for item in value]
    return _scalar(value, name, where)


def _scalar(value: object, name: str, where: str | None) -> Scalar:
    odd = isinstance(value, float) and not math.isfinite(value)
    if odd or not (value is None or isinstance(value, str | int | float)):
        why = f"a variable is a number, text, boolean, null, or a list of these, and this is {value!r:.60}"
        raise UtcError(f"the variable '{name}' has no plain value", where=where, why=why)
    if isinstance(value, str) and "$" in value:
        raise UtcError(f"the variable '{name}' refers to another", where=where, fix="write the value itself")
    return value


class Variables:
    """The variables of one file with their values, and which of them have been used."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = dict(values)
        self.used: set[str] = set()
        self.problem: UtcError | None = None  # the first `$name` that `fill` could not replace

    def value(self, name: str, where: str) -> Value:
        """The value of `$name`."""
        if name not in self.values:
            fix = did_you_mean(name, self.values) if self.values else f"declare it: vars: {{{short(name)}: …}}"
            raise UtcError(f"unknown variable '${short(name)}'", where=where, fix=fix)
        self.used.add(name)
        return self.values[name]

    def fill(self, root: Node) -> Node:
        """The file with its variables replaced, but for those within patterns and comparisons.

        A `$name` that is unknown, or that is in a place where none is allowed, is left as it is and noted in `problem`:
        the cause may be a misspelt key, which is then reported instead.
        """
        return self._fill(root, ())

    def _note(self, error: UtcError, node: Node) -> Node:
        self.problem = self.problem or error
        return node

    def _fill(self, node: Node, path: tuple[str | int, ...]) -> Node:
        content = node.content
        if isinstance(content, dict):
            filled = {k: v if not path and k in _PROSE else self._fill(v, (*path, k)) for k, v in content.items()}
            return Node(filled, node.mark, node.keys)
        if isinstance(content, tuple):
            return Node(tuple(self._fill(item, (*path, index)) for index, item in enumerate(content)), node.mark)
        if not isinstance(content, str) or "$" not in content:
            return node
        if whole := _WHOLE.fullmatch(content.strip()):
            try:
                return _node(self.value(whole[1], str(node.mark)), node)
            except UtcError as error:
                return self._note(error, node)
        if not _is_expression(path) and (part := re.search(_WHOLE, content)):
            mark = node.passage.mark(part.start())
            what, fix = f"'{short(part.group())}' within a text", "write the variable alone here, without other text"
            return self._note(UtcError(what, where=str(mark), fix=fix), node)
        return node

    def expand(self, passage: Passage) -> Passage:
        """The text of a pattern or comparison with each `$name` replaced by a literal.

        Example:
            >>> from utcompile.rules.syntax import Mark
            >>> Variables({"g": 4}).expand(Passage.plain("h = conv2d(x, groups=$g)", Mark("r.yaml", 1, 1))).text
            'h = conv2d(x, groups=4)'
        """
        check_length(passage)
        for found in reversed(list(_PART.finditer(passage.text))):  # from the end, so that earlier offsets stay
            where = str(passage.mark(found.start()))
            if found["quoted"] and _WHOLE.search(found["quoted"]):
                raise UtcError("a variable within quotes", where=where, fix="write it without quotes: $name")
            if name := found["name"]:
                value = self.value(name, where)
                literal = repr(tuple(value) if isinstance(value, list) else value)
                passage = passage.replaced(*found.span(), literal)
            check_length(passage)
        return passage


def _is_expression(path: tuple[str | int, ...]) -> bool:
    match path:
        case ("patterns", *_) | ("rules", _, "where", *_) | ("rules", _, "match") | ("rules", _, "match", "op"):
            return True
    return False


def _node(value: Value, place: Node) -> Node:
    if isinstance(value, list):
        return Node(tuple(Node(item, place.mark) for item in value), place.mark)
    return Node(value, place.mark)

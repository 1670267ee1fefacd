"""Pattern text to `Spelling`: the forward code that a rule matches, one step per line.

    n = (norm | skip)(x)
    q, k, v = split(linear(n))
    y = branch_tail(linear(sdpa(q, k, v)))

The text is read with `ast.parse` and never evaluated. A name that no line binds, here `x`, is an input, bound by
matching.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules.expression import Text
from utcompile.rules.flow import Occurrence, check_flow
from utcompile.rules.passage import Passage
from utcompile.rules.slips import operation_fix, operator_fix
from utcompile.rules.syntax import Call, Expression, Head, Name, Path, Pattern, Plain, Spelling, Step

MAX_STEPS = 64
MAX_PATH = 64

_HOW_STEP = "write one step per line: y = op(x, attribute=value)"
_HOW_PATH = "write path(x, through=conv | norm, max=6), and min= if it is not 1"


def parse_pattern(
    name: str, spellings: Sequence[Passage], known: Collection[str], named: Collection[str] = ()
) -> Pattern:
    """Parse all spellings of one pattern; the arguments are those of `parse_spelling`."""
    return Pattern(name, tuple(parse_spelling(passage, known, named) for passage in spellings))


def parse_spelling(passage: Passage, known: Collection[str], named: Collection[str] = ()) -> Spelling:
    """Parse one spelling of a pattern.

    Args:
        passage: the text, with its place in the rule file.
        known: the operations and classes of operations that may be called.
        named: the named patterns that may be called as operations; such a call has one operand and one result.

    Raises:
        UtcError: the text is malformed, with the place of the wrong word.

    Example:
        >>> from utcompile.rules.syntax import Mark
        >>> text = "h = linear(x)\\ny = (gelu | silu | skip)(h)"
        >>> spelling = parse_spelling(Passage.plain(text, Mark("r.yaml", 3, 5)), {"linear", "gelu", "silu"})
        >>> sorted(spelling.names), [step.text for step in spelling.steps]
        (['h', 'x', 'y'], ['h = linear(x)', 'y = (gelu | silu | skip)(h)'])
    """
    text = Text(passage, "exec", what="pattern", fix=_HOW_STEP)
    if not text.statements:
        raise UtcError("an empty pattern", where=str(passage.start), fix=_HOW_STEP)
    return _Parser(text, known, named).spelling()


def parse_heads(passage: Passage, known: Collection[str], named: Collection[str] = ()) -> tuple[Head, ...]:
    """Parse alternatives without operands: `conv2d(groups=1) | linear`; no `skip`, no named patterns.

    `named` are the named patterns, for the message where one is written.

    Example:
        >>> from utcompile.rules.syntax import Mark
        >>> parse_heads(Passage.plain("conv2d(groups=1) | linear", Mark("r.yaml", 1, 1)), {"conv2d", "linear"})
        (Head(name='conv2d', attributes={'groups': 1}), Head(name='linear', attributes={}))
    """
    fix = "write op: conv2d(groups=1) | linear"
    if "*" in passage.text:
        fix = f"an operation is not a glob: conv is any convolution, norm is any norm; {fix}"
    text = Text(passage, "eval", what="list of operations", fix=fix)
    return _Parser(text, known, named).single(text.expression)


class _Parser:
    def __init__(self, text: Text, known: Collection[str], named: Collection[str]) -> None:
        self.text, self.named = text, frozenset(named)
        self.known = frozenset(known) | self.named
        self.calls = 0
        self.steps: list[Step] = []
        self.bindings: list[Occurrence] = []
        self.uses: list[Occurrence] = []

    def spelling(self) -> Spelling:
        for statement in self.text.statements:
            self.steps.append(self.step(statement))
        check_flow(self.steps, self.bindings, self.uses, self.known)
        return Spelling(tuple(self.steps), self.text.passage.start)

    def occurrence(self, node: ast.Name) -> Occurrence:
        return Occurrence(node.id, self.text.mark(node), len(self.steps))

    def step(self, statement: ast.stmt) -> Step:
        text = self.text
        if not isinstance(statement, ast.Assign):
            raise text.error(statement, f"{text.shown(statement)!r} is not a step of a pattern", fix=_HOW_STEP)
        if len(statement.targets) > 1:
            raise text.error(statement.targets[1], "one step binds its result once", fix=_HOW_STEP)
        targets = self.targets(statement.targets[0])
        value = self.expression(statement.value, 0)
        if isinstance(value, Name):
            why = f"'{value.name}' would be a second name for the same value"
            raise text.error(statement.value, "a step names the result of an operation", why=why, fix=_HOW_STEP)
        if len(targets) > 1:
            self.check_several(statement, value)
        return Step(targets, value, text.mark(statement), text.of(statement))

    def targets(self, node: ast.expr) -> tuple[str, ...]:
        nodes = node.elts if isinstance(node, ast.Tuple) else [node]
        if not nodes:
            raise self.text.error(node, "a step binds at least one name", fix=_HOW_STEP)
        names = []
        for target in nodes:
            if not isinstance(target, ast.Name):
                fix = "write y = op(x), or q, k, v = split(t)"
                raise self.text.error(target, f"{self.text.shown(target)!r} is not a name to bind", fix=fix)
            self.bindings.append(self.occurrence(target))
            names.append(target.id)
        return tuple(names)

    def check_several(self, statement: ast.Assign, value: Call | Path) -> None:
        heads = value.heads if isinstance(value, Call) else ()
        if not heads or heads[-1].is_skip or any(head.name in self.named for head in heads):
            why = "a path, skip and a named pattern have one result"
            raise self.text.error(statement.targets[0], "several names for one result", why=why)

    def expression(self, node: ast.expr, depth: int) -> Expression:
        self.text.check_nesting(node, depth)
        match node:
            case ast.Name(id=name):
                self.uses.append(self.occurrence(node))
                return Name(name)
            case ast.Call(func=ast.Name(id="path")):
                return self.path(node, depth)
            case ast.Call():
                return self.call(node, depth)
            case ast.Constant() | ast.UnaryOp():
                fix = "give a constant to the operation as an attribute: op(x, name=value)"
                raise self.text.error(node, f"{self.text.shown(node)!r} is not an operand", fix=fix)
        shown, fix = self.text.shown(node), "an operand is a name or a call: op(x)"
        if isinstance(node, ast.BinOp):
            sides = self.text.shown(node.left), self.text.shown(node.right)
            fix = operator_fix(type(node.op).__name__, *sides) or fix
        raise self.text.error(node, f"{shown!r} is not an operand", fix=fix)

    def count(self, node: ast.expr) -> None:
        self.calls += 1
        if self.calls > MAX_STEPS:
            raise self.text.error(
                node, f"a pattern of more than {MAX_STEPS} operations", fix="split it into named patterns"
            )

    def call(self, node: ast.Call, depth: int) -> Call:
        self.count(node)
        shared = self.attributes(node)
        heads = self.heads(node.func, skip=True)
        for keyword in node.keywords:
            for head in heads:
                if keyword.arg in head.attributes:
                    raise self.text.error(keyword, f"the attribute '{keyword.arg}' of '{head.name}' is given twice")
        if shared:
            heads = tuple(h if h.is_skip else Head(h.name, {**h.attributes, **shared}) for h in heads)
        self.check_call(node, heads, shared)
        arguments = tuple(self.expression(self.plain(argument), depth + 1) for argument in node.args)
        return Call(heads, arguments, self.text.of(node))

    def check_call(self, node: ast.Call, heads: tuple[Head, ...], shared: dict[str, Plain]) -> None:
        text, called = self.text, self.text.shown(node.func)
        called = f"({called})" if isinstance(node.func, ast.BinOp) else called
        if not node.args:
            raise text.error(node, f"'{called}' is called without an operand", fix=f"write {called}(x)")
        alone = "skip" if heads[-1].is_skip else next((h.name for h in heads if h.name in self.named), None)
        if alone is not None and len(node.args) > 1:
            why = "skip passes one value on" if alone == "skip" else "a named pattern is called with its x alone"
            raise text.error(node.args[1], f"'{alone}' takes one operand", why=why)
        for head in heads:
            if shared and head.name in self.named:
                raise text.error(node.keywords[0], f"the named pattern '{head.name}' has no attributes")

    def attributes(self, node: ast.Call) -> dict[str, Plain]:
        found: dict[str, Plain] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.text.error(keyword, "'**' is not supported in a pattern", fix="write the attributes out")
            if keyword.arg in found:
                raise self.text.error(keyword, f"the attribute '{keyword.arg}' is given twice")
            found[keyword.arg] = self.text.literal(keyword.value)
        return found

    def plain(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Starred):
            raise self.text.error(node, "'*' is not supported in a pattern", fix="name each operand")
        return node

    def heads(self, node: ast.expr, *, skip: bool) -> tuple[Head, ...]:
        """The alternatives of `(a | b(k=1) | skip)`, in order."""
        nodes: list[ast.expr] = []
        pending = [node]
        while pending:
            match pending.pop():
                case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                    pending += [right, left]
                case leaf:
                    nodes.append(leaf)
        heads = tuple(self.head(leaf) for leaf in nodes)
        for index, head in enumerate(heads):
            if not head.is_skip:
                continue
            if not skip:
                raise self.text.error(
                    nodes[index], "'skip' is not allowed here", why="at least one operation is needed"
                )
            if len(heads) == 1:
                why = "a step that is always skipped has no effect"
                raise self.text.error(
                    nodes[index], "'skip' has no other alternative", why=why, fix="write (op | skip)(x)"
                )
            if index < len(heads) - 1:
                why = "alternatives are tried in order, and skip always matches"
                raise self.text.error(nodes[index], "'skip' must come last", why=why)
        return heads

    def head(self, node: ast.expr) -> Head:
        text = self.text
        match node:
            case ast.Name(id=name):
                attributes: dict[str, Plain] = {}
            case ast.Call(func=ast.Name(id=name), args=[]):
                attributes = self.attributes(node)
                if attributes and (name == "skip" or name in self.named):
                    raise text.error(node, f"'{name}' has no attributes")
            case ast.Call(func=ast.Name(id=name)):
                fix = f"write ({name} | …)(x): the operands follow the alternatives"
                raise text.error(node, f"an operand within the alternative '{name}'", fix=fix)
            case ast.Attribute():
                fix = operation_fix(text.of(node), self.known) or (
                    "use the operation's canonical name, such as conv2d or relu"
                )
                raise text.error(node, f"{text.shown(node)!r} is not an operation", fix=fix)
            case _:
                fix = "write op(x), or (a | b | skip)(x)"
                raise text.error(node, f"{text.shown(node)!r} is not an operation", fix=fix)
        if name == "path":
            raise text.error(node, "'path' is not an alternative", fix=_HOW_PATH)
        if name != "skip" and name not in self.known:
            fix = operation_fix(name, self.known) or did_you_mean(name, self.known)
            raise text.error(node, f"unknown operation '{name}'", fix=fix)
        return Head(name, attributes)

    def path(self, node: ast.Call, depth: int) -> Path:
        self.count(node)
        given: dict[str | None, ast.expr] = {}
        for keyword in node.keywords:
            if keyword.arg not in ("through", "max", "min"):
                fix = did_you_mean(keyword.arg or "**", ("through", "max", "min"))
                raise self.text.error(keyword, f"'path' has no argument '{keyword.arg or '**'}'", fix=fix)
            if keyword.arg in given:
                raise self.text.error(keyword, f"the argument '{keyword.arg}' is given twice")
            given[keyword.arg] = keyword.value
        if missing := [name for name in ("through", "max") if name not in given]:
            raise self.text.error(node, f"'path' lacks {' and '.join(f'{name}=' for name in missing)}", fix=_HOW_PATH)
        if len(node.args) != 1:
            raise self.text.error(node, "'path' takes one operand", fix=_HOW_PATH)
        most = self.length(given["max"], 1, MAX_PATH)
        least = self.length(given["min"], 0, most) if "min" in given else 1
        source = self.expression(self.plain(node.args[0]), depth + 1)
        through = self.single(given["through"])
        return Path(source, through, most, self.text.of(node), least)

    def single(self, node: ast.expr) -> tuple[Head, ...]:
        """Alternatives that are all operations, without `skip` and named patterns."""
        heads = self.heads(node, skip=False)
        for head in heads:
            if head.name in self.named:
                what = f"the named pattern '{head.name}' is used where a single operation is needed"
                raise self.text.error(node, what)
        return heads

    def length(self, node: ast.expr, least: int, most: int) -> int:
        value = self.text.literal(node)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            shown = self.text.shown(node)
            raise self.text.error(
                node, f"the length of a path must be a whole number from {least} to {most}, not {shown}"
            )
        return value

"""`where:` lines to `Comparison`: attributes of captures, arithmetic and literals, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from types import MappingProxyType

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules.expression import Text
from utcompile.rules.passage import Passage
from utcompile.rules.syntax import Attribute, Comparison, Literal, Operand, Product

ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "shape": "the sizes of its axes, as a tuple",
        "channels": "the size of its channel axis",
        "layout": "how its axes are arranged: 'NCHW', 'NHWC', 'NCL', 'tokens', 'windows', 'heads', …",
        "rank": "the number of its axes",
        "dtype": "such as 'float32'",
        "path": "the path of the module that made it, such as 'blocks.0.mlp'",
        "index": "its place in the graph; to choose among matches, use select",
        "users": "the number of operations that read it",
        "op": "the operation that made it: op.groups, op.stride, …",
    }
)

_COMPARE: Mapping[type[ast.cmpop], str] = MappingProxyType(
    {
        ast.Eq: "==",
        ast.NotEq: "!=",
        ast.Lt: "<",
        ast.LtE: "<=",
        ast.Gt: ">",
        ast.GtE: ">=",
        ast.In: "in",
        ast.NotIn: "not in",
    }
)
_ARITHMETIC: Mapping[type[ast.operator], str] = MappingProxyType(
    {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}
)
_HOW = "write a comparison, such as h.channels >= 4 * x.channels"
_HOW_COMMA = (
    "quote a comparison that contains a comma, or write it on its own line: within [ ] YAML ends it at the comma"
)


def parse_comparison(passage: Passage, captures: Collection[str]) -> Comparison:
    """Parse one line of `where:`.

    Args:
        passage: the text, with its place in the rule file.
        captures: the names that the match offers.

    Raises:
        UtcError: the text is malformed, with the place of the wrong word.

    Example:
        >>> from utcompile.rules.syntax import Mark
        >>> line = parse_comparison(Passage.plain("h.op.groups in (1, 2)", Mark("r.yaml", 7, 9)), {"h", "x"})
        >>> line.operands, line.operators
        ((Attribute(capture='h', path=('op', 'groups')), Literal(value=(1, 2))), ('in',))
    """
    cut = passage.text.count("(") != passage.text.count(")")
    text = Text(passage, "eval", what="comparison", fix=_HOW_COMMA if cut else _HOW)
    body = text.expression
    if not isinstance(body, ast.Compare):
        fix = "write each comparison on its own line: all of them must hold" if _is_logic(body) else _HOW
        raise text.error(body, f"{text.shown(body)!r} is not a comparison", fix=fix)
    parser = _Parser(text, captures)
    operands = [parser.operand(body.left)]
    operators = []
    for operator, node in zip(body.ops, body.comparators, strict=True):
        if type(operator) not in _COMPARE:
            fix = "use == or !="
            raise text.error(body, "'is' does not compare values", fix=fix)
        operand = parser.operand(node)
        if isinstance(operator, ast.In | ast.NotIn):
            _check_container(text, node, operand)
        operands.append(operand)
        operators.append(_COMPARE[type(operator)])
    if all(isinstance(operand, Literal) for operand in operands):
        raise text.error(body, f"{text.shown(body)!r} is the same everywhere", why="it names no capture", fix=_HOW)
    return Comparison(tuple(operands), tuple(operators), " ".join(passage.text.split()), passage.start)


def _is_logic(node: ast.expr) -> bool:
    return isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _check_container(text: Text, node: ast.expr, operand: Operand) -> None:
    if isinstance(operand, Product) or (isinstance(operand, Literal) and not isinstance(operand.value, tuple | str)):
        raise text.error(node, f"nothing can be in {text.shown(node)}", fix="write in (1, 2, 3)")


class _Parser:
    def __init__(self, text: Text, captures: Collection[str]) -> None:
        self.text, self.captures = text, captures

    def operand(self, node: ast.expr, depth: int = 0) -> Operand:
        self.text.check_nesting(node, depth)
        match node:
            case ast.Attribute():
                return self.attribute(node)
            case ast.BinOp(left=left, op=operator, right=right):
                if type(operator) not in _ARITHMETIC:
                    fix = "use +, -, * or //"
                    raise self.text.error(node, f"arithmetic that is not supported: {self.text.shown(node)}", fix=fix)
                symbol = _ARITHMETIC[type(operator)]
                return Product(symbol, self.operand(left, depth + 1), self.operand(right, depth + 1))
            case ast.Constant() | ast.Tuple() | ast.List():
                return Literal(self.text.literal(node))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant()):
                return Literal(self.text.literal(node))
            case ast.Name(id=name) if name in self.captures:
                fix = f"compare an attribute of it, such as {name}.shape: {', '.join(ATTRIBUTES)}"
                raise self.text.error(node, f"the capture '{name}' itself cannot be compared", fix=fix)
            case ast.Name(id=name):
                fix = f"put a word in quotes: '{name}'"
                raise self.text.error(node, f"'{name}' is neither a number nor an attribute of a capture", fix=fix)
        why = "a comparison has attributes of captures, + - * //, and literals"
        raise self.text.error(node, f"{self.text.shown(node)!r} is not supported in where:", why=why)

    def attribute(self, node: ast.Attribute) -> Attribute:
        path: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            path.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            why = "only a capture has attributes"
            raise self.text.error(node, f"{self.text.shown(node)!r} is not supported in where:", why=why)
        if base.id not in self.captures:
            fix = did_you_mean(base.id, self.captures)
            raise self.text.error(base, f"the match offers no capture '{base.id}'", fix=fix)
        self.check_path(node, base, path)
        return Attribute(base.id, tuple(path))

    def check_path(self, node: ast.Attribute, base: ast.Name, path: list[str]) -> None:
        first, *rest = path
        shown = f"{base.id}.{first}"
        if first not in ATTRIBUTES:
            mark = self.text.passage.mark(self.text.offset(base.end_lineno or 1, base.end_col_offset or 0) + 1)
            what = f"a capture has no attribute '{first}'"
            raise UtcError(what, where=str(mark), fix=did_you_mean(first, ATTRIBUTES))
        if first == "op" and not rest:
            fix = f"name an attribute of it, such as {shown}.groups"
            raise self.text.error(node, f"the operation '{shown}' itself cannot be compared", fix=fix)
        if len(rest) > (first == "op"):
            fix = f"write {shown}" if first != "op" else f"write {shown}.{rest[0]}"
            raise self.text.error(node, f"{self.text.shown(node)!r} is one attribute too deep", fix=fix)

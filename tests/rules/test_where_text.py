"""`where:` lines: what they parse to, and where each mistake is."""

from __future__ import annotations

import pytest

from utcompile.errors import UtcError
from utcompile.rules.passage import Passage
from utcompile.rules.syntax import Attribute, Comparison, Literal, Mark, Product
from utcompile.rules.where import parse_comparison


def line(text: str) -> Comparison:
    return parse_comparison(Passage.plain(text, Mark("f", 3, 9)), {"x", "h", "hidden"})


def test_arithmetic() -> None:
    found = line("h.channels >= 4 * x.channels // 2 - 1")
    product = Product("*", Literal(4), Attribute("x", ("channels",)))
    assert found.operands == (
        Attribute("h", ("channels",)),
        Product("-", Product("//", product, Literal(2)), Literal(1)),
    )
    assert (found.operators, found.text, str(found.mark)) == (
        (">=",),
        "h.channels >= 4 * x.channels // 2 - 1",
        "f:3:9",
    )


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("1 < x.rank <= 4", ("<", "<=")),
        ("x.rank in (3, 4)", ("in",)),
        ("x.dtype not in ['float16']", ("not in",)),
        ("'blocks' in x.path", ("in",)),
        ("x.shape == h.shape != (1, -1, None)", ("==", "!=")),
        ("h.op.groups == x.users", ("==",)),
        ("x.index > 0", (">",)),
    ],
)
def test_operators(text: str, operators: tuple[str, ...]) -> None:
    assert line(text).operators == operators


HOW = "\n  fix: write a comparison, such as h.channels >= 4 * x.channels"
PARTS = "\n  why: a comparison has attributes of captures, + - * //, and literals"

MISTAKES = {
    "z.rank == 3": "f:3:9: the match offers no capture 'z'\n  fix: known: h, hidden, x",
    "x.rank == hiden.rank": "f:3:19: the match offers no capture 'hiden'\n  fix: did you mean 'hidden'?",
    "x.chanels == 3": "f:3:11: a capture has no attribute 'chanels'\n  fix: did you mean 'channels'?",
    "x.op == 1": "f:3:9: the operation 'x.op' itself cannot be compared\n"
    "  fix: name an attribute of it, such as x.op.groups",
    "x.shape.rank == 1": "f:3:9: 'x.shape.rank' is one attribute too deep\n  fix: write x.shape",
    "x.op.a.b == 1": "f:3:9: 'x.op.a.b' is one attribute too deep\n  fix: write x.op.a",
    "x == h": "f:3:9: the capture 'x' itself cannot be compared\n"
    "  fix: compare an attribute of it, such as x.shape: shape, channels, layout, rank, dtype, path, index, users, op",
    "x.dtype == float32": "f:3:20: 'float32' is neither a number nor an attribute of a capture\n"
    "  fix: put a word in quotes: 'float32'",
    "x.rank == 3 and h.rank == 3": "f:3:9: 'x.rank == 3 and h.rank == 3' is not a comparison\n"
    "  fix: write each comparison on its own line: all of them must hold",
    "not x.rank == 3": "f:3:9: 'not x.rank == 3' is not a comparison\n"
    "  fix: write each comparison on its own line: all of them must hold",
    "x.rank": f"f:3:9: 'x.rank' is not a comparison{HOW}",
    "x.rank =": f"f:3:16: this is not a comparison\n  why: invalid syntax{HOW}",
    "x.rank is None": "f:3:9: 'is' does not compare values\n  fix: use == or !=",
    "x.shape[0] == 3": f"f:3:9: 'x.shape[0]' is not supported in where:{PARTS}",
    "len(x.shape) == 3": f"f:3:9: 'len(x.shape)' is not supported in where:{PARTS}",
    "__import__('os').system('ls') == 1": f"f:3:9: \"__import__('os').system('ls')\" is not supported in where:{PARTS}",
    "'a'.rank == 1": "f:3:9: \"'a'.rank\" is not supported in where:\n  why: only a capture has attributes",
    "x.rank / 2 == 1": "f:3:9: arithmetic that is not supported: x.rank / 2\n  fix: use +, -, * or //",
    "x.rank in 3": "f:3:19: nothing can be in 3\n  fix: write in (1, 2, 3)",
    "1 == 1": f"f:3:9: '1 == 1' is the same everywhere\n  why: it names no capture{HOW}",
    "x.rank == (1, x)": "f:3:23: 'x' is not a literal\n"
    "  why: a literal is a number, a text in quotes, True, False, None, or a tuple of them\n"
    "  fix: put a word in quotes: 'x'",
    "x.rank == " + "(1+" * 40 + "1" + ")" * 40: "f:3:110: nested deeper than 30 levels\n"
    "  fix: give the inner parts names",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:40])
def test_mistakes_stand_at_the_offending_word(text: str) -> None:
    with pytest.raises(UtcError) as caught:
        line(text)
    assert str(caught.value) == MISTAKES[text]

"""Pattern text: what it parses to, and where each mistake is."""

from __future__ import annotations

import pytest

from utcompile.errors import UtcError
from utcompile.rules.passage import Passage
from utcompile.rules.pattern import parse_heads, parse_pattern, parse_spelling
from utcompile.rules.syntax import Call, Head, Mark, Name, Path, Spelling

KNOWN = frozenset(["linear", "conv2d", "conv", "norm", "gelu", "add", "split", "sdpa", "branch_tail", "dropout"])
NAMED = frozenset({"attention"})


def spelling(text: str) -> Spelling:
    return parse_spelling(Passage.plain(text, Mark("f", 10, 7)), KNOWN, NAMED)


def test_steps_bind_names_to_calls() -> None:
    found = spelling("n = (norm | skip)(x)\nq, k, v = split(linear(n), dim=-1)\ny = branch_tail(sdpa(q, k, v))")
    assert [step.targets for step in found.steps] == [("n",), ("q", "k", "v"), ("y",)]
    assert found.steps[0].value == Call((Head("norm"), Head("skip")), (Name("x"),), "(norm | skip)(x)")
    inner = Call((Head("linear"),), (Name("n"),), "linear(n)")
    assert found.steps[1].value == Call((Head("split", {"dim": -1}),), (inner,), "split(linear(n), dim=-1)")
    assert found.names == {"x", "n", "q", "k", "v", "y"}
    assert [str(step.mark) for step in found.steps] == ["f:10:7", "f:11:7", "f:12:7"]
    assert found.steps[2].text == "y = branch_tail(sdpa(q, k, v))"


def test_alternatives_carry_their_own_attributes_and_share_those_of_the_call() -> None:
    call = spelling("y = (conv2d(groups=1) | (linear | gelu))(x, bias=None)").steps[0].value
    assert isinstance(call, Call)
    assert [(head.name, dict(head.attributes)) for head in call.heads] == [
        ("conv2d", {"groups": 1, "bias": None}),
        ("linear", {"bias": None}),
        ("gelu", {"bias": None}),
    ]


def test_literals() -> None:
    text = "y = linear(x, a=-1, b=2.5, c='t', d=True, e=None, f=(1, 2), g=[1, [2]], h=+3, i=())"
    call = spelling(text).steps[0].value
    assert isinstance(call, Call)
    assert dict(call.heads[0].attributes) == {
        "a": -1, "b": 2.5, "c": "t", "d": True, "e": None, "f": (1, 2), "g": (1, (2,)), "h": 3, "i": (),
    }  # fmt: skip


def test_path() -> None:
    found = spelling("y = path(linear(x), through=conv | norm(eps=1), max=6, min=0)").steps[0].value
    assert isinstance(found, Path)
    assert (found.min, found.max, found.through) == (0, 6, (Head("conv"), Head("norm", {"eps": 1})))
    assert spelling("y = path(x, through=conv, max=6)").steps[0].value.min == 1  # type: ignore[union-attr]


def test_comments_blank_lines_and_continued_lines() -> None:
    found = spelling("# what it is\n\nn = norm(x)  # first\ny = add(\n  n,\n  x)\n")
    assert [step.text for step in found.steps] == ["n = norm(x)", "y = add( n, x)"]


def test_a_value_may_be_used_again_and_inputs_may_be_many() -> None:
    assert spelling("a = add(x, z)\ny = add(a, a)").names == {"a", "x", "y", "z"}


def test_a_pattern_offers_what_all_its_spellings_bind() -> None:
    texts = ("h = linear(x)\ny = gelu(h)", "y = gelu(x)")
    pattern = parse_pattern("p", [Passage.plain(text, Mark("f", 1, 1)) for text in texts], KNOWN)
    assert pattern.names == {"x", "y"} and len(pattern.spellings) == 2


def test_heads() -> None:
    where = Mark("f", 1, 1)
    assert parse_heads(Passage.plain("conv2d(groups=1) | linear", where), KNOWN) == (
        Head("conv2d", {"groups": 1}),
        Head("linear"),
    )


def test_heads_and_spellings_can_be_keys() -> None:
    assert len({Head("conv2d", {"groups": 1}), Head("conv2d", {"groups": 1})}) == 1
    assert len({spelling("y = linear(x)"), spelling("y = linear(x)")}) == 1


HOW = "\n  fix: write one step per line: y = op(x, attribute=value)"
HOW_PATH = "\n  fix: write path(x, through=conv | norm, max=6), and min= if it is not 1"
LITERAL = "\n  why: a literal is a number, a text in quotes, True, False, None, or a tuple of them"

MISTAKES = {
    "y = linear(x": f"f:10:17: this is not a pattern\n  why: '(' was never closed{HOW}",
    "": f"f:10:7: an empty pattern{HOW}",
    "# only a comment": f"f:10:7: an empty pattern{HOW}",
    "n = norm(x)\nn = linear(n)": (
        "f:11:7: 'n' is bound twice\n  why: line 10 binds the name too, and a name has one value\n"
        "  fix: give this value another name"
    ),
    "a, a = split(x)": (
        "f:10:10: 'a' is bound twice\n  why: line 10 binds the name too, and a name has one value\n"
        "  fix: give this value another name"
    ),
    "n = nrom(x)": "f:10:11: unknown operation 'nrom'\n  fix: did you mean 'norm'?",
    "é = norm(x)\ny = add(é, lineer(x))": "f:11:18: unknown operation 'lineer'\n  fix: did you mean 'linear'?",
    "n = norm(x)\ny = linear(x)": (
        "f:10:7: the last line never reaches 'n'\n"
        "  why: a pattern is anchored at its last line, and follows the values that this line reads\n"
        "  fix: use the name in a later line, or remove this line"
    ),
    "y = linear(n)\nn = norm(x)": (
        "f:10:18: 'n' is used before it is bound\n  why: line 11 binds the name\n  fix: move that line up"
    ),
    "y = linear(y)": (
        "f:10:18: 'y' is used before it is bound\n  why: the same line binds the name\n"
        "  fix: give the operand or the result another name"
    ),
    "y = (skip | norm)(x)": (
        "f:10:12: 'skip' must come last\n  why: alternatives are tried in order, and skip always matches"
    ),
    "y = skip(x)": (
        "f:10:11: 'skip' has no other alternative\n  why: a step that is always skipped has no effect\n  fix: write (op | skip)(x)"
    ),
    "y = (norm | skip)(x)": "f:10:7: this pattern would match anything\n  why: every line of the pattern may be skipped",
    "y = (add | skip)(x, z)": "f:10:27: 'skip' takes one operand\n  why: skip passes one value on",
    "y = (norm | skip(a=1))(x)": "f:10:19: 'skip' has no attributes",
    "y = path(x, max=3)": f"f:10:11: 'path' lacks through={HOW_PATH}",
    "y = path(x)": f"f:10:11: 'path' lacks through= and max={HOW_PATH}",
    "y = path(x, through=conv, mx=3)": "f:10:33: 'path' has no argument 'mx'\n  fix: did you mean 'max'?",
    "y = path(x, through=conv, max=65)": ("f:10:37: the length of a path must be a whole number from 1 to 64, not 65"),
    "y = path(x, through=conv, max=2, min=3)": (
        "f:10:44: the length of a path must be a whole number from 0 to 2, not 3"
    ),
    "y = path(x, through=conv | skip, max=2)": (
        "f:10:34: 'skip' is not allowed here\n  why: at least one operation is needed"
    ),
    "y = path(x, through=conv | attention, max=2)": (
        "f:10:27: the named pattern 'attention' is used where a single operation is needed"
    ),
    "y = (path | norm)(x)": f"f:10:12: 'path' is not an alternative{HOW_PATH}",
    "y = linear(*x)": "f:10:18: '*' is not supported in a pattern\n  fix: name each operand",
    "y = linear(x, **k)": "f:10:21: '**' is not supported in a pattern\n  fix: write the attributes out",
    "y = linear()": "f:10:11: 'linear' is called without an operand\n  fix: write linear(x)",
    "y = (linear | conv)()": (
        "f:10:11: '(linear | conv)' is called without an operand\n  fix: write (linear | conv)(x)"
    ),
    "y = linear(x, a=1, a=2)": "f:10:26: the attribute 'a' is given twice",
    "y = (conv2d(groups=1) | linear)(x, groups=2)": "f:10:42: the attribute 'groups' of 'conv2d' is given twice",
    "y = (conv2d(x) | linear)(x)": (
        "f:10:12: an operand within the alternative 'conv2d'\n"
        "  fix: write (conv2d | …)(x): the operands follow the alternatives"
    ),
    "y = x.linear(1)": (
        "f:10:11: 'x.linear' is not an operation\n  fix: use the operation's canonical name, such as conv2d or relu"
    ),
    "y = (linear & conv)(x)": (
        "f:10:12: 'linear & conv' is not an operation\n  fix: write op(x), or (a | b | skip)(x)"
    ),
    "y = add(x, 3)": (
        "f:10:18: '3' is not an operand\n  fix: give a constant to the operation as an attribute: op(x, name=value)"
    ),
    "y = add(x, x[0])": "f:10:18: 'x[0]' is not an operand\n  fix: an operand is a name or a call: op(x)",
    "y = add(x, linear)": ("f:10:18: 'linear' is an operation, and a value is needed here\n  fix: call it: linear(x)"),
    "y = conv2d(x, groups=g)": f"f:10:28: 'g' is not a literal{LITERAL}\n  fix: put a word in quotes: 'g'",
    "y = conv2d(x, groups=1 + 1)": f"f:10:28: '1 + 1' is not a literal{LITERAL}",
    "y = conv2d(x, groups=1j)": f"f:10:28: '1j' is not a literal{LITERAL}",
    "y = conv2d(x, groups=1e999)": f"f:10:28: '1e999' is not a literal{LITERAL}",
    "y = x": (
        f"f:10:11: a step names the result of an operation\n  why: 'x' would be a second name for the same value{HOW}"
    ),
    "linear(x)": f"f:10:7: 'linear(x)' is not a step of a pattern{HOW}",
    "import os": f"f:10:7: 'import os' is not a step of a pattern{HOW}",
    "y: int = linear(x)": f"f:10:7: 'y: int = linear(x)' is not a step of a pattern{HOW}",
    "y = z = linear(x)": f"f:10:11: one step binds its result once{HOW}",
    "y.a = linear(x)": "f:10:7: 'y.a' is not a name to bind\n  fix: write y = op(x), or q, k, v = split(t)",
    "a, *b = split(x)": "f:10:10: '*b' is not a name to bind\n  fix: write y = op(x), or q, k, v = split(t)",
    "() = split(x)": f"f:10:7: a step binds at least one name{HOW}",
    "a, b = attention(x)": (
        "f:10:7: several names for one result\n  why: a path, skip and a named pattern have one result"
    ),
    "a = attention(x, z)": (
        "f:10:24: 'attention' takes one operand\n  why: a named pattern is called with its x alone"
    ),
    "a = attention(x, heads=3)": "f:10:24: the named pattern 'attention' has no attributes",
    "a = (attention(heads=3))(x)": "f:10:12: 'attention' has no attributes",
    "y = " + "norm(" * 40 + "x" + ")" * 40: (
        "f:10:166: nested deeper than 30 levels\n  fix: give the inner parts names"
    ),
    "\n".join(["x0 = norm(x)", *(f"x{i + 1} = norm(x{i})" for i in range(64))]): (
        "f:74:13: a pattern of more than 64 operations\n  fix: split it into named patterns"
    ),
    "y = linear(x, a=" + "-" * 7000 + "1)": f"f:10:7: this is not a pattern\n  why: it is nested too deeply{HOW}",
    "y = x" + ".a" * 3500: f"f:10:7: this is not a pattern\n  why: it is nested too deeply{HOW}",
    "y = " + "a" * 65 + "(x)": "f:10:11: a word of more than 64 characters",
    "y = linear(x)\n" * 1000: "f:10:7: a text of more than 8,000 characters",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:40])
def test_mistakes_stand_at_the_offending_word(text: str) -> None:
    with pytest.raises(UtcError) as caught:
        spelling(text)
    assert str(caught.value) == MISTAKES[text]


@pytest.mark.parametrize(
    "text", ["y = linear(x)\x00", "y = linear(x, a='\\d')", "y = linear(x, a=1if 1 else 2)", "\ud800"]
)
def test_what_python_itself_warns_of_or_refuses(text: str) -> None:
    with pytest.raises(UtcError, match=r"this is not a pattern|is not a literal"):
        spelling(text)

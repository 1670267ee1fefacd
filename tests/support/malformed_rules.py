"""Rule files that are wrong, each with the place and a word of the one error that it must give.

In a text, `‸` stands before the character at which the error must point; it is taken out before the text is loaded.
Most cases are an edit of `BASE`, which is right.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

CARET = "‸"

BASE = """\
version: 1
name: t
cite: a paper
description: what it is for
vars: {dim: 16, groups: 1}
patterns:
  mlp: |
    n = (norm | skip)(x)
    h = linear(n)
    a = activation(h)
    y = linear(a)
tuners:
  u: {kind: adapter, dim: $dim, activation: gelu, scale: channel}
rules:
  - name: one
    match: mlp
    where:
      - h.channels >= 2 * x.channels
      - y.shape == x.shape
    inside: {module: "blocks.**"}
    not_inside: [{class: Head}]
    except: head
    select: {first: 2}
    insert: {parallel: n -> y, tuner: u}
    expect: {exactly: 2, optional: false}
  - name: two
    match: {op: conv2d(groups=$groups)}
    insert: {weight: h, all_uses: true, tuner: {kind: lora, r: 4, alpha: 8}}
train: ["pattern:head"]
tests:
  - {model: "timm:resnet18", sites: {one: 2, two: 20}, vars: {dim: 4}}
"""


@dataclass(frozen=True)
class Malformed:
    """A rule file that is wrong.

    Attributes:
        name: of the case.
        content: the file.
        place: `line:column` of the error.
        word: a piece of its message.
    """

    name: str
    content: bytes
    place: str
    word: str


def whole(name: str, text: str, word: str) -> Malformed:
    """A case whose whole text is given."""
    assert text.count(CARET) == 1, text
    index = text.index(CARET)
    place = f"{text.count(chr(10), 0, index) + 1}:{index - text.rfind(chr(10), 0, index)}"
    return Malformed(name, text.replace(CARET, "").encode(), place, word)


def edit(old: str, new: str, word: str, name: str = "") -> Malformed:
    """A case that has `new` instead of `old`, which stands in `BASE` once (and not as the end of a longer word)."""
    place = re.compile(rf"(?<!\w){re.escape(old)}")
    text, count = place.subn(lambda _: new, BASE)
    assert count == 1, old
    return whole(name or f"{old!r:.40} to {new!r:.60}", text, word)


VALUES = {
    "text": "word",
    "number": "7",
    "real": "1.5",
    "list": "[a]",
    "mapping": "{a: 1}",
    "boolean": "true",
    "nothing": "~",
}
TYPES = (  # what stands in BASE, the types that its key takes, and what is said of the others
    ("version: 1", "", "'version' must be 1"),
    ("name: t\n", "text", "'name' must be a text"),
    ("cite: a paper", "text nothing", "'cite' must be a text"),
    ("description: what it is for", "text nothing", "'description' must be a text"),
    ("vars: {dim: 16, groups: 1}", "mapping", "'vars' must be a mapping"),
    ("match: mlp", "text mapping", "'match' must be a text or a mapping"),
    ('inside: {module: "blocks.**"}', "text mapping list", "'inside' must be a list"),
    ('module: "blocks.**"', "text nothing", "'module' must be a text"),
    ("class: Head", "text nothing", "'class' must be a text"),
    ("except: head", "text mapping list", "'except' must be a list"),
    ("select: {first: 2}", "mapping nothing", "'select' must be a mapping"),
    ("first: 2", "number nothing", "'first' must be a whole number"),
    ("insert: {parallel: n -> y, tuner: u}", "mapping", "'insert' must be a mapping"),
    ("parallel: n -> y", "text nothing", "'parallel' must be a text"),
    ("tuner: u", "text mapping", "'tuner' must be a text or a mapping"),
    ("expect: {exactly: 2, optional: false}", "mapping nothing", "'expect' must be a mapping"),
    ("exactly: 2", "number nothing", "'exactly' must be a whole number"),
    ("optional: false", "boolean", "'optional' must be true or false"),
    ("all_uses: true", "boolean", "'all_uses' must be true or false"),
    ('train: ["pattern:head"]', "list", "'train' must be a list"),
    ('model: "timm:resnet18"', "text", "'model' must be a text"),
    ("sites: {one: 2, two: 20}", "mapping", "'sites' must be a mapping"),
    ("r: 4", "number", "'r' must be a whole number"),
    ("alpha: 8", "number real", "'alpha' must be a number"),
    ("scale: channel", "", "'scale' must be 'none', 'scalar', 'channel' or 'input'"),
    ("activation: gelu", "text", "'activation' must be a text"),
    ("kind: adapter", "", "unknown tuner kind"),
)
MISSPELT = (  # what stands in BASE and begins with a key
    *("version: 1", "cite: a", "description: w", "patterns:\n", "tuners:\n", "rules:\n", "train: ", "tests:\n"),
    *("match: mlp", "where:\n", "inside: ", "not_inside: ", "except: ", "select: ", "insert: {parallel", "expect: "),
    *("module: ", "class: ", "first: ", "exactly: ", "optional: ", "op: ", "parallel: ", "weight: ", "all_uses: "),
    *("tuner: u", "activation: ", "scale: ", "alpha: ", "model: ", "sites: ", "vars: {dim: 4", "dim: $dim"),
)


def wrong_types() -> Iterator[Malformed]:
    """Keys of every mapping, with values of every type that they do not take."""
    for old, takes, word in TYPES:
        key = old.partition(":")[0]
        for kind, value in VALUES.items():
            if kind not in takes.split():
                new = f"{key}: {CARET}{value}" + "\n" * old.endswith("\n")
                yield edit(old, new, word, f"{key}: {value}")
    for key, wanted in {"patterns": "a mapping", "tuners": "a mapping", "rules": "a list", "tests": "a list"}.items():
        for kind in ("text", "number", "boolean", "nothing", "list" if wanted == "a mapping" else "mapping"):
            text = f"version: 1\nname: t\n{key}: {CARET}{VALUES[kind]}\n"
            yield whole(f"{key}: {VALUES[kind]}", text, f"'{key}' must be {wanted}")


def misspelt_keys() -> Iterator[Malformed]:
    """Keys of every mapping without their last letter."""
    for old in MISSPELT:
        key = old.partition(":")[0]
        wrong = key[:-1]
        yield edit(old, f"{CARET}{wrong}{old.removeprefix(key)}", f"unknown key '{wrong}'", f"misspelt {key}")


def patterns() -> Iterator[Malformed]:
    """Pattern text that is wrong, in a block of the file's own patterns."""
    for text, word in PATTERNS.items():
        lines = "".join(f"    {line}\n" for line in text.split("\n"))
        yield edit(_MLP, lines, word, f"pattern {text!r:.60}")


def comparisons() -> Iterator[Malformed]:
    """Lines of `where:` that are no comparisons."""
    for text, word in COMPARISONS.items():
        yield edit("- y.shape == x.shape", f"- {text}", word, f"where {text:.60}")


_WHERE = BASE[BASE.index("where:") : BASE.index("    inside:")]
_MLP = BASE[BASE.index("    n = (norm") : BASE.index("tuners:")]

PATTERNS = {
    "y = ‸linaer(x)": "unknown operation 'linaer'",
    "y = ‸torch.nn.Linear(x)": "is not an operation",
    "y = ‸__import__(x)": "unknown operation '__import__'",
    "y = ‸eval(x)": "unknown operation 'eval'",
    "y = (‸lambda: x)(x)": "is not an operation",
    "y = linear(‸[x for x in x])": "is not an operand",
    "y = linear((‸lambda: x))": "is not an operand",
    "y = linear(‸x.y)": "is not an operand",
    "y = linear(‸x[0])": "is not an operand",
    "y = linear(‸x + x)": "is not an operand",
    "y = linear(‸3)": "give a constant to the operation as an attribute",
    "y = linear(‸-3)": "is not an operand",
    "y = linear(‸f'{x}')": "is not an operand",
    "y = linear((‸z := x))": "is not an operand",
    "y = linear(‸*x)": "'*' is not supported",
    "y = linear(x, ‸**x)": "'**' is not supported",
    "y = linear(‸linear)": "is an operation, and a value is needed here",
    "y = conv2d(x, groups=‸g)": "is not a literal",
    "y = conv2d(x, groups=‸1 + 1)": "is not a literal",
    "y = conv2d(x, groups=‸{1: 2})": "is not a literal",
    "y = conv2d(x, groups=‸1e999)": "is not a literal",
    "y = conv2d(x, groups=‸b'1')": "is not a literal",
    "y = conv2d(x, groups=‸...)": "is not a literal",
    "y = conv2d(x, groups=‸open('f'))": "is not a literal",
    "y = conv2d(groups=1, ‸groups=2)(x)": "the attribute 'groups' is given twice",
    "y = conv2d(groups=1)(x, ‸groups=2)": "is given twice",
    "y = ‸linear()": "is called without an operand",
    "y = (linear | ‸skip | norm)(x)": "'skip' must come last",
    "y = ‸skip(x)": "'skip' has no other alternative",
    "‸y = (norm | skip)(x)": "would match anything",
    "y = (linear | skip)(x, ‸x)": "takes one operand",
    "y = (‸linear & norm)(x)": "is not an operation",
    "y = (linear | ‸norm.x)(x)": "is not an operation",
    "y = (linear | ‸norm(x))(x)": "an operand within the alternative",
    "y = ‸path(x)": "'path' lacks through= and max=",
    "y = ‸path(x, through=norm)": "'path' lacks max=",
    "y = path(x, through=norm, max=‸0)": "a whole number from 1 to 64",
    "y = path(x, through=norm, max=‸65)": "a whole number from 1 to 64",
    "y = path(x, through=norm, max=‸1.5)": "a whole number from 1 to 64",
    "y = path(x, through=‸skip, max=3)": "'skip' is not allowed here",
    "y = path(x, through=‸ffn, max=3)": "the named pattern 'ffn' is used where a single operation is needed",
    "y = path(x, ‸thru=norm, max=3)": "did you mean 'through'?",
    "y = (linear | ‸path)(x)": "'path' is not an alternative",
    "a = linear(x)\n‸a = norm(a)\ny = linear(a)": "'a' is bound twice",
    "y = linear(‸a)\na = norm(x)": "is used before it is bound",
    "y = linear(‸y)": "is used before it is bound",
    "‸a = linear(x)\ny = norm(x)": "the last line never reaches 'a'",
    "‸linear(x)": "is not a step of a pattern",
    "‸import os": "is not a step of a pattern",
    "‸from os import *": "is not a step of a pattern",
    "‸def f(): pass": "is not a step of a pattern",
    "‸class A: pass": "is not a step of a pattern",
    "‸for y in x: pass": "is not a step of a pattern",
    "‸with x: pass": "is not a step of a pattern",
    "‸y += linear(x)": "is not a step of a pattern",
    "‸y: int = linear(x)": "is not a step of a pattern",
    "‸global y": "is not a step of a pattern",
    "‸del x": "is not a step of a pattern",
    "a = ‸y = linear(x)": "one step binds its result once",
    "‸x.y = linear(x)": "is not a name to bind",
    "‸[y, z] = split(x)": "is not a name to bind",
    "y, ‸*z = split(x)": "is not a name to bind",
    "‸() = split(x)": "a step binds at least one name",
    "y = ‸x": "a step names the result of an operation",
    "‸y, z = ffn(x)": "several names for one result",
    "y = ffn(x, ‸x)": "'ffn' takes one operand",
    "y = ffn(x, ‸k=1)": "the named pattern 'ffn' has no attributes",
    "y = linear‸(": "this is not a pattern",
    "y = linear‸(x\nz = 3": "this is not a pattern",
    "y ‸linear(x)": "this is not a pattern",
    "a = linear(x)\n ‸ y = norm(a)": "unexpected indent",
    f"y = {'norm(' * 31}‸norm(x{')' * 32}": "nested deeper than 30 levels",
    f"y = norm({'(' * 199}‸{'(' * 4801}": "this is not a pattern",
    f"y = linear({'norm(x), ' * 63}‸norm(x))": "a pattern of more than 64 operations",
    f"y = linear(‸{'x' * 65})": "a word of more than 64 characters",
    f"‸y = linear({'x, ' * 2700}x)": "a text of more than 8,000 characters",
    "‸# nothing but a comment": "an empty pattern",
}
COMPARISONS = {
    "‸__import__('os').system('ls') == 0": "is not supported in where:",
    "‸open('/etc/passwd') == 1": "is not supported in where:",
    "x.‸__class__ == 1": "a capture has no attribute '__class__'",
    "x.‸shapes == y.shape": "did you mean 'shape'?",
    "‸x.shape[0] == 3": "is not supported in where:",
    "‸x.shape.real == 3": "one attribute too deep",
    "‸x.op.a.b == 3": "one attribute too deep",
    "‸x.op == 3": "the operation 'x.op' itself cannot be compared",
    "‸x == 3": "the capture 'x' itself cannot be compared",
    "‸z.rank == 3": "the match offers no capture 'z'",
    "x.rank == ‸three": "is neither a number nor an attribute",
    "‸x.rank": "is not a comparison",
    "‸x.rank == 3 and y.rank == 3": "on its own line",
    "‸not x.rank": "on its own line",
    "‸x.rank is 3": "'is' does not compare values",
    "‸x.dtype is y.dtype": "use == or !=",
    "‸1 < 2": "is the same everywhere",
    "x.rank in ‸3": "nothing can be in 3",
    "x.rank == ‸y.rank / 2": "arithmetic that is not supported",
    "x.rank == ‸2 ** 99999": "arithmetic that is not supported",
    "x.rank == ‸2 @ 3": "arithmetic that is not supported",
    "x.rank == (‸lambda :3)": "is not supported in where:",
    "x.rank == ‸max(1, 2)": "is not supported in where:",
    "x.rank == ‸[y for y in x]": "is not supported in where:",
    "x.rank == ‸f'{x}'": "is not supported in where:",
    "x.rank == (3, ‸y)": "is not a literal",
    "x.rank == (‸y := 3)": "is not supported in where:",
    "x.rank == ‸1e999": "is not a literal",
    "x.rank == ‸2j": "is not a literal",
    "x.rank == ‸yield": "this is not a comparison",
    "x.rank ‸= 3": "this is not a comparison",
    "‸x.rank ==": "this is not a comparison",
    "‸import os": "this is not a comparison",
    "‸''": "this is not a comparison",
    f"x.rank == ‸{'-' * 200}1": "is not supported in where:",
    f"x.rank == ‸{'1 + ' * 40}1": "nested deeper than 30 levels",
}

EDITS = (
    # keys: twice, missing, odd
    edit("cite: a paper", "‸name: t", "the key 'name' is there twice"),
    edit("version: 1", "version: 1\n‸version: 1", "the key 'version' is there twice"),
    edit("dim: 16", "dim: 16, ‸dim: 16", "the key 'dim' is there twice"),
    edit("scale: channel", "scale: channel, ‸scale: channel", "the key 'scale' is there twice"),
    edit("match: mlp", "match: mlp\n    ‸match: ffn", "the key 'match' is there twice"),
    edit("one: 2,", "one: 2, ‸one: 2,", "the key 'one' is there twice"),
    edit("version: 1\n", "‸", "the rule file lacks the key 'version'"),
    edit("version: 1\nname: t\n", "‸version: 1\n", "the rule file lacks the key 'name'"),
    edit("name: one\n    match: mlp\n", "‸match: mlp\n", "an item of 'rules' lacks the key 'name'"),
    edit("name: one\n    match: mlp\n", "‸name: one\n", "lacks the key 'match'"),
    edit("{parallel: n -> y, tuner: u}", "‸{parallel: n -> y}", "'insert' lacks the key 'tuner'"),
    edit('{model: "timm:resnet18", ', "‸{", "an item of 'tests' lacks the key 'model'"),
    edit("{kind: adapter, dim", "‸{dim", "a tuner lacks its kind"),
    edit("cite: a paper", "‸1: a paper", "the key '1' is not a text"),
    edit("cite: a paper", "‸true: a paper", "the key 'true' is not a text"),
    edit("cite: a paper", "‸~: a paper", "the key '~' is not a text"),
    edit("cite: a paper", "? ‸[cite]\n: a paper", "a key must be one word"),
    edit("cite: a paper", "? ‸{cite: 1}\n: a paper", "a key must be one word"),
    edit("cite: a paper", f"‸{'k' * 200}: a paper", "a key of more than 100 characters"),
    # YAML 1.1 surprises
    edit("optional: false", "optional: ‸off", "it is the text 'off'"),
    edit("optional: false", "optional: ‸no", "it is the text 'no'"),
    edit("optional: false", "optional: ‸n", "it is the text 'n'"),
    edit("all_uses: true", "all_uses: ‸yes", "it is the text 'yes'"),
    edit("all_uses: true", "all_uses: ‸On", "it is the text 'On'"),
    edit("r: 4", "r: ‸1_000", "it is the text '1_000'"),
    edit("r: 4", "r: ‸0b11", "it is the text '0b11'"),
    edit("r: 4", "r: ‸1:30", "it is the text '1:30'"),
    edit("r: 4", "r: ‸1e-4", "'r' must be a whole number"),
    edit("r: 4", "r: ‸'010'", "it is the text '010'"),
    edit("version: 1", "version: ‸1.0", "'version' must be 1"),
    edit("version: 1", "version: ‸0o2", "it is the number 2"),
    edit("name: t\n", "name: ‸2024-01-01T00:00:00Z\n", "'name' must be a name"),
    edit("first: 2", "first: ‸=", "it is the text '='"),
    # numbers
    edit("r: 4", "r: ‸0", "'r' must be at least 1"),
    edit("r: 4", "r: ‸-0x1", "it is the text '-0x1'"),
    edit("r: 4", f"r: ‸{'9' * 65}", "a number of 65 digits"),
    edit("r: 4", f"r: ‸{'9' * 4000}", "a number of 4,000 digits", "a number of 4,000 digits"),
    edit("alpha: 8", "alpha: ‸.nan", "'alpha' must be"),
    edit("alpha: 8", "alpha: ‸.inf", "'alpha' must be"),
    edit("alpha: 8", "alpha: ‸-.Inf", "'alpha' must be"),
    edit("alpha: 8", "alpha: ‸1e999", "'alpha' must be"),
    edit("alpha: 8", "alpha: ‸0", "'alpha' must be greater than 0"),
    edit("dim: 16", "dim: ‸.nan", "'dim' must be a finite number"),
    edit("dim: 16", "dim: ‸[1, [2]]", "the variable 'dim' has no plain value"),
    edit("dim: 16", "dim: ‸$groups", "the variable 'dim' refers to another"),
    edit("first: 2", "first: ‸-1", "'first' must be at least 1"),
    edit("first: 2", "indices: ‸[]", "'indices' must be a list of 1 or more"),
    edit("first: 2", "‸indices: [1, 0x1]", "select names an index twice"),
    edit("first: 2", "every: ‸0", "'every' must be at least 1"),
    edit("first: 2", "first: 2, ‸indices: [1]", "select has first and indices at once"),
    edit("exactly: 2,", "exactly: 2, ‸at_least: 1,", "expect has exactly and at_least at once"),
    edit("exactly: 2,", "at_most: ‸0,", "'at_most' must be at least 1"),
    edit("one: 2,", "one: ‸-2,", "'one' must be at least 0"),
    # names
    edit("name: t\n", "name: ‸a b\n", "'name' must be a name"),
    edit("name: t\n", "name: ‸../t\n", "'name' must be a name"),
    edit("name: t\n", "name: ‸''\n", "'name' must be a name"),
    edit("name: t\n", f"name: ‸{'t' * 65}\n", "at most 64"),
    edit("name: one", "name: ‸ünï", "'name' must be a name"),
    edit("name: two", "name: ‸one", "the rule name 'one' is taken"),
    edit("  u: {kind", "  ‸a b: {kind", "the key 'a b' must be a name"),
    edit("  mlp: |", "  ‸m-p: |", "the key 'm-p' must be a name"),
    edit("  mlp: |", "  ‸ffn: |", "the name 'ffn' is taken"),
    edit("  mlp: |", "  ‸linear: |", "the name 'linear' is taken"),
    edit("  mlp: |", "  ‸skip: |", "the name 'skip' is taken"),
    edit("{dim: 16,", "{dim: 16, ‸1a: 2,", "the key '1a' must be a name"),
    edit("match: mlp", "match: ‸mpl", "unknown pattern 'mpl'"),
    edit("match: mlp", "match: ‸conv2d", "write match: {op: conv2d}"),
    edit("match: mlp", f"match: ‸{'m' * 65}", "a word of more than 64 characters"),
    edit("match: mlp", "match: ‸{}", "an empty match"),
    edit("match: mlp", "match: ‸{op: relu, class: A}", "a match by module or class and op at once"),
    edit("match: mlp", 'match: {op: "‸ffn"}', "the named pattern 'ffn' is used where a single operation is needed"),
    edit("match: mlp", 'match: {op: "relu | ‸os"}', "unknown operation 'os'"),
    edit("match: mlp", 'match: {parameter: ‸"a b"}', "it has a space in it"),
    edit("except: head", "except: ‸haed", "did you mean 'head'?"),
    edit("except: head", "except: [head, ‸linear]", "unknown pattern 'linear'"),
    edit("tuner: u", "tuner: ‸uu", "unknown tuner 'uu'"),
    edit("tuner: u", "tuner: ‸lora", "lora is a kind"),
    edit("kind: lora", "kind: ‸Lora", "did you mean 'lora'?"),
    edit("kind: lora", "kind: ‸torch.nn.Linear", "unknown tuner kind 'torch.nn.Linear'"),
    edit("kind: lora", "kind: ‸os:system", "unknown tuner kind 'os:system'"),
    edit("activation: gelu", "activation: ‸glu", "unknown activation 'glu'"),
    edit("activation: gelu", "activation: ‸same as", "unknown activation 'same as'"),
    edit("tuner: u", "tuner: {kind: adapter, activation: same as ‸z}", "offers no capture 'z'"),
    edit("scale: channel", "scale: ‸channels", "did you mean 'channel'?"),
    edit("one: 2,", "‸three: 2,", "unknown rule 'three'"),
    edit("vars: {dim: 4}", "vars: {‸dmi: 4}", "unknown variable 'dmi'"),
    edit("vars: {dim: 4}", "vars: {‸dim: {}}", "the variable 'dim' has no plain value"),
    edit('["pattern:head"]', '[‸"head"]', "is no line of `train:`"),
    edit('["pattern:head"]', '["pattern:‸heads"]', "unknown pattern 'heads'"),
    edit('["pattern:head"]', '["module:‸a..b"]', "is not a glob"),
    edit('["pattern:head"]', '[‸"code:head"]', "is no line of `train:`"),
    edit('["pattern:head"]', "[‸3]", "an item of 'train' must be a text"),
    # variables
    edit("dim: $dim", "dim: ‸$dmi", "unknown variable '$dmi'"),
    edit("groups=$groups", "groups=‸$group", "unknown variable '$group'"),
    edit("{dim: 16,", "{dim: 16, ‸more: 1,", "the variable 'more' is never used"),
    edit("tuners:\n", "tuners:\n  v: ‸{kind: lora}\n", "the tuner 'v' is never used"),
    edit('"blocks.**"', '"blocks.‸$dim"', "'$dim' within a text"),
    edit("- y.shape == x.shape", "- y.path == ‸'$dim'", "a variable within quotes"),
    edit("cite: a paper", "include: ‸$dim.yaml", "a path has no variables"),
    # insert
    edit("n -> y", "‸n", "names no source and target"),
    edit("n -> y", "‸n -> y -> n", "names no source and target"),
    edit("n -> y", "n -> ‸z", "the match offers no capture 'z'"),
    edit("n -> y", "‸q -> y", "the match offers no capture 'q'"),
    edit("weight: h,", "weight: ‸h h,", "is not the name of a capture"),
    edit("weight: h,", "weight: h, ‸for: x,", "'for' cannot be combined with weight"),
    edit(
        "weight: h, all_uses: true", "sequential: h, ‸all_uses: true", "'all_uses' cannot be combined with sequential"
    ),
    # globs
    edit('"blocks.**"', "‸''", "it is empty"),
    edit(_WHERE, "where: [y.op.stride in ‸(1, 2)]\n", "quote a comparison that contains a comma"),
    edit('"blocks.**"', '‸"blocks**"', "'**' matches whole parts"),
    edit('"blocks.**"', '‸".blocks"', "it begins or ends with a dot"),
    edit('"blocks.**"', '‸"blocks.[0-9]"', "only '*' and '**' are wildcards"),
    edit("class: Head", 'class: ‸"He\\nad"', "it has a space in it"),
    # YAML's own
    edit("cite: a paper", "cite: ‸!!python/object/apply:os.system [ls]", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!python/name:os.system", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!python/module:os", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!python/tuple [1]", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!binary aGk=", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!set {a}", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!!str a", "tags are not supported"),
    edit("cite: a paper", "cite: ‸! a", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!<tag:a,2000:b> c", "tags are not supported"),
    edit("cite: a paper", "cite: ‸!a!b c", "found undefined tag handle"),
    edit("cite: a paper", "‸<<: {cite: a}", "merge keys (<<) are not supported"),
    edit("vars: {dim: 16, groups: 1}", "vars: &v {dim: 16}\n‸<<: *v", "merge keys (<<) are not supported"),
    edit("cite: a paper", "cite: ‸*a", "the alias *a has no anchor &a before it"),
    edit("cite: a paper", "cite: &a b\ndescription: ‸&a c", "the anchor &a is defined twice"),
    edit("vars: {dim: 16,", "vars: &a {b: ‸*a, dim: 16,", "the anchor &a contains itself"),
    edit("cite: a paper", "cite: ‸@home", "cannot start any token"),
    edit("cite: a paper", "cite: ‸`ls`", "cannot start any token"),
    edit("cite: a paper", "cite: ‸%a", "cannot start any token"),
    edit("cite: a paper", "cite: a‸: paper", "mapping values are not allowed here"),
    edit("cite: a paper\n", "cite a paper\n‸", "could not find expected ':'"),
    edit("vars: {dim: 4}}\n", "vars: {dim: '4}}\n‸", "found unexpected end of stream"),
    edit("cite: a paper", 'cite: "\\‸q"', "found unknown escape character 'q'"),
    edit("cite: a paper", 'cite: "‸\\UFFFFFFFF"', "a number in it is out of range"),
    edit("cite: a paper", 'cite: ‸"\\uD800"', "half of a surrogate pair"),
    edit("    match: mlp", "‸\tmatch: mlp", "a tab in the indentation"),
    edit("    match: mlp", "  ‸\t  match: mlp", "a tab in the indentation"),
    edit("    match: mlp", "   ‸match: mlp", "this is not YAML"),
    edit("    match: mlp", "     match‸: mlp", "mapping values are not allowed here"),
    edit("vars: {dim: 16, groups: 1}", "vars: {dim: 16, groups: 1\nmore‸: 1", "this is not YAML"),
    edit("train: [", "train: [‸}, ", "this is not YAML"),
    edit("train: [", "train: [a‸}, ", "this is not YAML"),
    edit("cite: a paper", "cite: a\n...\n‸more: 1", "this is not YAML"),
    edit("cite: a paper", "cite: a\n‸--- \nmore: 1", "a second document"),
    edit("cite: a paper", "cite: a ‸\x00 paper", "the character U+0000 is not allowed"),
    edit("cite: a paper", "cite: a ‸\x1b[31m paper", "the character U+001B is not allowed"),
    edit("cite: a paper", "cite: a ‸\ufffe paper", "the character U+FFFE is not allowed"),
    edit("cite: a paper", "cite: a ‸\x85 paper", "the character U+0085 is not allowed"),
    edit("cite: a paper", "cite: a ‸\u2028 paper", "the character U+2028 is not allowed"),
)

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join(['*' + before] * 10)}]\n" for before, here in zip("abcdefg", "bcdefgh", strict=True)
)
_LAUGHS = _BOMB.replace("d: &d [" + "*c," * 7, "d: &d [" + "*c," * 7 + "‸")
WHOLE = (
    whole("nothing", "‸", "the rule file is empty"),
    whole("blank lines", "‸\n\n\n", "the rule file is empty"),
    whole("a comment", "‸# version: 1\n", "the rule file is empty"),
    whole("a marker", "---\n‸", "a rule file is a mapping"),
    whole("a word", "‸version\n", "a rule file is a mapping"),
    whole("a number", "‸42\n", "a rule file is a mapping"),
    whole("a list", "‸- version: 1\n", "a rule file is a mapping"),
    whole("an empty mapping", "‸{}\n", "lacks the key 'version'"),
    whole(
        "JSON of something else",
        '{"version": 1, ‸"models": []}',
        "unknown key 'models'",
    ),
    whole("YAML 1.1", "‸%YAML 1.1\n---\nversion: 1\n", "rule files are YAML 1.2, and this file is 1.1"),
    whole("YAML 2.0", "‸%YAML 2.0\n---\nversion: 1\n", "found incompatible YAML document"),
    whole("Python", "‸import os\nos.system('ls')\n", "a rule file is a mapping"),
    whole("a shell script", "#!/bin/sh\n‸rm -rf /\n", "a rule file is a mapping"),
    whole("HTML", "‸<!DOCTYPE html>\n<html></html>\n", "a rule file is a mapping"),
    whole("an ini file", "[rules]\n‸name = a\n", "this is not YAML"),
    whole("a bomb of aliases", _LAUGHS, "more than 10,000 values"),
    whole("many aliases", f"a: &a b\nc: [{'*a, ' * 100}‸*a]\n", "more than 100 aliases"),
    whole("deep brackets", f"version: {'[' * 49}‸{'[' * 4951}", "nested deeper than 50 levels"),
    whole("deep braces", f"version: {'{a: ' * 49}‸{'{a: ' * 4951}", "nested deeper than 50 levels"),
    whole("deep dashes", f"{'- ' * 50}‸{'- ' * 4950}a", "nested deeper than 50 levels"),
    whole(
        "deep blocks",
        "".join(f"{' ' * depth}{'‸' * (depth == 50)}a:\n" for depth in range(200)),
        "nested deeper than 50 levels",
    ),
    whole("brackets within a key", f"? ‸{'[' * 500}", "a key must be one word"),
    whole("many values", f"version: [{'1,' * 9997}‸1, 1, 1]", "more than 10,000 values"),
    whole("many keys", "".join(f"k{key}: {'‸' * (key == 4999)}1\n" for key in range(6000)), "more than 10,000 values"),
    whole("no line break at all", f"‸{'a' * 200_000}", "a rule file is a mapping"),
    whole("long unknown key", f"version: 1\n‸{'k' * 100}: 1\n", "unknown key"),
    whole("long tag", f"version: ‸!{'t' * 900} 1\n", "tags are not supported"),
    whole("long anchor", f"version: ‸*{'t' * 900}\n", "has no anchor"),
    whole("a rule file of a later version", "version: ‸2\nname: t\nrules: []\n", "'version' must be 1"),
    whole("no rules", "‸version: 1\nname: t\n", "lacks the key 'rules'"),
    whole("an empty list of rules", "version: 1\nname: t\nrules: ‸[]\n", "'rules' must be a list of 1 or more"),
    whole("a rule that is a list", "version: 1\nname: t\nrules: [‸[]]\n", "an item of 'rules' must be a mapping"),
    whole("a tuner that is a word", "version: 1\nname: t\ntuners: {u: ‸lora}\n", "'u' must be a mapping"),
    whole(
        "patterns in a circle",
        "version: 1\nname: t\npatterns:\n  ‸p: y = q(x)\n  q: y = linear(p(x))\nrules: []\n".replace(
            "rules: []\n", BASE[BASE.index("rules:") :]
        ),
        "p → q → p",
    ),
)
BYTES = (
    Malformed("10 MB", BASE.encode() + b"# more\n" * 1_500_000, "1:1", "the rule file is too large"),
    Malformed("10 MB of zeros", bytes(10_000_000), "1:1", "the rule file is too large"),
    Malformed("257 KiB", b"#" * (257 * 1024), "1:1", "the rule file is too large"),
    Malformed("zeros", bytes(1000), "1:1", "the character U+0000 is not allowed"),
    Malformed("UTF-16", BASE.encode("utf-16"), "1:1", "the rule file is not UTF-8 text"),
    Malformed("UTF-16 without a mark", BASE.encode("utf-16-le"), "1:2", "the character U+0000 is not allowed"),
    Malformed("UTF-32", codecs.BOM_UTF32_LE + BASE.encode("utf-32-le"), "1:1", "the rule file is not UTF-8 text"),
    Malformed(
        "Latin 1", BASE.replace("a paper", "à papér").encode("latin-1"), "3:7", "the rule file is not UTF-8 text"
    ),
    Malformed(
        "not UTF-8 after a Macintosh line end", b"version: 1\rname: \xff\r", "2:7", "the rule file is not UTF-8 text"
    ),
    Malformed("not UTF-8 after UTF-8", "cite: é ".encode() + b"\xe9\n", "1:9", "the rule file is not UTF-8 text"),
    Malformed("half a character", BASE.encode() + "é".encode()[:1], "32:1", "the rule file is not UTF-8 text"),
    Malformed("an overlong slash", b"cite: \xc0\xaf", "1:7", "the rule file is not UTF-8 text"),
    Malformed("a surrogate", b"version: 1\ncite: \xed\xa0\x80", "2:7", "the rule file is not UTF-8 text"),
    Malformed("a byte order mark", codecs.BOM_UTF8 + b"versoin: 1\n", "1:1", "did you mean 'version'?"),
    Malformed("Windows line ends", b"version: 1\r\nname: t\r\nrulse: []\r\n", "3:1", "did you mean 'rules'?"),
    Malformed("old Macintosh line ends", b"version: 1\rname: t\rrulse: []\r", "3:1", "did you mean 'rules'?"),
    Malformed("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "1:2", "the rule file is not UTF-8 text"),
    Malformed("a pickle", b"\x80\x04cos\nsystem\n(S'ls'\ntR.", "1:1", "the rule file is not UTF-8 text"),
    Malformed("safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "1:1", "the character U+0008 is not allowed"),
)
MALFORMED = (*wrong_types(), *misspelt_keys(), *patterns(), *comparisons(), *EDITS, *WHOLE, *BYTES)

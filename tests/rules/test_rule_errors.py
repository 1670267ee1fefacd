"""Every mistake in a rule file is one error: what, where, why, and how to mend it."""

from __future__ import annotations

import pytest

from utcompile.errors import UtcError
from utcompile.rules import RuleSet

HEAD = "version: 1\nname: t\n"
RULE = "rules:\n  - {name: a, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}\n"
ADAPTER = "{kind: adapter}"


def rule(extra: str = "", *, match: str = "{op: linear}", insert: str = "{weight: h, tuner: {kind: lora}}") -> str:
    """A file whose rule has `match` in line 5 from column 12, `insert` in line 6 from 13, and `extra` from line 7."""
    return f"{HEAD}rules:\n  - name: a\n    match: {match}\n    insert: {insert}\n{extra}"


def tuner(text: str) -> str:
    """The rule with a tuner in place, in line 6 from column 39."""
    return rule(insert=f"{{parallel: x -> h, tuner: {text}}}")


GLOB = "\n  fix: write a dotted path: * is one segment, ** any number"
FORMS = "\n  fix: give one of: parallel, sequential, weight, tokens, stream_tokens, chain"
INSERT_KEYS = "\n  fix: known: all_uses, chain, for, from, parallel, sequential, stream_tokens, tokens, tuner, weight"

MISTAKES = {
    # keys
    "misspelt key": (HEAD + "ruels: []\n", "3:1: unknown key 'ruels'\n  fix: did you mean 'rules'?"),
    "misspelt key of a rule": (
        rule("    wehre: [x.rank == 3]\n"),
        "7:5: unknown key 'wehre'\n  fix: did you mean 'where'?",
    ),
    "misspelt key of a scope": (
        rule("    inside: [{module: a}, {modul: b}]\n"),
        "7:28: unknown key 'modul'\n  fix: did you mean 'module'?",
    ),
    "duplicate key": (
        HEAD + "name: u\n" + RULE,
        "3:1: the key 'name' is there twice\n  why: line 2 has it too, and a mapping has each key once",
    ),
    "missing key": (
        HEAD,
        "1:1: the rule file lacks the key 'rules'\n  fix: add rules: …; or train: alone, for a probe",
    ),
    "missing key of a rule": (
        HEAD + "rules:\n  - {name: a, match: ffn}\n",
        "4:5: an item of 'rules' lacks the key 'insert'\n  fix: add insert: …",
    ),
    "missing tuner": (rule(insert="{weight: h}"), "6:13: 'insert' lacks the key 'tuner'\n  fix: add tuner: …"),
    "a form of no release": (
        rule(insert=f"{{widen: h, tuner: {ADAPTER}}}"),
        "6:14: unknown key 'widen'" + INSERT_KEYS,
    ),
    "tokens before a capture that is none": (
        rule(insert=f"{{tokens: [x, w], tuner: {ADAPTER}}}"),
        "6:26: the match offers no capture 'w'\n  fix: known: h, x",
    ),
    "a chain that leads nowhere": (
        rule(insert=f"{{chain: x, tuner: {ADAPTER}}}"),
        "6:21: 'x' names no source and target\n  fix: write chain: x -> y",
    ),
    "from without chain": (
        rule(insert=f"{{sequential: h, from: x, tuner: {ADAPTER}}}"),
        "6:29: 'from' cannot be combined with sequential\n  fix: use it with chain",
    ),
    "key like a tag within": (
        HEAD + "<ext>: 1\n" + RULE,
        "3:1: unknown key '<ext>'\n"
        "  fix: known: cite, description, folds, include, name, patterns, rules, tests, train, tuners, vars, version",
    ),
    "key that is a tag within": (
        rule("    <text>: 1\n"),
        "7:5: unknown key '<text>'\n"
        "  fix: known: except, expect, insert, inside, match, name, not_inside, on_refusal, select, where",
    ),
    # values
    "no mapping": ("- a\n- b\n", "1:1: a rule file is a mapping\n  fix: begin with version: 1, name: … and rules: …"),
    "another version": (
        "version: 2\nname: a\n" + RULE,
        "1:10: 'version' must be 1\n  why: it is the number 2",
    ),
    "version as text": (
        "version: '1'\nname: a\n" + RULE,
        "1:10: 'version' must be 1\n  why: it is the text '1'",
    ),
    "rule name": (
        HEAD + "rules:\n  - {name: a b, match: ffn, insert: {weight: h, tuner: u}}\n",
        "4:12: 'name' must be a name of at most 64 letters, digits, - and _\n  why: it is the text 'a b'",
    ),
    "rule name twice": (
        rule("  - {name: a, match: ffn, insert: {weight: h, tuner: {kind: lora}}}\n"),
        "7:12: the rule name 'a' is taken\n  why: the rule in line 4 has the name too\n  fix: choose another",
    ),
    "no rules": (HEAD + "rules: []\n", "3:8: 'rules' must be a list of 1 or more\n  why: it is a list of 0"),
    "where is no list": (
        rule("    where: x.rank == 3\n"),
        "7:12: 'where' must be a list\n  why: it is the text 'x.rank == 3'\n  fix: write where: ['x.rank == 3']",
    ),
    "an item of where": (
        rule("    where: [x.rank == 3, 4]\n"),
        "7:26: an item of 'where' must be a text\n  why: it is the number 4",
    ),
    "select twice": (
        rule("    select: {first: 1, last: 3}\n"),
        "7:24: select has first and last at once\n  fix: keep one of them",
    ),
    "select none": (rule("    select: {first: 0}\n"), "7:21: 'first' must be at least 1\n  why: it is the number 0"),
    "select an index twice": (rule("    select: {indices: [1, 1]}\n"), "7:14: select names an index twice"),
    "expect twice": (
        rule("    expect: {exactly: 1, at_most: 3}\n"),
        "7:26: expect has exactly and at_most at once\n  fix: keep one of them",
    ),
    "expect the impossible": (
        rule("    expect: {at_least: 4, at_most: 3}\n"),
        "7:27: no number is at least 4 and at most 3",
    ),
    "expect half a site": (
        rule("    expect: {at_least: 1.5}\n"),
        "7:24: 'at_least' must be a whole number\n  why: it is the number 1.5",
    ),
    "on is a word": (
        rule("    expect: {optional: on}\n"),
        "7:24: 'optional' must be true or false\n  why: it is the text 'on'",
    ),
    # globs and scopes
    "bad glob": (
        rule("    inside: {module: a..b}\n"),
        "7:22: 'a..b' is not a glob: a part between two dots is empty" + GLOB,
    ),
    "bad glob of a class": (
        rule("    not_inside: [{class: Blo**}]\n"),
        "7:26: 'Blo**' is not a glob: '**' matches whole parts between dots: write '**' alone, "
        "or one '*' within a part" + GLOB,
    ),
    "empty scope": (
        rule("    inside: {}\n"),
        "7:13: a scope names a module, a class, or both\n  fix: write {module: blocks.*} or {class: Block}",
    ),
    "no scope": (rule("    inside: 5\n"), "7:13: 'inside' must be a list\n  why: it is the number 5"),
    "unknown pattern in except": (
        rule("    except: [head, squeeze_excit]\n"),
        "7:20: unknown pattern 'squeeze_excit'\n  fix: did you mean 'squeeze_excite'?",
    ),
    # match
    "unknown pattern": (
        rule(match="atention"),
        "5:12: unknown pattern 'atention'\n  fix: did you mean 'attention'?",
    ),
    "an operation as a pattern": (
        rule(match="linear"),
        "5:12: unknown pattern 'linear'\n  fix: to match one operation, write match: {op: linear}",
    ),
    "unknown operation": (
        rule(match="{op: conv2d(groups=1) | lineer}"),
        "5:36: unknown operation 'lineer'\n  fix: did you mean 'linear'?",
    ),
    "a pattern as an operation": (
        rule(match="{op: attention}"),
        "5:17: the named pattern 'attention' is used where a single operation is needed",
    ),
    "two matches": (
        rule(match="{op: linear, class: A}"),
        "5:12: a match by module or class and op at once\n  fix: write {op: …}, {parameter: …}, "
        "or {module: …, class: …}",
    ),
    "empty match": (
        rule(match="{}"),
        "5:12: an empty match\n  fix: write {op: …}, {parameter: …}, or {module: …, class: …}",
    ),
    "match of another shape": (
        rule(match="[a]"),
        "5:12: 'match' must be a text or a mapping\n  why: it is a list of 1",
    ),
    "pattern text on one line": (
        rule(match="y = linear(nrom(x))"),
        "5:23: unknown operation 'nrom'\n  fix: did you mean 'norm'?",
    ),
    "pattern text in a block": (
        rule(match="|\n      n = norm(x)\n      n = linear(n)\n"),
        "7:7: 'n' is bound twice\n  why: line 6 binds the name too, and a name has one value\n"
        "  fix: give this value another name",
    ),
    "pattern in a list of spellings": (
        HEAD + "patterns:\n  p:\n    - y = linear(x)\n    - |\n      h = norm(x)\n      y = lineer(h)\n" + RULE,
        "8:11: unknown operation 'lineer'\n  fix: did you mean 'linear'?",
    ),
    # insert
    "two forms": (
        rule(insert=f"{{parallel: x -> h, weight: h, tuner: {ADAPTER}}}"),
        "6:32: insert has parallel and weight at once" + FORMS,
    ),
    "no form": (rule(insert=f"{{tuner: {ADAPTER}}}"), "6:13: insert has no form" + FORMS),
    "for without sequential": (
        rule(insert=f"{{parallel: x -> h, for: h, tuner: {ADAPTER}}}"),
        "6:32: 'for' cannot be combined with parallel\n  fix: use it with sequential",
    ),
    "all_uses without weight": (
        rule(insert=f"{{parallel: x -> h, all_uses: true, tuner: {ADAPTER}}}"),
        "6:32: 'all_uses' cannot be combined with parallel\n  fix: use it with weight",
    ),
    "no arrow": (
        rule(insert=f"{{parallel: x, tuner: {ADAPTER}}}"),
        "6:24: 'x' names no source and target\n  fix: write parallel: x -> y",
    ),
    "unbound capture": (
        rule(insert=f"{{parallel: x -> z, tuner: {ADAPTER}}}"),
        "6:29: the match offers no capture 'z'\n  fix: known: h, x",
    ),
    "capture of some spellings only": (
        HEAD
        + "patterns:\n  p: [y = linear(x), 'y = add(x, z)']\n"
        + rule(match="p", insert=f"{{sequential: z, tuner: {ADAPTER}}}")[len(HEAD) :],
        "8:26: the match offers no capture 'z'\n  why: not every spelling of the pattern binds it\n  fix: known: x, y",
    ),
    "two captures for one": (
        rule(insert="{weight: h x, tuner: {kind: lora}}"),
        "6:22: 'h x' is not the name of a capture\n  fix: write the name of one capture",
    ),
    "unbound capture in where": (
        rule("    where:\n      - h.rank == 3\n      - x.rank == z.rank\n"),
        "9:19: the match offers no capture 'z'\n  fix: known: h, x",
    ),
    # tuners
    "unknown kind": (tuner("{kind: adaptr}"), "6:46: unknown tuner kind 'adaptr'\n  fix: did you mean 'adapter'?"),
    "misspelt field": (tuner("{kind: adapter, dmi: 3}"), "6:55: unknown key 'dmi'\n  fix: did you mean 'dim'?"),
    "field of another type": (
        tuner("{kind: adapter, dim: ten}"),
        "6:60: 'dim' must be a whole number\n  why: it is the text 'ten'",
    ),
    "a number as text": (
        tuner("{kind: adapter, dim: '10'}"),
        "6:60: 'dim' must be a whole number\n  why: it is the text '10'",
    ),
    "field out of range": (
        tuner("{kind: adapter, dim: 0}"),
        "6:60: 'dim' must be at least 1\n  why: it is the number 0",
    ),
    "field that is on": (
        tuner("{kind: adapter, bias: on}"),
        "6:61: 'bias' must be true or false\n  why: it is the text 'on'",
    ),
    "a choice misspelt": (
        tuner("{kind: adapter, scale: chanel}"),
        "6:62: 'scale' must be 'none', 'scalar', 'channel' or 'input'\n  why: it is the text 'chanel'\n"
        "  fix: did you mean 'channel'?",
    ),
    "an unknown activation": (
        tuner("{kind: adapter, activation: relo}"),
        "6:67: unknown activation 'relo'\n  why: 'activation' is the text 'relo'\n  fix: did you mean 'relu'?",
    ),
    "same as no capture": (
        tuner("{kind: adapter, activation: same as a}"),
        "6:75: the match offers no capture 'a'\n  fix: known: h, x",
    ),
    "unknown tuner": (
        HEAD + "tuners: {up: {kind: lora}}\n" + rule(insert="{weight: h, tuner: u}")[len(HEAD) :],
        "7:32: unknown tuner 'u'\n  fix: did you mean 'up'?",
    ),
    "a kind as a tuner": (
        rule(insert="{weight: h, tuner: lora}"),
        "6:32: unknown tuner 'lora'\n  fix: lora is a kind: write tuner: {kind: lora}, or name it under tuners:",
    ),
    "a tuner of another shape": (
        rule(insert="{weight: h, tuner: 5}"),
        "6:32: 'tuner' must be a text or a mapping\n  why: it is the number 5",
    ),
    "unused tuner": (
        HEAD + "tuners: {u: {kind: lora}}\n" + RULE,
        "3:13: the tuner 'u' is never used\n  fix: write tuner: u in a rule, or remove it",
    ),
    # train and tests
    "train what": (
        rule("train: [head]\n"),
        "7:9: 'head' is no line of `train:`\n  fix: write pattern:head, module:head.*, parameter:**.bias or untied:lm_head.weight",
    ),
    "train an unknown pattern": (
        rule("train: ['pattern:haed']\n"),
        "7:18: unknown pattern 'haed'\n  fix: did you mean 'head'?",
    ),
    "train a bad glob": (
        rule("train: ['module:a..b']\n"),
        "7:17: 'a..b' is not a glob: a part between two dots is empty" + GLOB,
    ),
    "test of an unknown rule": (
        rule("tests: [{model: 'timm:x', sites: {b: 3}}]\n"),
        "7:35: unknown rule 'b'\n  fix: known: a",
    ),
    "test of a negative number": (
        rule("tests: [{model: 'timm:x', sites: {a: -3}}]\n"),
        "7:38: 'a' must be at least 0\n  why: it is the number -3",
    ),
    "test with an unknown variable": (
        rule("tests: [{model: 'timm:x', sites: {a: 3}, vars: {d: 3}}]\n"),
        "7:49: unknown variable 'd'\n  fix: there are none",
    ),
    # named patterns
    "name of a built-in pattern": (
        HEAD + "patterns:\n  ffn: y = linear(x)\n" + RULE,
        "4:3: the name 'ffn' is taken\n  why: it is a built-in pattern\n  fix: choose another",
    ),
    "name of an operation": (
        HEAD + "patterns:\n  gelu: y = linear(x)\n" + RULE,
        "4:3: the name 'gelu' is taken\n  why: it is an operation or a word of the language\n  fix: choose another",
    ),
    "name that cannot be called": (
        HEAD + "patterns:\n  a-b: y = linear(x)\n" + RULE,
        "4:3: the key 'a-b' must be a name of at most 64 letters, digits and _\n  why: it is the text 'a-b'",
    ),
    "patterns in a circle": (
        HEAD + "patterns:\n  p: y = q(x)\n  q: y = linear(p(x))\n" + RULE,
        "4:3: the pattern 'p' calls itself\n  why: p → q → p",
    ),
    "a pattern that cannot be called": (
        HEAD + "patterns:\n  p: z = linear(x)\n  q: y = p(x)\n" + RULE,
        "5:6: the pattern 'p' cannot be called\n"
        "  why: it binds no y; the operand of a call becomes x, and its result is y",
    ),
    # variables
    "unknown variable": (
        rule("    select: {first: $n}\n"),
        "7:21: unknown variable '$n'\n  fix: declare it: vars: {n: …}",
    ),
    "misspelt variable": (
        HEAD + "vars: {groups: 1}\n" + rule(match="y = conv2d(x, groups=$group)")[len(HEAD) :],
        "6:33: unknown variable '$group'\n  fix: did you mean 'groups'?",
    ),
    "unused variable": (
        HEAD + "vars: {n: 1}\n" + RULE,
        "3:8: the variable 'n' is never used\n  fix: write $n where it belongs, or remove it",
    ),
    "variable within a text": (
        HEAD + "vars: {n: 1}\n" + rule("    inside: {module: a.$n}\n")[len(HEAD) :],
        "8:24: '$n' within a text\n  fix: write the variable alone here, without other text",
    ),
    "variable within quotes": (
        HEAD + "vars: {n: 1}\n" + rule("    where:\n      - x.path == '$n'\n")[len(HEAD) :],
        "9:19: a variable within quotes\n  fix: write it without quotes: $name",
    ),
    "variable that is a mapping": (
        HEAD + "vars: {n: {a: 1}}\n" + RULE,
        "3:11: the variable 'n' has no plain value\n"
        "  why: a variable is a number, text, boolean, null, or a list of these, and this is {'a': 1}",
    ),
    "variable of a variable": (
        HEAD + "vars: {n: 1, m: $n}\n" + RULE,
        "3:17: the variable 'm' refers to another\n  fix: write the value itself",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    text, message = MISTAKES[name]
    with pytest.raises(UtcError) as caught:
        RuleSet.load(text)
    assert str(caught.value) == f"<rules>:{message}"


def test_a_tuner_lacks_its_kind() -> None:
    with pytest.raises(UtcError, match="<rules>:6:39: a tuner lacks its kind\n  fix: add kind: one of adapter, "):
        RuleSet.load(tuner("{dim: 3}"))


@pytest.mark.parametrize("text", [rule(), tuner(ADAPTER)])
def test_the_rules_that_these_mistakes_are_made_in_are_right(text: str) -> None:
    assert RuleSet.load(text).rules[0].name == "a"


@pytest.mark.parametrize("length", [200, 100_000])
def test_messages_stay_short_whatever_the_text(length: int) -> None:
    word = "a" * length
    for text in (
        rule(match=word),
        rule(match=f"{{op: {word}}}"),
        rule(insert=f"{{weight: {word}, tuner: {{kind: lora}}}}"),
        tuner(word),
        tuner(f"{{kind: {word}}}"),
        rule(f"train: ['module:.{word}']\n"),
        rule(f"    inside: {{module: .{word}}}\n"),
        rule(f"    where: [{word}.rank == 3]\n"),
        rule(f"    expect: {{exactly: {word}}}\n"),
        rule(f"    select: {{first: ${word}}}\n"),
        rule(f"    inside: {{module: a.${word}}}\n"),
        rule(f"    except: {word}\n"),
        f"{word}\n",
    ):
        with pytest.raises(UtcError) as caught:
            RuleSet.load(text)
        assert len(str(caught.value)) < 700


SLIPS = {
    "train as a text": (HEAD + RULE + "train: out\n", "write train: ['module:out']"),
    "train unquoted": (HEAD + RULE + "train: [module: out]\n", "quote it: 'module:out'"),
    "select in words": (rule("    select: last 2\n"), "write select: {last: 2}"),
    "where as a text": (rule("    where: h.channels >= 32\n"), "write where: ['h.channels >= 32']"),
    "rank": (rule(insert="{weight: h, tuner: {kind: lora, rank: 8}}"), "write r"),
    "rank of an adapter": (rule(insert="{sequential: h, tuner: {kind: adapter, rank: 8}}"), "write dim"),
    "target_modules": (
        rule(insert="{weight: h, tuner: {kind: lora, target_modules: [q]}}"),
        "name the layers in the rule's match",
    ),
    "a glob of operations": (rule(match='{op: "conv.*"}'), "an operation is not a glob"),
    "a module of torch": (rule(match='{op: "nn.Conv2d"}'), "write conv2d"),
    "a class of torch": (rule(match='{op: "LayerNorm"}'), "write layer_norm"),
    "an operator": (rule(match='"y = relu(x + norm(c))"'), "write add(x, norm(c))"),
    "another operator": (rule(match='"y = relu(x @ c)"'), "write matmul(x, c)"),
    "no version": (HEAD.replace("version: 1\n", "") + RULE, "add version: 1"),
    "bad indentation": (HEAD + RULE + "   expect: {exactly: 1}\n", "check the indentation of this line"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_people_write_by_habit_has_a_fix(slip: str) -> None:
    text, fix = SLIPS[slip]
    with pytest.raises(UtcError) as caught:
        RuleSet.load(text)
    assert str(caught.value.fix).startswith(fix), caught.value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (rule(match='"y = liner(x)"'), "rule/pattern"),
        (rule(match='"y = linear(x"'), "rule/pattern"),
        (rule(match="{op: liner}"), "rule/pattern"),
        (rule("    where: [x.rank === 3]\n"), "rule/where"),
        (rule("    where: [x.ranks == 3]\n"), "rule/where"),
        (rule(match=f'"y = {"a" * 65}(x)"'), "rule/too-large"),
        (rule(f"    where: [{'a' * 65}.rank == 3]\n"), "rule/too-large"),
    ],
)
def test_the_code_names_what_the_text_is(text: str, code: str) -> None:
    with pytest.raises(UtcError) as caught:
        RuleSet.load(text)
    assert caught.value.code == code

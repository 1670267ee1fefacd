"""`RuleSet.load`: from every kind of source, and what it makes of a whole file."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import get_args

import pytest

from utcompile.errors import UtcError
from utcompile.rules import (
    Expect,
    MatchModule,
    MatchOperation,
    MatchParameter,
    MatchPattern,
    RuleSet,
    Scope,
    Select,
    shipped_rules,
)
from utcompile.rules.insertions import AnyInsertion, InsertEntry
from utcompile.tuners import FORMS

FULL = """
version: 1
name: everything
cite: arXiv:2303.00690, Table 5
description: every element once, costing $0
vars: {dim: 10, groups: 1, last: 3}
patterns:
  my_ffn:
    - |
      n = (norm | skip)(x)
      h = pointwise(n)
      a = activation(h)
      c = pointwise(a)
      y = branch_tail(c)
  my_block: y = add(x, my_ffn(x))
tuners:
  u: {kind: adapter, dim: $dim, activation: gelu, scale: channel}
rules:
  - name: named
    match: my_ffn
    where:
      - h.channels >= 4 * x.channels
      - y.shape == x.shape
    inside: {module: "stages.2.**"}
    not_inside: [{class: "*Head"}, {module: head, class: Mlp}]
    select: {last: $last, every: 2}
    insert: {parallel: n -> c, tuner: {kind: adapter, dim: 64, activation: same as a}}
    expect: {exactly: 3}
  - name: in-place
    match: |
      h = conv2d(x, groups=$groups)
      y = relu(h)
    insert: {sequential: h, for: y, tuner: u}
    expect: {at_most: 2, optional: true}
  - name: module
    match: {module: "blocks.*", class: Mlp}
    insert: {parallel: x -> y, tuner: u}
    select: {indices: [0, -1]}
  - name: operation
    match: {op: "conv2d(groups=$groups) | linear"}
    except: head
    insert: {weight: h, all_uses: true, tuner: {kind: lora, r: 4}}
  - name: parameter
    match: {parameter: "**.pos_embed"}
    insert: {weight: h, tuner: {kind: lora}}
    expect: {at_least: 0}
train: ["pattern:head", "module:head.*", "parameter:**.bias"]
tests:
  - {model: "timm:resnet18", sites: {named: 0, module: 3}, vars: {dim: 4}}
"""


@pytest.fixture(scope="module")
def full() -> RuleSet:
    return RuleSet.load(FULL)


def test_what_a_file_says_of_itself(full: RuleSet) -> None:
    assert (full.name, full.path, full.text) == ("everything", None, FULL)
    assert (full.cite, full.description) == ("arXiv:2303.00690, Table 5", "every element once, costing $0")
    assert full.vars == {"dim": 10, "groups": 1, "last": 3}
    assert [rule.name for rule in full.rules] == ["named", "in-place", "module", "operation", "parameter"]
    assert {"my_ffn", "my_block", "attention"} <= full.patterns.keys()


def test_a_named_pattern_with_every_constraint(full: RuleSet) -> None:
    rule = full.rules[0]
    assert isinstance(rule.match, MatchPattern) and rule.match.pattern is full.patterns["my_ffn"]
    assert rule.match.captures == {"x", "n", "h", "a", "c", "y"}
    assert [line.text for line in rule.where] == ["h.channels >= 4 * x.channels", "y.shape == x.shape"]
    assert rule.inside == (Scope("stages.2.**"),)
    assert rule.not_inside == (Scope(None, "*Head"), Scope("head", "Mlp"))
    assert rule.select == Select(last=3, every=2)
    assert rule.expect == Expect(exactly=3)
    insert = rule.insert
    assert (insert.form, insert.source, insert.target, insert.reader) == ("parallel", "n", "c", None)
    assert insert.tuner.name is None and insert.tuner.config.model_dump()["activation"] == "same as a"
    assert (str(rule.mark), str(insert.mark), str(insert.tuner.mark)) == (
        "<rules>:19:5",
        "<rules>:27:13",
        "<rules>:27:39",
    )


def test_pattern_text_in_place(full: RuleSet) -> None:
    rule = full.rules[1]
    assert isinstance(rule.match, MatchPattern) and rule.match.pattern.name == "in-place"
    (spelling,) = rule.match.pattern.spellings
    assert spelling.steps[0].value.heads[0].attributes == {"groups": 1}  # type: ignore[union-attr]
    assert str(spelling.steps[1].mark) == "<rules>:32:7"
    assert (rule.insert.form, rule.insert.target, rule.insert.reader) == ("sequential", "h", "y")
    assert rule.insert.tuner.name == "u" and rule.insert.tuner.config.model_dump()["dim"] == 10
    assert rule.expect == Expect(at_least=1, at_most=2, optional=True)


def test_the_other_matches(full: RuleSet) -> None:
    module, operation, parameter = full.rules[2:]
    assert module.match == MatchModule("blocks.*", "Mlp") and module.match.captures == {"x", "y"}
    assert module.select == Select(indices=(0, -1))
    assert isinstance(operation.match, MatchOperation) and operation.match.captures == {"x", "h"}
    assert [(head.name, dict(head.attributes)) for head in operation.match.heads] == [
        ("conv2d", {"groups": 1}),
        ("linear", {}),
    ]
    assert operation.insert.all_uses and operation.exclude == ("head",)
    assert parameter.match == MatchParameter("**.pos_embed") and parameter.match.captures == {"h"}
    assert parameter.expect == Expect(at_least=0)


def test_train_and_tests(full: RuleSet) -> None:
    assert [(entry.kind, entry.glob) for entry in full.train] == [
        ("pattern", "head"),
        ("module", "head.*"),
        ("parameter", "**.bias"),
    ]
    (test,) = full.tests
    assert (test.model, test.sites, test.vars) == ("timm:resnet18", {"named": 0, "module": 3}, {"dim": 4})


def test_a_rule_set_can_be_copied_and_pickled(full: RuleSet) -> None:
    assert copy.deepcopy(full) == full
    assert pickle.loads(pickle.dumps(full)) == full


def test_variables_can_be_given() -> None:
    rules = RuleSet.load(FULL, vars={"dim": 16, "last": None, "groups": 2})
    assert rules.vars == {"dim": 16, "last": None, "groups": 2}
    assert rules.rules[1].insert.tuner.config.model_dump()["dim"] == 16
    assert rules.rules[0].select == Select(every=2)
    again = RuleSet.load(rules, vars={"dim": 4})
    assert again.vars == {"dim": 4, "last": None, "groups": 2}
    assert RuleSet.load(again) is again


@pytest.mark.parametrize(
    ("vars", "message"),
    [
        ({"dmi": 3}, "<rules>:6:7: unknown variable 'dmi'\n  fix: did you mean 'dim'?"),
        ({"dim": 0}, "<rules>:17:27: 'dim' must be at least 1\n  why: it is the number 0"),
        (
            {"dim": object},
            "the variable 'dim' has no plain value\n  why: a variable is a number, text, boolean, null, "
            "or a list of these, and this is <class 'object'>",
        ),
        ({"groups": "a'b"}, None),
    ],
)
def test_given_variables_are_checked(vars: dict[str, object], message: str | None) -> None:
    if message is None:
        heads = RuleSet.load(FULL, vars=vars).rules[3].match.heads  # type: ignore[union-attr]
        assert heads[0].attributes == {"groups": "a'b"}
        return
    with pytest.raises(UtcError) as caught:
        RuleSet.load(FULL, vars=vars)
    assert str(caught.value) == message


def test_a_list_as_a_variable() -> None:
    text = """
version: 1
name: a
vars: {stages: [0, 2], kernels: [3, 5]}
rules:
  - name: a
    match: {op: conv2d}
    where: [h.op.kernel_size in $kernels]
    select: {indices: $stages}
    insert: {weight: h, tuner: {kind: lora}}
"""
    rule = RuleSet.load(text).rules[0]
    assert rule.select == Select(indices=(0, 2))
    assert rule.where[0].operands[1].value == (3, 5)  # type: ignore[union-attr]


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FULL, encoding="utf-8")
    assert RuleSet.load(path).path == path
    assert RuleSet.load(str(path)).rules[0].mark.file == str(path)
    monkeypatch.chdir(tmp_path)
    assert RuleSet.load("mine.yaml").text == FULL


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nnaem: a\n")
    with pytest.raises(UtcError, match=r"mine\.yaml:2:1: unknown key 'naem'"):
        RuleSet.load(path)


NEITHER = "\n  why: it is neither a file nor the name of shipped rules; YAML text would have more than one line"


def test_a_misspelt_name_is_an_error_and_not_a_text() -> None:
    with pytest.raises(UtcError) as caught:
        RuleSet.load("u_tuning/daul")
    assert str(caught.value) == f"no rules 'u_tuning/daul'{NEITHER}\n  fix: did you mean 'u_tuning/dual'?"


@pytest.mark.parametrize("source", ["version: 1", "a\0b", "x" * 5000, ""])
def test_one_line_is_never_a_text(source: str) -> None:
    with pytest.raises(UtcError, match="neither a file nor the name"):
        RuleSet.load(source)


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UtcError, match="rules must be a RuleSet, a path, a shipped name or YAML text, not int"):
        RuleSet.load(5)  # type: ignore[arg-type]
    with pytest.raises(UtcError, match="no rule file"):
        RuleSet.load(tmp_path)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"a: b\n" * 2_000_000)
    with pytest.raises(UtcError, match=r"big.yaml:1:1: the rule file is too large\n  why: it has 10,000,000 bytes"):
        RuleSet.load(big)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: \xe9\n")
    with pytest.raises(UtcError, match=r"latin.yaml:1:7: the rule file is not UTF-8 text"):
        RuleSet.load(latin)


@pytest.mark.parametrize("name", sorted(shipped_rules()))
def test_shipped_rules_load_and_say_where_they_come_from(name: str) -> None:
    rules = RuleSet.load(name)
    assert rules.path == shipped_rules()[name]
    assert rules.cite and rules.description and rules.tests


def test_every_form_has_one_type_of_insertion() -> None:
    words = [form for kind in get_args(AnyInsertion) for form in kind.forms]
    assert sorted(words) == sorted(FORMS)
    assert set(FORMS) <= InsertEntry.model_fields.keys()

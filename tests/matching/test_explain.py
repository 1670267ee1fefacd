"""The mistakes that people make in rules, and what they are told: each answer names the cause and what to write."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import models as zoo
from support.draws import examples
from support.match_toys import ADAPT, VIT, captured_of, error, rule

import utcompile as utc
from utcompile.matching.explain import Miss, nearest
from utcompile.matching.places import nearest_path, wider_glob
from utcompile.rules.names import CLASSES, OPERATIONS

LORA = "{weight: h, tuner: {kind: lora}}"
AFTER = "{sequential: y, tuner: {kind: adapter}}"
RELU = "n = norm(x)\nh = linear(n)\na = relu(h)\nc = linear((dropout | skip)(a))\ny = branch_tail(c)\n"


def explained(text: str, model: str = VIT, path: str | None = None) -> str:
    """The explanation, also where a rule finds nothing."""
    lenient = text if "expect" in text else text.replace("    insert", "    expect: {optional: true}\n    insert")
    return utc.match(captured_of(model), lenient).explain(path)


# --- patterns --------------------------------------------------------------------------------------------------------------


def test_a_wrong_activation() -> None:
    assert explained(rule(RELU, ADAPT)).splitlines()[:6] == [
        "r: 0 sites",
        "  - blocks.0.mlp.act",
        "      `a = relu(h)` fails at blocks_0_mlp_act (mlp.py:49 in forward) [B, 197, 768]",
        "      the pattern needs relu(h), and this is gelu",
        "      fix: write gelu(h), or activation(h) for any activation",
        "      … and 11 more like it: blocks.1…11.mlp.act",
    ]
    said = error(rule(RELU, ADAPT))
    assert "nearest miss: blocks.0.mlp.act: `a = relu(h)` fails" in said
    assert "this is gelu (and 11 more like it); next: blocks.0.attn: " in said
    assert "fix: write gelu(h), or activation(h) for any activation; run `utcompile explain`" in said


def test_a_pattern_on_one_line_fails_at_its_innermost_call() -> None:
    said = explained(rule("y = branch_tail(linear((dropout | skip)(relu(linear(norm(x))))))\n", AFTER))
    assert said.index("this is gelu") < said.index("this is sdpa")
    assert "fix: write gelu(linear(norm(x))), or activation(linear(norm(x))) for any activation" in said


def test_alternatives_that_lack_one() -> None:
    said = explained(rule("a = (relu | silu)(h)\nc = linear((dropout | skip)(a))\n", AFTER.replace("y", "c")))
    assert "the pattern needs (relu | silu)(h), and this is gelu" in said
    assert "fix: write (relu | silu | gelu)(h), or activation(h) for any activation" in said


def test_a_missing_norm() -> None:
    said = explained(rule("n = norm(x)\nh = conv2d(n)\ny = batch_norm(h)\n", AFTER), "resnet18")
    assert "the pattern needs norm(x), and this is pool" in said and "this is an input of the model" in said
    assert "fix: if it may be missing, write (norm | skip)(x)" in said


def test_a_dropout_in_between() -> None:
    said = explained(rule("a = gelu(h)\nc = linear(a)\ny = branch_tail(c)\n", AFTER))
    assert "fix: a dropout follows here: allow it with (dropout | skip)(gelu(h))" in said


def test_a_wrong_attribute() -> None:
    said = explained(rule("h = conv2d(x, groups=1)\ny = norm(h)\n", LORA), "convnext_atto", "stages.0.blocks.0")
    assert "the pattern needs groups=1, and it is 40" in said
    assert "fix: leave out groups=, or write groups=40, or depthwise_conv for depthwise ones" in said
    said = explained(rule("{op: conv2d(stride=3)}", LORA), "resnet18")
    assert "`op: conv2d(stride=3)` fails at conv1" in said and "the rule needs stride=3, and it is (2, 2)" in said
    assert "fix: leave out stride=, or write stride=(2, 2)" in said


def test_an_attribute_that_there_is_not() -> None:
    said = explained(rule("{op: conv2d(strides=2)}", LORA), "resnet18")
    assert "fix: conv2d has no attribute strides; its attributes: " in said and "stride" in said


def test_a_class_that_asks_more_than_it_seems_to() -> None:
    said = explained(rule("h = pointwise(x)\ny = batch_norm(h)\n", LORA), "resnet18")
    assert "an ungrouped convolution with a kernel of 1, and its kernel is 7x7: conv is any convolution" in said
    said = explained(rule("h = depthwise_conv(x)\ny = batch_norm(h)\n", LORA), "resnet18")
    assert "depthwise_conv has as many groups as channels, and its groups are 1" in said


def test_one_name_for_two_values() -> None:
    lines = "n = norm(x)\nh = linear(n)\na = gelu(h)\nc = linear((dropout | skip)(a))\n"
    said = explained(rule(f"{lines}d = (dropout | skip)((dropout | skip)(c))\ny = add(d, n)\n", AFTER))
    assert "'n' is blocks_0_add already, and blocks_0_norm2_layer_norm is another value" in said
    assert "fix: a name has one value: if the second value may differ, give it another name" in said


@pytest.mark.parametrize(
    ("match", "reason", "fix"),
    [
        ("{op: batch_norm}", "the model has no batch_norm; it has layer_norm (25)", "write layer_norm, or norm for any"),
        ("y = lstm(x)\n", "the model has no lstm", "see `utcompile inspect`"),
        ("{module: mlp}", "no module of the model matches 'mlp'", "write module: '**.mlp'"),
        ('{module: "block.*.mlp"}', "no module of the model matches 'block.*.mlp'", "write module: 'blocks.*.mlp'"),
        ('{module: "blocks.*", class: Linear}', "the modules that 'blocks.*' matches are of class Block, not Linear", "write module: 'blocks.**'"),
        ("{class: Blok}", "no module of the model is a Blok", "did you mean 'Block'?"),
        ("{parameter: posembed}", "no such parameter; parameters that no layer owns: cls_token, pos_embed", "write parameter: 'pos_embed'"),
        ("{parameter: head.weight}", "head.weight belong to layers", "match the layer, as {op: …} or {module: …}"),
    ],
)  # fmt: skip
def test_what_the_model_has_nowhere(match: str, reason: str, fix: str) -> None:
    insert = {"{op": "h", "{pa": "h"}.get(match[:3], "y")
    text = rule(match, f"{{sequential: {insert}, tuner: {{kind: adapter}}}}")
    lines = explained(text).splitlines()
    assert (
        lines[0] == "r: 0 sites" and lines[1].startswith(f"  - {reason}") and lines[2].startswith(f"      fix: {fix}")
    )
    said = error(text)
    assert f"why: {reason}" in said and f"fix: {fix}" in said


# --- constraints -----------------------------------------------------------------------------------------------------------


def test_a_head_that_where_excludes() -> None:
    lines = explained(rule("{op: linear}", LORA, where="[h.rank == 3]"), path="head").splitlines()
    assert lines[0] == "r: 0 sites at head"
    assert lines[1:3] == ["  - head", lines[2]] and lines[2].startswith("      `h.rank == 3` fails at head (")
    assert lines[3] == "      2 == 3 is false in `where`" and len(lines) == 4


def test_where_on_what_is_unknown() -> None:
    text = rule("{op: softmax}", "{sequential: h, tuner: {kind: adapter}}", where="[h.channels >= 4]")
    said = explained(text, "swin_tiny_patch4_window7_224")
    assert "None >= 4 is false in `where`: h.channels is unknown: [64*B, 3, 49, 49] is made by softmax" in said
    assert "fix: compare h.shape or h.rank, or a value that a layer or norm makes" in said
    said = explained(rule("{op: linear}", LORA, where="[h.op.groups == 1]"))
    assert "h.op.groups is unknown: linear has no attribute 'groups'; its attributes: " in said
    assert "fix: name the capture of an operation that has 'groups'" in said


@pytest.mark.parametrize(
    ("scope", "reason", "fix"),
    [
        ('{module: "block.*"}', "blocks > blocks.0; no module of the model matches 'block.*'", "write module: 'blocks.*'"),
        ('{module: "*.mlp"}', "no module of the model matches '*.mlp'", "write module: '**.mlp'"),
        ("{class: Atention}", "no module of the model is a Atention", "did you mean 'Attention'?"),
        ("{class: Mlp}", "only a, b, c, h of it in Mlp", "name a module whose call encloses the whole match"),
    ],
)  # fmt: skip
def test_inside_that_encloses_nothing(scope: str, reason: str, fix: str) -> None:
    said = explained(rule("ffn", ADAPT, inside=scope))
    assert reason in said, said
    assert f"fix: {fix}" in said
    assert "… and 11 more like it: blocks.1…11.drop_path2" in said


def test_a_glob_one_segment_short() -> None:
    said = explained(rule("{op: linear}", LORA, inside='{module: "blocks.*", class: Mlp}'), path="blocks.0.mlp.fc1")
    assert "the modules that 'blocks.*' matches are of class Block, not Mlp" in said
    assert "fix: write module: 'blocks.**'" in said
    said = error(rule("ffn", ADAPT) + "train: ['parameter:blocks.*']\n")
    assert "why: no parameter has such a name\n  fix: write parameter:blocks.**; or remove the line" in said


# --- the plan and its paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("unknown.path", "the model has: blocks, fc_norm, head, "),
        ("block.3.mpl", "did you mean 'blocks.3.mlp'?"),
        ("blocks.0.mlp.fc3", "did you mean 'blocks.0.mlp.fc"),
        ("blocks.12", "'blocks' has: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
        ("head.x", "'head' has no modules in it"),
    ],
)
def test_a_path_that_is_none(path: str, fix: str) -> None:
    plan = utc.match(captured_of(VIT), rule("ffn", ADAPT))
    with pytest.raises(utc.UtcError) as caught:
        plan.explain(path)
    assert caught.value.what == f"the model has no module {path!r}" and (caught.value.fix or "").startswith(fix)


def test_the_root_and_a_place_where_nothing_could_begin() -> None:
    plan = utc.match(captured_of(VIT), rule("ffn", ADAPT))
    assert plan.explain("").startswith("r: 12 sites at (root)")
    assert (
        plan.explain("patch_embed")
        == "r: 0 sites at patch_embed\n  - no operation here can be the last line of its pattern"
    )


def test_too_many_sites() -> None:
    text = rule("{op: linear}", LORA, expect="{exactly: 48}")
    assert error(text).splitlines()[1:] == [
        "  why: it matches at blocks.*.attn.qkv (12), blocks.*.attn.proj (12), blocks.*.mlp.fc1 (12), "
        "blocks.*.mlp.fc2 (12), head",
        "  fix: leave out head with not_inside: {module: 'head'}; or narrow it with `inside:`, `where:`, `except:` or "
        "`select:`; or expect 49",
    ]
    said = error(text.replace("48", "12"))
    assert "keep blocks.0…11.attn.qkv with inside: {module: 'blocks.*.attn.qkv'}" in said and "nearest" not in said
    said = error(rule("ffn", ADAPT, expect="{at_most: 3}"))
    assert "why: it matches at blocks.* (12)\n  fix: narrow it with" in said


def test_too_few_where_all_that_there_is_matches() -> None:
    said = error(rule("{op: linear}", LORA, expect="{at_least: 60}"))
    assert (
        "matched 49 places, expected at least 60\n  why: every operation that could be the pattern's last line already matches\n  fix: expect fewer"
        in said
    )


def test_what_is_told_to_leave_out_narrows_it() -> None:
    more = {"expect": "{exactly: 48}", "not_inside": "{module: 'head'}"}
    assert len(utc.match(captured_of(VIT), rule("{op: linear}", LORA, **more)).sites) == 48


def test_a_model_without_a_head() -> None:
    plan = utc.match(captured_of(VIT, 0), rule("ffn", ADAPT) + "train: ['pattern:head']\n")
    assert plan.trained == () and plan.notes[0].startswith(
        "train: no classifier is trained: the model ends in getitem: "
    )
    said = error(rule("ffn", ADAPT) + "train: ['module:haed']\n")
    assert "no module of such a name has a parameter\n  fix: write module:head; or remove the line" in said


def test_the_explanation_is_plain_data() -> None:
    plan = utc.match(captured_of(VIT), rule(RELU, ADAPT, expect="{optional: true}"))
    (found,) = json.loads(json.dumps(plan.explanation().to_dict()))["rules"]
    assert (found["rule"], found["sites"]) == ("r", [])
    near = found["near"][0]
    assert (near["path"], near["line"]) == ("blocks.0.mlp.act", "a = relu(h)")
    assert near["alike"] == [f"blocks.{i}.mlp.act" for i in range(1, 12)]
    assert near["fix"].startswith("write gelu(h)")


def test_an_explanation_costs_nothing_until_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("explained")

    monkeypatch.setattr(sys.modules["utcompile.matching.plan"], "misses", refuse)
    plan = utc.match(captured_of(VIT), rule("ffn", ADAPT))
    with pytest.raises(AssertionError, match="explained"):
        plan.explain()


# --- the order of misses -----------------------------------------------------------------------------------------------------


def miss(path: str, distance: tuple[int, int, int], reason: str = "because") -> Miss:
    return Miss("r", path, distance, "y = op(x)", f"{path.replace('.', '_')} in {path} (m.py:1)", reason)


def test_the_nearest_come_first_and_copies_of_a_block_count_once() -> None:
    misses = [
        miss("blocks.0.far", (4, 1, 2)),
        *(miss(f"blocks.{i}.near", (1, 1, 1), f"'x' is blocks_{i}_a already, and add_{i} is another value") for i in range(5)),
        miss("blocks.2.where", (-1, 0, 0), "3 == 4 is false"),
        miss("blocks.3.where", (-1, 0, 0), "5 == 4 is false"),
        miss("blocks.1.near", (1, 2, 0)),
    ]  # fmt: skip
    found = nearest(misses, "r", 9)
    assert [(n.miss.path, len(n.others)) for n in found] == [
        ("blocks.2.where", 0),
        ("blocks.3.where", 0),
        ("blocks.0.near", 4),
        ("blocks.1.near", 0),
        ("blocks.0.far", 0),
    ]
    assert nearest(misses, "other", 9) == []


WORDS = sorted({*OPERATIONS, *CLASSES})
STEPS = st.tuples(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=2), st.sampled_from(["", "groups=1", "nothing=2"])
)


def line(target: str, operand: str, step: tuple[list[str], str], *, optional: bool) -> str:
    words, attributes = step
    heads = " | ".join([*words, *(["skip"] if optional else [])])
    if len(words) == 1 and not optional:
        return f"{target} = {heads}({', '.join(part for part in (operand, attributes) if part)})\n"
    return f"{target} = ({heads})({operand})\n"


@settings(max_examples=examples(10, full=40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["vit", "resnet", "convnext"]),
    st.lists(st.tuples(STEPS, STEPS, STEPS, st.booleans()), min_size=1, max_size=6),
)
def test_whatever_is_written_there_is_an_answer_the_nearest_first(kind: str, patterns: list) -> None:  # type: ignore[type-arg]
    texts = [
        line("n", "x", first, optional=False)
        + line("h", "n", second, optional=optional)
        + line("y", "h", third, optional=False)
        for first, second, third, optional in patterns
    ]
    rules = [
        rule(text, AFTER, where="[y.rank == 99]", expect="{optional: true}")
        .split("rules:\n")[1]
        .replace("name: r", f"name: r{i}")
        for i, text in enumerate(texts)
    ]
    plan = utc.match(zoo.captured(kind), "version: 1\nname: t\nrules:\n" + "".join(rules))
    assert plan.sites == ()
    for found in plan.explanation().rules:
        assert found.near, found
        distances = [near.miss.distance for near in found.near]
        assert distances == sorted(distances)
        assert all(near.miss.reason for near in found.near)
    assert plan.explain().count(": 0 sites") == len(rules)


def test_wider_globs_and_near_paths() -> None:
    assert wider_glob("**.nrm1.bias", ["norm.bias", "blocks.0.norm1.bias"]) == "**.norm1.bias"
    assert wider_glob("stages.*.mlp", ["stages.0.blocks.1.mlp"]) == "stages.**.mlp"
    assert wider_glob("layer*.conv1", ["layer1.0.conv1"]) == "layer*.*.conv1"
    assert nearest_path("x", []) == "the model has no modules"

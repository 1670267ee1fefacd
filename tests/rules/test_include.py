"""`include:`: what becomes part of the whole, what collides, and that no path leads out of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch

import utcompile as utc
from utcompile.cli.runs import rules_of
from utcompile.errors import UtcError
from utcompile.rewrite import read_manifest
from utcompile.rules import RuleSet, shipped_rules
from utcompile.rules.include import MAX_DEPTH, MAX_FILES

HEAD = "version: 1\nname: t\n"
RULE = "rules:\n  - {name: a, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}\n"
SHARED = {
    "shared/tuners.yaml": HEAD + "vars: {r: 8, dim: 16}\ntuners:\n  l: {kind: lora, r: $r}\n"
    "  u: {kind: adapter, dim: $dim}\n",
    "shared/patterns.yaml": HEAD
    + "patterns:\n  mlp: |\n    h = linear(x)\n    y = linear((dropout | norm | skip)((dropout | skip)(activation(h))))\n",
    "attn.yaml": HEAD + "include: shared/tuners.yaml\nrules:\n"
    "  - {name: attn, match: attention, insert: {weight: c, tuner: l}}\ntrain: ['pattern:head']\n"
    "tests:\n  - {model: 'timm:test_vit', sites: {attn: 6}}\n",
    "main.yaml": HEAD + "include:\n  - {file: ./shared/tuners.yaml, vars: {r: 4}}\n  - shared/patterns.yaml\n"
    "  - attn.yaml\nvars: {n: 1}\n"
    "rules:\n  - {name: mlp, match: mlp, select: {first: $n}, insert: {parallel: x -> y, tuner: u}}\n"
    "train: ['pattern:head', 'parameter:**.norm1.bias']\n"
    "tests:\n  - {model: 'timm:test_vit', sites: {attn: 6, mlp: 1}}\n",
}

Write = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "rules" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "rules"

    return write


def refusal(source: Path | str, **more: Mapping[str, str]) -> str:
    with pytest.raises(UtcError) as caught:
        RuleSet.load(source, **more)
    message = str(caught.value)
    assert len(message) < 1000
    return message


def test_what_is_included_becomes_part_of_the_whole(write: Write) -> None:
    rules = RuleSet.load(write(SHARED) / "main.yaml")
    assert [rule.name for rule in rules.rules] == ["attn", "mlp"]  # an included file's rules come first
    assert [(entry.kind, entry.glob) for entry in rules.train] == [
        ("pattern", "head"),  # once, though two files say it
        ("parameter", "**.norm1.bias"),
    ]
    assert rules.vars == {"r": 4, "dim": 16, "n": 1}
    assert rules.rules[0].insert.tuner.config.model_dump()["r"] == 4
    assert rules.rules[1].insert.tuner.config.model_dump()["dim"] == 16
    assert rules.rules[1].match.pattern is rules.patterns["mlp"]  # type: ignore[union-attr]
    assert rules.text == SHARED["main.yaml"]
    assert list(rules.included) == ["shared/tuners.yaml", "shared/patterns.yaml", "attn.yaml"]
    assert [test.sites for test in rules.tests] == [{"attn": 6, "mlp": 1}]  # the file's own tests alone


def test_places_name_the_included_file(write: Write) -> None:
    folder = write(SHARED)
    attn, mlp = RuleSet.load(folder / "main.yaml").rules
    assert str(attn.mark) == f"{folder / 'attn.yaml'}:5:5"
    assert str(mlp.mark) == f"{folder / 'main.yaml'}:9:5"
    write({"shared/tuners.yaml": SHARED["shared/tuners.yaml"].replace("dim: $dim", "dmi: $dim")})
    message = refusal(folder / "main.yaml")
    assert message == f"{folder / 'shared/tuners.yaml'}:6:22: unknown key 'dmi'\n  fix: did you mean 'dim'?"


def test_the_caller_sets_variables_of_all_files(write: Write) -> None:
    rules = RuleSet.load(write(SHARED) / "main.yaml", vars={"r": 2, "n": 3})
    assert rules.vars == {"r": 2, "dim": 16, "n": 3}
    assert RuleSet.load(rules, vars={"dim": 4}).vars == {"r": 2, "dim": 4, "n": 3}


def test_a_rule_set_is_loaded_again_without_its_files(write: Write, tmp_path: Path) -> None:
    folder = write(SHARED)
    rules = RuleSet.load(folder / "main.yaml", vars={"dim": 4})
    folder.rename(tmp_path / "gone")
    assert [r.name for r in RuleSet.load(rules, vars={"dim": 5}).rules] == ["attn", "mlp"]
    again = RuleSet.load(rules.text, vars=rules.vars, included=rules.included)
    assert [(r.name, r.insert.tuner.config) for r in again.rules] == [
        (r.name, r.insert.tuner.config) for r in rules.rules
    ]
    assert (again.vars, again.included, again.path) == (rules.vars, rules.included, None)
    assert str(again.rules[0].mark) == "attn.yaml:5:5"


def test_a_checkpoint_holds_all_that_its_rules_include(write: Write, tmp_path: Path) -> None:
    folder = write(SHARED)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    example = torch.randn(2, 3, 64, 64)
    tuned = utc.compile(model, folder / "main.yaml", example, verify="shapes")
    assert [s.rule for s in tuned.sites] == ["attn"] * 6 + ["mlp"]
    run = utc.save_tuners(tuned, tmp_path / "run")
    folder.rename(tmp_path / "gone")
    rules = rules_of(run, read_manifest(run))
    again = utc.load_tuners(utc.compile(model, rules, example, verify="shapes"), run)
    assert [s.id for s in again.sites] == [s.id for s in tuned.sites]
    assert torch.equal(again(example), tuned(example))


def test_shipped_rules_are_included_by_name_also_from_a_text() -> None:
    rules = RuleSet.load(f"{HEAD}include: [{{file: lora/all_linear, vars: {{r: 2}}}}]\n")
    assert [rule.name for rule in rules.rules] == ["linear"]
    assert rules.rules[0].insert.tuner.config.model_dump()["r"] == 2
    assert rules.rules[0].mark.file == str(shipped_rules()["lora/all_linear"])
    assert list(rules.included) == ["lora/all_linear"]
    held = {
        "lora/all_linear": rules.included["lora/all_linear"]
        .replace("linear:", "held:")
        .replace("name: linear", "name: held")
    }
    assert RuleSet.load(rules.text, included=held).rules[0].name == "held"  # what a checkpoint holds goes first


def test_a_text_includes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.yaml").write_text(HEAD + RULE)
    monkeypatch.chdir(tmp_path)
    message = refusal(HEAD + "include: b.yaml\n")
    assert message == (
        "<rules>:3:10: 'b.yaml' cannot be included\n"
        "  why: these rules were given as text, and a text has no folder in which the file could be\n"
        "  fix: load the rules from a file, or include shipped rules"
    )


def test_a_file_sees_what_it_includes_and_nothing_else(write: Write) -> None:
    sibling = {**SHARED, "attn.yaml": SHARED["attn.yaml"].replace("include: shared/tuners.yaml\n", "")}
    folder = write(sibling)
    assert refusal(folder / "main.yaml").startswith(f"{folder / 'attn.yaml'}:4:63: unknown tuner 'l'")
    write({"attn.yaml": SHARED["attn.yaml"].replace("match: attention", "match: {op: 'linear(n=$n)'}")})
    assert "attn.yaml:5:40: unknown variable '$n'" in refusal(folder / "main.yaml")


def test_an_included_file_may_declare_what_is_not_used(write: Write) -> None:
    folder = write({"a.yaml": HEAD + "include: shared/tuners.yaml\n" + RULE, **SHARED})
    assert RuleSet.load(folder / "a.yaml").vars == {"r": 8, "dim": 16}
    assert refusal(folder / "shared/tuners.yaml").endswith(
        "tuners.yaml:1:1: the rule file lacks the key 'rules'\n  fix: add rules: …; or train: alone, for a probe"
    )


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("variable", "vars: {r: 1}\n", "vars: {r: 1}\n"),
        ("tuner", "tuners: {r: {kind: lora}}\n", "tuners: {r: {kind: adapter}}\n"),
        ("pattern", "patterns: {r: y = linear(x)}\n", "patterns: {r: y = linear(x)}\n"),
        ("rule", RULE.replace("name: a", "name: r"), RULE.replace("name: a", "name: r")),
    ],
)
def test_a_name_means_one_thing(kind: str, one: str, other: str, write: Write) -> None:
    folder = write({"b.yaml": HEAD + one, "a.yaml": HEAD + "include: b.yaml\n" + other, "c.yaml": HEAD + other})
    message = refusal(folder / "a.yaml")
    assert message.startswith(f"{folder / 'a.yaml'}:{5 if kind == 'rule' else 4}:")
    assert f"the {kind} 'r' is there twice\n  why: {folder / 'b.yaml'}:{4 if kind == 'rule' else 3}:" in message
    write({"d.yaml": HEAD + "include: [b.yaml, c.yaml]\n"})
    assert refusal(folder / "d.yaml").startswith(f"{folder / 'c.yaml'}:")


def test_a_file_that_is_reached_twice_is_taken_once(write: Write) -> None:
    both = f"{HEAD}include: [attn.yaml, {{file: shared/tuners.yaml, vars: {{r: 3}}}}, attn.yaml]\n"
    rules = RuleSet.load(write({**SHARED, "both.yaml": both}) / "both.yaml")
    assert [rule.name for rule in rules.rules] == ["attn"] and rules.vars["r"] == 3


def test_values_of_an_included_file(write: Write) -> None:
    inner = {
        **SHARED,
        "attn.yaml": SHARED["attn.yaml"].replace("shared/tuners.yaml", "{file: shared/tuners.yaml, vars: {r: 2}}"),
    }
    folder = write({**inner, "a.yaml": HEAD + "include: attn.yaml\n"})
    assert RuleSet.load(folder / "a.yaml").vars["r"] == 2
    write({"a.yaml": HEAD + "include: {file: attn.yaml, vars: {r: 5}}\n"})
    assert RuleSet.load(folder / "a.yaml").vars["r"] == 5  # the outer file goes before the inner one
    assert "main.yaml" in (message := refusal(folder / "main.yaml"))  # two files give r, and neither is the outer one
    assert "'r' has two values" in message
    for given, says in {
        "{rr: 5}": "a.yaml:3:35: unknown variable 'rr' of 'attn.yaml'\n  fix: did you mean 'r'?",
        "{r: [{}]}": "a.yaml:3:38: the variable 'r' has no plain value",
        "5": "a.yaml:3:34: 'vars' must be a mapping",
    }.items():
        write({"a.yaml": f"{HEAD}include: {{file: attn.yaml, vars: {given}}}\n"})
        assert says in refusal(folder / "a.yaml")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("../b.yaml", "3:10: '../b.yaml' cannot be included\n  why: a path must not lead out of the folder with .."),
        ("sub/../../b.yaml", "a path must not lead out of the folder with .."),
        ("sub/../a.yaml", "a path must not lead out of the folder with .."),
        ("/etc/b.yaml", "a path is relative to the file that includes it"),
        ("C:/b.yaml", "a path is relative"),
        ("file:b.yaml", "a path is relative"),
        ("https://a.b/c.yaml", "a path is relative"),
        ("..\\b.yaml", "the parts of a path are joined by /"),
        ("$b.yaml", "a path has no variables"),
        ('"b\\0.yaml"', "it is not a path"),
        ('"b\\n.yaml"', "it is not a path"),
        ("sub//b.yaml", "it is not a path"),
        ("x" * 3000 + ".yaml", "no file 'x"),
        ("none.yaml", "3:10: no file 'none.yaml' to include\n  fix: check the path"),
        ("folder.yaml", "'folder.yaml' cannot be included\n  why: it is no file"),
        ("pipe.yaml", "'pipe.yaml' cannot be included\n  why: it is no file"),
        ("out.yaml", "'out.yaml' cannot be included\n  why: a symbolic link leads out of the folder of the rule file"),
        ("outside/secret.yaml", "a symbolic link leads out"),
        ("loop.yaml", "no file 'loop.yaml' to include"),
        ("dangling.yaml", "no file 'dangling.yaml' to include"),
        ("lora/all_linaer", "no shipped rules 'lora/all_linaer' to include\n  why: the name of a file ends in .yaml\n  fix: did you mean 'lora/all_linear'?"),
        ("../rules/a", "no shipped rules '../rules/a'"),
        ("", "'include' must be a list"),
        ("5", "'include' must be a list\n  why: it is the number 5"),
        ("[a.yaml, 5]", "3:19: an item of 'include' must be a text or a mapping\n  why: it is the number 5"),
        ("{fiel: a.yaml}", "3:11: unknown key 'fiel'\n  fix: did you mean 'file'?"),
        ("{vars: {}}", "3:10: an item of 'include' lacks the key 'file'"),
        ("a.yaml", "3:10: 'a.yaml' includes itself\n  why: a.yaml → a.yaml\n  fix: remove one of these includes"),
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(entry: str, says: str, write: Write, tmp_path: Path) -> None:
    folder = write({"sub/b.yaml": HEAD + RULE, "b.yaml": HEAD + RULE, "a.yaml": f"{HEAD}include: {entry}\n"})
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "secret.yaml").write_text(HEAD + RULE)
    (tmp_path / "b.yaml").write_text(HEAD + RULE)
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    (folder / "out.yaml").symlink_to(tmp_path / "secret" / "secret.yaml")
    (folder / "outside").symlink_to(tmp_path / "secret")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "dangling.yaml").symlink_to("nowhere.yaml")
    message = refusal(folder / "a.yaml")
    assert message.startswith(f"{folder / 'a.yaml'}:3:") and says in message


def test_links_within_the_folder_are_followed(write: Write) -> None:
    folder = write({"b.yaml": HEAD + RULE, "a.yaml": HEAD + "include: link.yaml\n"})
    (folder / "link.yaml").symlink_to("b.yaml")
    assert len(RuleSet.load(folder / "a.yaml").rules) == 1
    (folder.parent / "elsewhere").symlink_to(folder)  # the folder itself may be reached by a link
    assert len(RuleSet.load(folder.parent / "elsewhere" / "a.yaml").rules) == 1


def test_circles_are_told_in_full(write: Write) -> None:
    names = {"a.yaml": "sub/b.yaml", "sub/b.yaml": "c.yaml", "sub/c.yaml": "b.yaml"}
    folder = write({name: f"{HEAD}include: {other}\n{RULE}" for name, other in names.items()})
    assert refusal(folder / "a.yaml") == (
        f"{folder / 'sub/c.yaml'}:3:10: 'sub/b.yaml' includes itself\n  why: b.yaml → c.yaml → b.yaml\n"
        "  fix: remove one of these includes"
    )
    (folder / "sub" / "d").symlink_to(".")  # a circle that a link hides ends at the bound
    write({"sub/b.yaml": f"{HEAD}include: d/b.yaml\n"})
    assert f"files that include one another more than {MAX_DEPTH} deep" in refusal(folder / "a.yaml")


def test_depth_number_and_size_are_bounded(write: Write) -> None:
    chain = {f"c{i}.yaml": f"{HEAD}include: c{i + 1}.yaml\n" for i in range(MAX_DEPTH + 1)}
    folder = write({**chain, f"c{MAX_DEPTH + 1}.yaml": HEAD + RULE})
    assert RuleSet.load(folder / "c1.yaml").rules
    assert f"c{MAX_DEPTH}.yaml:3:10: files that include one another more than {MAX_DEPTH} deep" in refusal(
        folder / "c0.yaml"
    )
    many = {f"m{i}.yaml": HEAD for i in range(MAX_FILES + 1)}
    write({**many, "all.yaml": f"{HEAD}include: [{', '.join(many)}]\n{RULE}"})
    assert f"more than {MAX_FILES} included files" in refusal(folder / "all.yaml")
    write({"all.yaml": f"{HEAD}include: [{', '.join(list(many)[:-1])}]\n{RULE}"})
    assert len(RuleSet.load(folder / "all.yaml").included) == MAX_FILES
    comment = "#" * 100_000 + "\n"
    write(
        {
            "all.yaml": f"{HEAD}include: [m0.yaml, m1.yaml, m2.yaml]\n{RULE}",
            **{f"m{i}.yaml": HEAD + comment for i in range(3)},
        }
    )
    assert "m2.yaml:1:1: this file and those it is included with are too large" in refusal(folder / "all.yaml")
    write({f"m{i}.yaml": f"{HEAD}patterns: {{p{i}: [{'y, ' * 4000}y]}}\n" for i in range(3)})
    assert "more than 10,000 values together" in refusal(folder / "all.yaml")


def test_texts_that_are_held_are_bounded_and_checked() -> None:
    text = HEAD + "include: b.yaml\n"
    assert RuleSet.load(text, included={"b.yaml": HEAD + RULE}).included == {"b.yaml": HEAD + RULE}
    assert "b.yaml:1:1: the rule file is too large" in refusal(text, included={"b.yaml": "#" * 300_000})
    assert "b.yaml:3:10: 'b.yaml' includes itself" in refusal(text, included={"b.yaml": text})
    for odd in ({"b.yaml": 5}, {5: "a"}, [], "b.yaml", 5):
        with pytest.raises(UtcError, match="the texts of included files must be a mapping from names to texts"):
            RuleSet.load(text, included=odd)  # type: ignore[arg-type]


def test_beside_a_shipped_file_stand_shipped_files() -> None:
    held = {"lora/mine": HEAD + "include: [parts/tuner.yaml, lora/all_conv]\n", "lora/parts/tuner": HEAD + RULE}
    rules = RuleSet.load(HEAD + "include: lora/mine\n", included=held)
    assert [rule.name for rule in rules.rules] == ["a", "conv"]
    assert list(rules.included) == ["lora/mine", "lora/parts/tuner", "lora/all_conv"]
    message = refusal(HEAD + "include: lora/mine\n", included={"lora/mine": HEAD + "include: none.yaml\n"})
    assert message.startswith("lora/mine:3:10: no shipped rules 'none.yaml' to include")

"""`inspect`, `explain` and `rules`: what only looks."""

from __future__ import annotations

import json

import pytest
from support.cli_toys import captures_shared, parsed, passed, refused, utc


@pytest.fixture(scope="module", autouse=True)
def _shared():
    with captures_shared():
        yield


def test_inspect_shows_a_tree_with_repeated_blocks_once():
    text = passed("inspect", "-m", "timm:test_vit").stdout
    assert "0 … 5, alike  Block" in text
    assert text.count("qkv") == 1
    assert "[B, 101, 192]    B N C            12,480" in text
    assert "reshape" not in text
    everything = passed("inspect", "-m", "timm:test_vit", "--all").stdout
    assert everything.count("qkv") == 6
    assert "reshape" in everything


def test_inspect_finds_the_named_patterns():
    found = parsed("inspect", "-m", "timm:test_vit")
    assert found["patterns"]["attention"] == [f"blocks.{i}" for i in range(6)]
    assert len(found["patterns"]["ffn"]) == len(found["patterns"]["block"]) == 6
    assert found["patterns"]["inverted_residual"] == []
    assert found["patterns"]["head"] == ["head"]
    assert found["parameters"] == 371_240
    assert found["tree"]["children"][0]["layout"] == "B C H W"
    assert found["report"]["verified"].startswith("values")


def test_inspect_at_another_size_and_with_another_head():
    found = parsed("inspect", "-m", "timm:test_vit", "--input-size", "1,64,64", "--num-classes", "7")
    assert found["input_size"] == [1, 64, 64]
    assert found["tree"]["shape"] == "[B, 7]"
    assert found["tree"]["children"][0]["shape"] == "[B, 64, 4, 4]"


def test_inspect_of_torchvision_and_of_a_factory(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n\n"
        "@dataclass\nclass Config:\n    width: int = 4\n\ndef make(num_classes=3):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    found = parsed("inspect", "-m", f"{tmp_path}/net.py:make", "--input-size", "1,8,8", "--num-classes", "5")
    assert found["tree"]["shape"] == "[B, 5]"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert parsed("inspect", "-m", "net:make", "--input-size", "1,8,8")["tree"]["shape"] == "[B, 3]"
    found = parsed("inspect", "-m", "torchvision:squeezenet1_1", "--num-classes", "4", "--input-size", "64")
    assert found["tree"]["shape"] == "[B, 4]"


def test_explain_prints_the_plan_and_the_reasons():
    text = passed("explain", "-m", "timm:test_vit", "-r", "u_tuning/dual", "--var", "dim=4", "--at", "blocks.0").stdout
    assert "mha/blocks.0/0" in text
    assert "12 sites (6 mha, 6 ffn)" in text
    assert "ffn: 1 site at blocks.0" in text


def test_explain_as_json():
    found = parsed("explain", "-m", "timm:test_vit", "-r", "u_tuning/single_ffn", "--num-classes", "5")
    assert [s["rule"] for s in found["sites"]] == ["ffn"] * 6
    assert found["trained"] == ["head.weight", "head.bias"]


def test_explain_shows_the_nearest_misses_of_a_rule_that_found_nothing():
    result = utc("explain", "-m", "timm:test_vit", "-r", "convnet/residual_parallel", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["sites"] == []
    assert "rule 'residual' matched 0 places, expected at least 1" in result.stderr


def test_variables_are_yaml_scalars(tmp_path):
    refused("explain", "-m", "timm:test_vit", "-r", "lora/all_linear", "--var", "r=two", says=("r",))
    refused(
        "explain", "-m", "timm:test_vit", "-r", "lora/all_linear", "--var", "rank=2", says=("unknown variable 'rank'",)
    )
    for text in ("r", "r r=2", "=2"):
        assert utc("explain", "-m", "timm:test_vit", "-r", "lora/all_linear", "--var", text).exit_code == 2
    assert utc("inspect", "-m", "timm:test_vit", "--input-size", "1,2").exit_code == 2


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("timm:resnet5", ("timm has no model 'resnet5'", "did you mean 'resnet")),
        ("timm:resnet18.nowhere_in1k", ("timm has no weights 'resnet18.nowhere_in1k'", "did you mean")),
        (
            "torchvision:resnet19",
            ("torchvision has no classification or segmentation model 'resnet19'", "did you mean 'resnet1"),
        ),
        ("resnet50", ("'resnet50' names no model", "timm:NAME")),
        ("demo:resnet", ("the demo has no model 'resnet'", "demo:efficientnet_lite0")),
        ("nowhere.py:make", ("nowhere.py: there is no such Python file",)),
        ("nowhere_at_all.models:make", ("cannot be imported", "ModuleNotFoundError")),
        ("json:dump_", ("json: there is no function 'dump_'", "did you mean 'dump'?")),
        ("json:dumps", ("the factory failed", "TypeError")),
        ("time:time", ("the factory returned a float",)),
    ],
)
def test_models_that_are_none(spec, says):
    refused("inspect", "-m", spec, says=says)


def test_inputs_of_a_wrong_shape():
    refused(
        "inspect",
        "-m",
        "timm:test_convnext",
        "--input-size",
        "3,2,2",
        says=("forward failed on inputs x: [2, 3, 2, 2]",),
    )


def test_explain_at_no_module():
    refused(
        "explain", "-m", "timm:test_vit", "-r", "u_tuning/dual", "--at", "block.0", says=("did you mean 'blocks.0'?",)
    )


def test_rules_list_and_show():
    text = passed("rules", "list").stdout
    assert "u_tuning/dual_foldable" in text
    assert "arXiv:2303.00690" in text
    listed = {entry["name"]: entry for entry in parsed("rules", "list")}["lora/all_conv"]
    assert listed["vars"] == {"r": 8, "alpha": 8}
    assert listed["folds"] == ["absorbed"]
    assert listed["rules"] == [{"name": "conv", "tuner": "lora", "inserts": "lora weight h at every conv but head"}]
    shown = passed("rules", "show", "lora/all_conv").stdout
    assert shown.startswith("version: 1\nname: all_conv\n")


def test_rules_are_described_in_80_columns():
    about = passed("rules", "show", "--about", "u_tuning/dual_foldable").stdout
    for line in (
        "u_tuning/dual_foldable",
        "  rules      mha: lora weight c at attention",
        "             ffn: adapter parallel n -> y at ffn or gated_ffn, where c.channels",
        "               == n.channels",
        "  trains     the tuners, pattern:head",
        "  folds      widened and absorbed",
        "  variables  dim=10, r=8, alpha=8",
        "  tests      timm:vit_tiny_patch16_224: mha 12, ffn 12",
    ):
        assert line in about.splitlines()
    for text in (about, passed("rules", "list").stdout):
        assert all(len(line) <= 80 and line == line.rstrip() for line in text.splitlines())
    assert "    absorbed when folded · r=8, alpha=8 · arXiv:2106.09685" in passed("rules", "list").stdout.splitlines()


def test_rules_shown_can_be_saved_and_loaded(tmp_path):
    (tmp_path / "mine.yaml").write_text(passed("rules", "show", "u_tuning/tri").stdout)
    assert "$schema" not in (tmp_path / "mine.yaml").read_text()  # its path would lead nowhere
    (tmp_path / "more.yaml").write_text(
        "# yaml-language-server: $schema=s.json\nversion: 1\nname: more\ninclude: [{file: mine.yaml, vars: {dim: 2}}]\n"
    )
    shown = parsed("rules", "show", tmp_path / "more.yaml")
    assert (shown["included"], shown["vars"]) == (["mine.yaml"], {"dim": 2, "length": 10})
    assert [rule["name"] for rule in shown["rules"]] == ["mha", "ffn", "block"]
    assert shown["text"] == (tmp_path / "more.yaml").read_text()  # a file of the user's own stays as it is
    about = passed("rules", "show", "--about", tmp_path / "more.yaml").stdout
    assert "  includes   mine.yaml" in about and "tests" not in about


def test_rules_schema(tmp_path):
    assert json.loads(passed("rules", "schema").stdout)["type"] == "object"
    passed("rules", "schema", "-o", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text())["type"] == "object"
    refused("rules", "schema", "-o", tmp_path / "none" / "schema.json", says=("the folder to write to does not exist",))


def rule_file(folder, expected: int):
    path = folder / "mine.yaml"
    path.write_text(
        "version: 1\nname: mine\nrules:\n"
        "  - {name: all, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"
        f"tests:\n  - {{model: 'timm:test_vit', sites: {{all: {expected}}}}}\n"
    )
    return path


def test_rules_test_compares_what_is_found(tmp_path):
    text = passed("rules", "test", rule_file(tmp_path, 25)).stdout
    assert "ok" in text
    assert "all: expected 25, found 25" in text
    assert parsed("rules", "test", tmp_path)["passed"]
    result = utc("rules", "test", rule_file(tmp_path, 24))
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout
    assert "0 of 1 as expected" in result.stdout
    found = json.loads(utc("rules", "test", rule_file(tmp_path, 24), "--json").stdout)
    assert (found["passed"], found["results"][0]["found"]) == (False, 25)


def test_rules_test_of_nothing(tmp_path):
    refused("rules", "test", tmp_path, says=("contains no rule file",))
    refused("rules", "test", tmp_path / "none.yaml", says=("no rules",))


def test_explain_fits_80_columns_and_is_plain_where_it_is_no_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = passed("explain", "-m", "timm:test_resnet", "-r", "lora/all_conv").stdout
    table = text.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert table[0].split() == ["rule", "at", "n", "inserts", "shape", "params", "FLOPs", "saved"]
    assert "\x1b" not in text and "…\n" not in "\n".join(table)
    monkeypatch.setenv("COLUMNS", "140")
    wide = passed("explain", "-m", "timm:test_resnet", "-r", "lora/all_conv").stdout.splitlines()
    assert any(" -> " in line for line in wide[1:5])


def test_explain_shows_repeated_blocks_once_and_what_it_costs():
    text = passed("explain", "-m", "timm:test_vit", "-r", "u_tuning/dual").stdout
    lines = text.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["mha", "blocks.0…5", "6"], ["ffn", "blocks.0…5", "6"]]
    assert "tuners: 3.1 MFLOPs (4.1 % of the model's 75.3 M)" in text
    assert "      … and 5 more like it: blocks.1…5" in text
    only = passed("explain", "-m", "timm:test_vit", "-r", "u_tuning/dual", "--at", "blocks.2.mlp").stdout
    assert "blocks.2 " in only and "blocks.3" not in only and "head.weight" not in only


def test_explain_as_json_has_costs_and_reasons():
    found = parsed("explain", "-m", "timm:test_vit", "-r", "u_tuning/dual")
    assert found["cost"]["flops"] == sum(s["flops"] for s in found["sites"])
    mha, ffn = found["explanation"]["rules"]
    assert (mha["rule"], len(mha["sites"]), len(ffn["sites"])) == ("mha", 6, 6)
    assert mha["near"][0].keys() == {"path", "line", "node", "reason", "fix", "alike"}


@pytest.mark.parametrize("as_text", [False, pytest.param(True, marks=pytest.mark.full)])
def test_explain_shows_the_work_of_a_step_in_less_and_less_memory(as_text):
    given = ("explain", "-m", "timm:test_vit", "-r", "lora/all_linear", "--memory", "--batch-size", "4")
    if as_text:
        text = passed(*given, "--input-size", "64").stdout
        assert "memory=0." in text and "batch 4, without" in text
        return
    found = parsed(*given, "--input-size", "64")["memory"]
    peaks, work = ([point[name] for point in found["curve"]] for name in ("peak", "flops"))
    assert peaks == sorted(peaks, reverse=True) and work == sorted(work) and len(peaks) > 1
    assert found["expected"]["peak"] < found["before"]["peak"]


def test_explain_draws_and_writes_a_page(tmp_path):
    drawing, page = tmp_path / "plan.svg", tmp_path / "plan.html"
    arguments = ("explain", "-m", "timm:test_vit", "-r", "u_tuning/dual", "--svg", drawing, "--html", page)
    passed(*arguments, "--json")
    assert "blocks.0…5" in drawing.read_text() and "adapter dim=10" in page.read_text()
    refused("explain", "-m", "timm:none", "-r", "u_tuning/dual", "--svg", tmp_path / "no" / "plan.svg", says=("does not exist",))  # fmt: skip
    refused("explain", "-m", "timm:none", "-r", "u_tuning/dual", "--html", tmp_path, says=("is a folder",))

"""`utcompile rules test`: Missing and Noisy sites, and models that are none."""

from __future__ import annotations

import json

import pytest
from support.cli_toys import captures_shared, parsed, passed, utc

RULES = """version: 1
name: mine
rules:
  - {name: all, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}
  - {name: mha, match: attention, insert: {parallel: x -> y, tuner: {kind: adapter}}}
tests:
"""


@pytest.fixture(scope="module", autouse=True)
def _shared():
    with captures_shared():
        yield


@pytest.fixture
def write(tmp_path):
    def to(*tests: str):
        path = tmp_path / "mine.yaml"
        path.write_text(
            RULES
            + "".join(f"  - {{model: '{test.partition(' ')[0]}', sites: {test.partition(' ')[2]}}}\n" for test in tests)
        )
        return path

    return to  # fmt: skip


def results_of(*arguments) -> list[dict]:
    result = utc("rules", "test", *arguments, "--json")
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    data = json.loads(result.stdout)
    assert data["passed"] is False
    return data["results"]


def test_sites_by_path_by_glob_and_by_number(write):
    path = write(
        "timm:test_vit {all: 25, mha: ['blocks.*']}",
        "timm:test_vit {all: {'blocks.**': 24, head: 1}, mha: [blocks.0, blocks.1, blocks.2, blocks.3, blocks.4, blocks.5]}",
    )
    text = passed("rules", "test", path).stdout
    assert "all: expected 24 at blocks.**, 1 at head, found 25" in text
    assert "4 of 4 as expected, in 1 rule file\n" in text
    assert all(r["passed"] for r in parsed("rules", "test", path)["results"])


def test_missing_and_noisy_sites_are_named(write):
    path = write("timm:test_vit {all: {'blocks.**': 24}, mha: [blocks.0, blocks.7]}")
    result = utc("rules", "test", path)
    assert result.exit_code == 1
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[1:3] == ["Noisy    head", f"DIFFERS {path}  timm:test_vit  mha: expected blocks.0, blocks.7, found 6"]
    assert lines[3:5] == ["Missing  blocks.7", "Noisy    blocks.1"]
    assert lines[-1] == "0 of 2 as expected, in 1 rule file"
    first, second = results_of(path)
    assert (first["noisy"], first["missing"]) == (["head"], [])
    assert second["missing"] == ["blocks.7"] and second["noisy"] == [f"blocks.{i}" for i in range(1, 6)]
    assert second["sites"] == [f"blocks.{i}" for i in range(6)] and second["found"] == 6


def test_a_rule_that_finds_too_little_names_its_nearest_miss(write):
    (result,) = results_of(write("timm:test_resnet {mha: 2}"))
    assert result["found"] == 0 and result["error"] is None
    assert "`o = sdpa(r, s, u)` fails at" in result["near"][0]


def test_a_rule_may_be_expected_to_find_nothing(write):
    assert "1 of 1 as expected" in passed("rules", "test", write("timm:test_resnet {mha: 0}")).stdout
    assert "1 of 1 as expected" in passed("rules", "test", write("timm:test_resnet {mha: []}")).stdout


def test_what_a_rule_expects_itself_is_tested_too(write):
    path = write("timm:test_vit {mha: 6}")
    path.write_text(path.read_text().replace("match: attention,", "match: attention, expect: {exactly: 5},"))
    found, failure = results_of(path)
    assert found["passed"]
    assert failure["rule"] is None and "matched 6 places, expected exactly 5" in failure["error"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("timm:test_vot", "timm has no model 'test_vot' (did you mean 'test_vit'?"),
        ("resnet50", "'resnet50' names no model"),
        ("nowhere_at_all.models:make", "cannot be imported (ModuleNotFoundError"),
        ("json:dumps", "the factory failed"),
    ],
)
def test_a_model_that_is_none_is_one_failed_test_on_one_line(write, model, says):
    path = write(f"{model} {{all: 1, mha: 1}}", "timm:test_vit {all: 25}")
    bad, good = results_of(path)
    assert says in bad["error"] and "\n" not in bad["error"]
    assert good["passed"]
    text = utc("rules", "test", path).stdout
    assert f"ERROR   {path}  {model}  " in text and "1 of 2 as expected" in text


def test_a_tuner_that_does_not_fit_is_one_failed_test(write):
    path = write("timm:test_vit {all: 25}")
    path.write_text(path.read_text().replace("parallel: x -> y", "parallel: q -> y"))
    (result,) = results_of(path)
    assert "cannot bring 'q' [B, 2, 101, 32] to 'y' [B, 101, 64]" in result["error"] and f"{path}:5:" in result["error"]


def test_a_python_file_is_looked_for_next_to_the_rules_first(write, tmp_path, monkeypatch):
    net = "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.Linear(7, 4), nn.Linear(4, 2))\n"
    path = write("net.py:make {all: 2, mha: 0}", "beyond.py:make {all: 2, mha: 0}")
    path.write_text(
        path.read_text().replace("insert: {parallel: x -> y", "expect: {optional: true}, insert: {parallel: x -> y")
    )
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "net.py").write_text(net)
    (here / "net.py").write_text("raise AssertionError\n")
    (here / "beyond.py").write_text(net)
    monkeypatch.chdir(here)
    assert "4 of 4 as expected" in passed("rules", "test", path).stdout


def test_a_broken_file_in_a_folder_does_not_hide_the_others(write, tmp_path):
    write("timm:test_vit {all: 25}")
    (tmp_path / "broken.yaml").write_text("version: 1\nname: [\n")
    bad, good = results_of(tmp_path)
    assert bad["model"] is None and "broken.yaml:" in bad["error"]
    assert good["passed"]


def test_a_file_that_others_include_is_no_failure(write, tmp_path):
    path = write("timm:test_vit {all: 25}")
    path.write_text(
        path.read_text().replace("rules:", "include: parts.yaml\nrules:", 1).replace("{kind: lora, r: 2}", "l")
    )
    (tmp_path / "parts.yaml").write_text("version: 1\nname: parts\ntuners: {l: {kind: lora, r: 2}}\n")
    assert "1 of 1 as expected, in 1 rule file\n" in passed("rules", "test", tmp_path).stdout


def test_one_model_is_captured_once_for_all_files(write, tmp_path, monkeypatch):
    import utcompile

    path = write("timm:test_vit {all: 25}", "timm:test_resnet {mha: 0}", "timm:test_vit {mha: 6}")
    (tmp_path / "other.yaml").write_text(path.read_text())
    seen = []
    capture = utcompile.capture
    monkeypatch.setattr(
        utcompile, "capture", lambda model, *a, **k: seen.append(type(model)) or capture(model, *a, **k)
    )
    assert len(parsed("rules", "test", tmp_path)["results"]) == 6
    assert len(seen) == 2

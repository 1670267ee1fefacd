"""README and docs are true: their Python runs, their rule files load, their links and tables are right."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from support import models as zoo

import utcompile as utc
from utcompile.cli.rule_tests import run_tests
from utcompile.cli.sources import source_of
from utcompile.folding import base as folds
from utcompile.rules import library_patterns, shipped_rules
from utcompile.tuners import base

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line on which its text begins."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(2)) + 1, m[2]) for m in _BLOCK.finditer(text) if m[1] == language]


def build(name: str = "build") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ids(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_RULES = [page for page in PAGES if any("version: 1" in text for _, text in blocks(page, "yaml"))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=ids(WITH_PYTHON))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in order, in one namespace and a folder that has nothing but the page's own rule files."""
    monkeypatch.chdir(tmp_path)
    rule_files(page, tmp_path)
    for registry in (base, folds):
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, text in blocks(page, "python"):
        padded = "\n" * (line - 1) + text  # a failure then names the line of the page
        exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)


def rule_files(page: Path, folder: Path) -> dict[int, Path]:
    """The rule files of a page, written into a folder; by the line on which each begins.

    A first line `# shared/tuners.yaml` is the file's name, so that others can include it.
    """
    files = {}
    for line, text in blocks(page, "yaml"):
        if re.search(r"^version: 1", text, re.MULTILINE):
            name = re.match(r"# ([\w/]+\.yaml)\n", text)
            files[line] = folder / (name[1] if name else f"line_{line}.yaml")
            files[line].parent.mkdir(parents=True, exist_ok=True)
            files[line].write_text(text, encoding="utf-8")
    return files


@pytest.mark.parametrize("page", WITH_RULES, ids=ids(WITH_RULES))
def test_rule_files_load_and_find_what_they_say(page: Path, tmp_path: Path) -> None:
    files = rule_files(page, tmp_path)
    loaded = {line: utc.RuleSet.load(path) for line, path in files.items() if "rules:" in path.read_text()}
    included = {tmp_path / key for rules in loaded.values() for key in rules.included}
    assert set(files.values()) - included <= {rules.path for rules in loaded.values()}
    results = list(run_tests({f"{page.name}:{line}": rules for line, rules in loaded.items()}))
    assert [r["text"] for r in results if not r["passed"]] == []
    assert len(results) >= sum(len(entry.sites) for rules in loaded.values() for entry in rules.tests)


def test_every_rule_file_of_the_reference_is_a_whole_one() -> None:
    texts = [text for page in sorted((ROOT / "docs" / "rules").glob("*.md")) for _, text in blocks(page, "yaml")]
    assert [text for text in texts if not re.search(r"^version: 1", text, re.MULTILINE)] == []
    assert sum("tests:" in text for text in texts) >= 8


def test_links_and_generated_parts() -> None:
    assert build().check(write=False) == []


def test_checks_find_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build()
    page = tmp_path / "README.md"
    page.write_text(
        "[a](nowhere.md) [b](#no-heading) `rules/none.yaml`\n```python\nfrom utcompile.graph import info\n```\n<!-- generated: verbs -->\n<!-- end -->\n"
    )
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - Gone: gone.md\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGES", (page,))
    monkeypatch.setattr(module, "API", {"Some": ("capture", "errors.check_type", "errors.Gone")})
    monkeypatch.setattr(module, "FOLDS", {"fold_widen": ("widen",)})
    monkeypatch.setattr(importlib.import_module("utcompile.errors").check_type, "__doc__", None)
    problems = "\n".join(module.check(write=False))
    for part in (
        "nowhere.md leads nowhere",
        "names no heading",
        "no rules/none.yaml",
        "a generated part is out of date",
        "rules.schema.json: out of date",
        "the fold absorb_map is in no table",
        "the navigation lacks index.md",
        "the navigation names gone.md",
        "the public name utcompile.fold is missing",
        "utcompile.errors.check_type has no docstring",
        "there is no utcompile.errors.Gone",
        "utcompile.graph.info is not in the API reference",
    ):
        assert part in problems
    (tmp_path / "rules").mkdir()
    module.check(write=True)
    assert "utcompile train" in page.read_text()


def test_every_named_pattern_is_described() -> None:
    page = (ROOT / "docs" / "rules" / "patterns.md").read_text(encoding="utf-8")
    assert [name for name in library_patterns() if f"\n- `{name}`" not in page] == []


def test_links_of_the_repository_lead_to_pages_of_the_site() -> None:
    hooks = build("hooks")
    text = "[a](docs/rules/index.md#rules) [b](examples/vera.py) [c](https://x.org/a.md) [d](#here) ![e](docs/assets/icon.svg)"
    assert hooks._moved(text, ROOT / "README.md", "index.md") == (
        "[a](rules/index.md#rules) [b](files/examples/vera.py.md) [c](https://x.org/a.md) [d](#here) ![e](assets/icon.svg)"
    )
    text = "[a](../../CONTRIBUTING.md) [b](../errors.md) [c](../../examples/vera.py)"
    assert hooks._moved(text, ROOT / "docs/rules/match.md", "rules/match.md") == (
        "[a](../contributing.md) [b](../errors.md) [c](../files/examples/vera.py.md)"
    )
    assert ROOT / "examples" / "vera.py" in hooks._linked_files()
    assert hooks._bars("a `x \\| y`\n| `a \\| b` | c \\| d |\n") == "a `x \\| y`\n| `a | b` | c \\| d |\n"


@pytest.mark.full
@pytest.mark.parametrize("rules", sorted(shipped_rules()))
def test_rule_files_say_what_folding_does(rules: str) -> None:
    torch.manual_seed(0)
    model = _model_for(rules)
    tuned = utc.compile(model, rules, torch.randn(2, 3, 64, 64), verify="shapes")
    zoo.shake(tuned)
    _, report = utc.fold(tuned.eval())
    assert {s.status for s in report.sites} == set(utc.RuleSet.load(rules).folds)


def _model_for(rules: str) -> torch.nn.Module:
    if rules.startswith("scedit/"):
        return source_of(f"{ROOT}/rules/scedit/unet.py:classic").build(None, False, (3, 64, 64))
    if rules.startswith("convnet/") or rules in ("lora/all_conv", "conv/conv_adapter"):
        return timm.create_model("mobilenetv2_035", num_classes=3)
    return timm.create_model("test_vit", num_classes=3, img_size=64)


def test_the_quick_tests_exist() -> None:
    (text,) = re.findall(r"^QUICK := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [path.strip("'").partition("::")[::2] for path in text.replace("\\\n", " ").split()]
    rooms = {p.name for p in (ROOT / "tests").iterdir() if (ROOT / "utcompile" / p.name / "__init__.py").exists()}
    assert len(rooms) == 14 and rooms <= {Path(file).parts[1] for file, _ in named}
    for file, test in named:
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text()


def test_benchmarks_parse_and_list() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.__main__ import NAMES, line
        from benchmarks.measure import paired
    finally:
        sys.path.remove(str(ROOT))
    rows = paired("b", {"a": lambda: sum(range(100)), "b": lambda: sum(range(200))}, rounds=3)
    assert rows["a"].ratio == 1 and rows["b"].rounds == 3 and "| b | a |" in line(rows["a"])
    for name in NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)

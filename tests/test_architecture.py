"""The house that the design draws: who may import whom, and which names are public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import utcompile as utc

PACKAGE = Path(utc.__file__).parent
TESTS = Path(__file__).parent
ROOMS = {
    "ops": set(),
    "graph": {"ops"},
    "recording": {"graph", "ops"},
    "tuners": {"graph", "ops"},
    "rules": {"tuners", "ops"},
    "matching": {"rules", "graph", "tuners", "ops"},
    "rewrite": {"matching", "tuners", "graph", "rules", "ops"},
    "parts": {"recording", "rewrite", "matching", "rules", "graph"},
    "memory": {"rewrite", "tuners", "graph", "ops"},
    "folding": {"rewrite", "tuners", "graph", "ops"},
    "deploy": {"rewrite", "folding", "graph"},
    "train": {"rewrite", "memory"},
    "report": {"train", "folding", "matching", "tuners", "rules", "graph", "ops"},
}
EVERYWHERE = {"errors", "files", "modes", "plain_data", "text"}


def imports_of(path: Path) -> set[str]:
    """The rooms (or top-level modules) of utcompile that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "utcompile":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("utcompile.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        strangers = imports_of(path) - ROOMS[room] - {room} - EVERYWHERE
        assert not strangers, f"{path.relative_to(PACKAGE)} imports {strangers}"


def test_the_table_has_no_circle() -> None:
    left = dict(ROOMS)
    while left:
        free = [room for room, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def files_imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in it: inside functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    deeper = {f.rpartition(".")[0] for f in found if f in modules}  # `from utcompile.graph import info` may be the file
    return {f for f in found if f in modules and (f not in deeper or modules[f].name != "__init__.py")}


def test_no_circle_among_files() -> None:
    named = {p.relative_to(PACKAGE.parent).with_suffix(""): p for p in PACKAGE.rglob("*.py")}
    modules = {".".join(n.parts).removesuffix(".__init__"): p for n, p in named.items()}
    graph = nx.DiGraph((name, to) for name, p in modules.items() for to in files_imported(p, modules) if to != name)
    assert len(graph) > 200
    assert [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1] == []


def test_no_test_module_imports_another() -> None:
    """What tests share is in `tests/support`, so that no file's tests run with another's."""
    files = {p: p.read_text() for p in TESTS.rglob("*.py")}
    found = {
        p.name: re.findall(r"^ *(?:from|import) ((?:\w+\.)*test_\w+)", text, re.MULTILINE) for p, text in files.items()
    }
    assert len(found) > 60 and {name: modules for name, modules in found.items() if modules} == {}
    names = Counter(p.name for p in files if not (p.parent / "__init__.py").exists() and p.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []  # pytest imports them under these names
    # fuzz and suites are packages that test one thing each; what is in typing is read by mypy alone; the last is a command that makes the text beside it
    shared = {p.relative_to(TESTS) for p in files if not p.name.startswith(("test_", "conftest", "__"))}
    assert {p for p in shared if p.parts[0] not in ("support", "fuzz", "suites", "typing")} == {
        Path("graph/zoo_operations.py")
    }


def test_every_room_is_in_the_table() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert rooms == ROOMS.keys() | {"cli"}


def test_public_names() -> None:
    assert sorted(utc.__all__) == sorted(
        """CapturedModule CapturedParts ExportResult FoldReport OnnxModel PartsPlan Plan RuleSet TunedModule UtcError
        add_task capture capture_parts compile disable_tuners export_onnx fold load_peft load_task load_tuners match peft_rules
        register_fold register_operation register_tuner save_peft save_tuners set_task split_prefix""".split()
    )
    assert all(hasattr(utc, name) for name in utc.__all__)


def test_every_error_class_is_a_utc_error() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(b) in ("Exception", "ValueError") for b in node.bases
            ):
                assert node.name in {
                    "UtcError",
                    "Unfoldable",
                    "Differs",
                    "Unrecordable",
                    "_NeedsValues",
                }, f"{node.name} in {path}"


def test_no_name_hides_a_file() -> None:
    """`import utcompile.a.b as m` gives the file: no package exports a function, class or object under a file's name."""
    packages = [p.name for p in pkgutil.walk_packages(utc.__path__, "utcompile.") if p.ispkg]
    assert len(packages) >= 15
    hidden = []
    for name in ["utcompile", *packages]:
        package = importlib.import_module(name)
        for file in pkgutil.iter_modules(package.__path__):
            if not isinstance(getattr(package, file.name, importlib.import_module(name)), ModuleType):
                hidden.append(f"{name}.{file.name}")
    assert hidden == []


def test_rooms_are_modules() -> None:
    import utcompile.folding.proof as proof
    import utcompile.matching.engine as engine
    import utcompile.recording.verify as verify

    assert all(isinstance(module, ModuleType) for module in (proof, engine, verify))
    assert callable(utc.capture) and callable(utc.match) and callable(utc.fold)


def names_shown() -> set[tuple[str, str]]:
    """Module and name of all that documentation and examples import from the package."""
    pages = [
        *(TESTS.parent / "docs").rglob("*.md"),
        TESTS.parent / "README.md",
        *(TESTS.parent / "examples").glob("*.py"),
    ]
    text = "\n".join(p.read_text() for p in pages if p.name not in ("decisions.md", "changelog.md"))
    found = set()
    for module, names in re.findall(r"^from (utcompile[\w.]*) import \(?([\w, ]+)", text, re.MULTILINE):
        found |= {(module, name.split(" as ")[0].strip()) for name in names.split(",") if name.strip()}
    return found


def test_what_documentation_and_examples_import_is_public() -> None:
    shown = names_shown()
    assert len(shown) > 10
    private = [f"{m}.{n}" for m, n in sorted(shown) if n not in getattr(importlib.import_module(m), "__all__", ())]
    assert private == []

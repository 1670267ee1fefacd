"""`python -m benchmarks.house [CHECKOUT …]`: figures of the code itself, by its syntax trees.

For each checkout (this one by default): lines of the package, lines with `Any`, module-level collections of operation
names outside the table, comparisons with the name of an insertion form, accesses of `node.meta` by a string.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from utcompile.ops import ROWS
from utcompile.tuners import FORMS

_MOSTLY = 0.5  # from which share of its words on a collection is one of operation names


def main() -> None:
    """Print a table: one row per figure, one column per checkout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--list", action="store_true", help="say where each is found in the last checkout")
    options = parser.parse_args()
    found = [figures(folder / "utcompile") for folder in options.checkouts]
    for name in found[0]:
        print(f"{name:45}", *(f"{len(f[name]):8,}" for f in found))
    if options.list:
        for name, places in found[-1].items():
            print(f"\n{name}\n  ", "\n   ".join(places) if len(places) < 200 else "…", sep="")


def figures(package: Path) -> dict[str, list[str]]:
    """For each figure, the places `file:line: text` that it counts."""
    counts: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
        "collections of operation names": _collections,
        "comparisons with the name of a form": _forms,
        "accesses of node.meta by a string": _meta_keys,
    }
    result: dict[str, list[str]] = {"lines of the package": [], "lines with Any": []} | {name: [] for name in counts}
    for path in sorted(package.rglob("*.py")):
        where, text = path.relative_to(package), path.read_text()
        lines = text.splitlines()
        result["lines of the package"] += [f"{where}:{i}" for i in range(len(lines))]
        result["lines with Any"] += [f"{where}:{i}: {v}" for i, v in enumerate(lines, 1) if re.search(r"\bAny\b", v)]
        for name, count in counts.items():
            if name.startswith("coll") and where.parts[0] == "ops":  # the table itself
                continue
            at = sorted({n.lineno for n in count(ast.parse(text))})  # type: ignore[attr-defined]
            result[name] += [f"{where}:{i}: {lines[i - 1].strip()}" for i in at]
    return result


def _collections(tree: ast.AST) -> Iterator[ast.AST]:
    """Assignments to a module's or a class's name, of two words or more that are mostly names of operations."""
    for body in [n.body for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef))]:
        for node in body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if value is None or not any(map(_holds_several, ast.walk(value))):
                continue
            words = [w for n in ast.walk(value) if _is_text(n) for w in n.value.split()]  # type: ignore[attr-defined]
            names = {w for w in words if w in ROWS}
            if len(names) > 1 and len([w for w in words if w in names]) >= _MOSTLY * len(words):
                yield node


def _holds_several(node: ast.AST) -> bool:
    splits = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split"
    return splits or isinstance(node, (ast.Set, ast.Tuple, ast.List, ast.Dict))


def _forms(tree: ast.AST) -> Iterator[ast.AST]:
    """Comparisons of something that has `form` in its name, and cases of a `match`, with the name of a form."""
    for node in ast.walk(tree):
        is_case = isinstance(node, ast.MatchValue) and _is_text(node.value) and node.value.value in FORMS  # type: ignore[attr-defined]
        if is_case or (isinstance(node, ast.Compare) and _compares_a_form(node)):
            yield node


def _compares_a_form(node: ast.Compare) -> bool:
    words = [n.value for side in node.comparators for n in ast.walk(side) if _is_text(n)]  # type: ignore[attr-defined]
    return "form" in ast.unparse(node.left) and any(w in FORMS for w in words)


def _meta_keys(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Attribute(attr="meta"), slice=ast.Constant(value=str())):
                yield node
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="meta")), args=[ast.Constant(value=str()), *_]):
                yield node
            case ast.Compare(left=ast.Constant(value=str()), comparators=[ast.Attribute(attr="meta")]):
                yield node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


if __name__ == "__main__":
    main()

"""`utcompile inspect`: what is in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.early import check_example, check_model
from utcompile.cli.options import (
    Example,
    InputShapes,
    InputSize,
    Json,
    Model,
    NumClasses,
    Within,
    examples,
    given,
    size_of,
)

if TYPE_CHECKING:
    from rich.table import Table

    from utcompile.cli.tree import Entry
    from utcompile.graph import GraphView
    from utcompile.recording import CapturedModule

EXAMPLES = examples(
    "utcompile inspect -m timm:resnet50",
    "utcompile inspect -m timm:swin_tiny_patch4_window7_224 --all",
    "utcompile inspect -m torchvision:deeplabv3_resnet50 --within backbone",
    "utcompile inspect -m net.py:make --input-size 1,28,28 --json",
)


def inspect(
    model: Model,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    example: Example = None,
    input_shapes: InputShapes = None,
    within: Within = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also layout operations, identities and each of several modules alike.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a model's operations, shapes and layouts, and the named patterns found in it. Weights are random."""
    check_model(model)
    check_example(example, input_shapes)
    wanted = size_of(input_size)
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.parts import captured_parts

    choice = ModelChoice(model, num_classes, input_size=wanted, **given(example, input_shapes))
    output.progress(f"capturing {choice.spec}")
    found = captured_parts(choice.build(), choice.inputs(), within or ())
    size = list(choice.preset().input_size) if choice.takes_images else None
    shown = {path: _shown(part, path, everything=everything, json=json) for path, part in found.items()}
    if json:
        parts = {"parts": shown} if within else shown[""]
        output.emit({"model": choice.spec, "input_size": size, **parts})


def _shown(captured: CapturedModule, path: str, *, everything: bool, json: bool) -> dict[str, object]:
    """One graph as plain data for JSON; else it is printed."""
    from utcompile.cli.tree import module_tree
    from utcompile.graph import GraphView

    view = GraphView(captured.graph, captured)
    tree, patterns = module_tree(view, everything=everything), found_patterns(view)
    operations = Counter(op.name for node, op in view.operations.items() if node.op.startswith("call"))
    if json:
        report = {k: getattr(captured.report, k) for k in captured.report.__dataclass_fields__}
        report["opaque"] = [vars(o) for o in captured.report.opaque]
        found = {"patterns": patterns, "operations": operations, "report": report, "tree": tree.to_dict()}
        return {"parameters": tree.parameters, "flops": tree.flops, **found}
    console = output.stdout()
    if path:
        console.print(f"part {path}", style="bold")
    console.print(_tree_table(tree))
    console.print()
    console.print(_pattern_table(patterns))
    console.print(
        f"\n{tree.parameters:,} parameters, {tree.flops / 1e9:.3g} GFLOPs at batch 1; {captured.report}", soft_wrap=True
    )
    return {}


def found_patterns(view: GraphView) -> dict[str, list[str]]:
    """Each named pattern of the library, with the module paths of its matches in graph order."""
    from utcompile.graph import origin_of, place_of
    from utcompile.matching import Engine
    from utcompile.rules import library_patterns

    library = library_patterns()
    engine = Engine(view, library)
    found: dict[str, list[str]] = {}
    for name, pattern in library.items():
        engine.start()
        assigned = {t for s in pattern.spellings for step in s.steps for t in step.targets}
        found[name] = []
        for anchor in engine.anchors(pattern):
            bindings = next(iter(engine.solve(pattern, anchor)), None)
            if bindings is None:
                continue
            free = {node for key, node in bindings.items() if key not in assigned}
            nodes = [node for key, node in bindings.items() if key in assigned and node not in free]
            scopes = [(*(frame.path for frame in origin_of(n).scope), place_of(n)) for n in nodes or [anchor]]
            shared = [paths[0] for paths in zip(*scopes, strict=False) if len(set(paths)) == 1]
            found[name].append(shared[-1] if shared else "")
    return found


def _tree_table(tree: Entry) -> Table:
    from rich.table import Table
    from rich.text import Text

    from utcompile.cli.tree import rows

    table = Table("module", "operation", "output", "channels", box=None, pad_edge=False, header_style="bold")
    table.add_column("parameters", justify="right")
    table.add_column("FLOPs", justify="right")
    for depth, entry in rows(tree):
        name = entry.name or ("" if depth else "(root)")
        if entry.last:
            name = f"{name} … {entry.last}, alike"
        label = Text("  " * depth + name, "bold" if entry.children else "")
        operation = Text(entry.operation, "dim" if entry.children else "cyan")
        size = f"{entry.parameters:,}" if entry.parameters else ""
        share = f"{100 * entry.flops / tree.flops:.1f} %" if entry.flops and tree.flops else ""
        style = "dim" if entry.children else ""
        table.add_row(label, operation, entry.shape, entry.layout, Text(size, style), Text(share, style))
    return table


def _pattern_table(patterns: dict[str, list[str]]) -> Table:
    from rich.table import Table

    table = Table("pattern", "found", "at", box=None, pad_edge=False, header_style="bold")
    for name, places in patterns.items():
        table.add_row(name, str(len(places)), _shortened(places))
    return table


def _shortened(places: Sequence[str]) -> str:
    named = list(dict.fromkeys(place or "(root)" for place in places))
    return ", ".join(named) if len(named) <= 4 else f"{named[0]}, {named[1]}, … {named[-1]}"

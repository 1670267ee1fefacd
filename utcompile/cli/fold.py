"""`utcompile fold`: the tuners of a run become part of its weights, with the report."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.early_runs import check_new_folder, check_run
from utcompile.cli.fold_lines import report_lines, sibling_named
from utcompile.cli.folders import check_apart, check_free, whole_folder
from utcompile.cli.options import Json, OptionalModel, RunFolder, Trust, Weights, examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from utcompile.cli.runs import Run
    from utcompile.folding import FoldReport
    from utcompile.graph import UtcGraphModule

    Example = tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]

EXAMPLES = examples(
    "utcompile fold run/ -o folded/",
    "utcompile fold run/ -o folded/ --strict --json",
    "utcompile fold run/ -o folded/ --batch-norms --constants",
    "utcompile fold run/ -o folded/ -m net.py:make --overwrite",
)


def fold(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tuner cannot be folded.")] = False,
    float32: Annotated[
        bool, typer.Option("--float32", help="Layers whose half precision would lose a tuner compute in float32.")
    ] = False,
    constants: Annotated[
        bool, typer.Option("--constants", help="Compute once what the base computes from parameters alone.")
    ] = False,
    batch_norms: Annotated[
        bool, typer.Option("--batch-norms", help="Fold the base's BatchNorms into the layers before them.")
    ] = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Fold tuners of quantised weights into floating-point ones.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")] = False,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Fold a run's tuners into its weights; write a model that loads without utcompile.

    FOLDER/model.pt2 is for torch.export.load, FOLDER/report.json says what became of each tuner, and, if the original
    architecture has a place for every folded tensor, FOLDER/model.safetensors is its state dict.
    """
    check_run(run, model, weights, trust=trust)
    check_apart(out, run)
    check_free(out, overwrite=overwrite)
    check_new_folder(out)
    from utcompile.cli.runs import open_run

    opened = open_run(run, model, weights, trust)
    output.progress(f"folding {len(opened.whole.sites)} tuners")
    options = {"float32": float32, "constants": constants, "batch_norms": batch_norms, "dequantize": dequantize}
    report, files = fold_run(opened, out, strict=strict, **options)
    why_not = "" if report.is_original else no_checkpoint(report)
    if json:
        output.emit({**report.to_dict(), "files": [str(out / name) for name in files], "no_checkpoint": why_not})
        return
    output.say(report_lines(report))
    output.say(f"written: {', '.join(str(out / name) for name in files)}")
    if why_not:
        output.say(why_not)


def no_checkpoint(report: FoldReport) -> str:
    """Why there is no state dict of the original architecture."""
    more = f" and {len(report.renamed) - 3} more" if len(report.renamed) > 3 else ""
    return (
        f"no model.safetensors: it would not fit the original architecture, for {', '.join(report.renamed[:3])}{more}"
    )


def fold_run(opened: Run, out: Path, *, strict: bool, **options: bool) -> tuple[FoldReport, list[str]]:
    """Fold, and write the folder; returns the report and the names of the files."""
    import utcompile as utc
    from utcompile.cli.parts import save_program_of_parts
    from utcompile.graph import UtcGraphModule

    with sibling_named(opened.whole.ruleset.name):
        folded, report = utc.fold(opened.tuned, strict=strict, check_inputs=None, **options)
    with whole_folder(out) as draft:
        if isinstance(folded, UtcGraphModule):
            save_program(folded, opened.example, draft / "model.pt2")
        elif why_not := save_program_of_parts(folded, opened.example, draft / "model.pt2"):
            output.progress(why_not)
        text = json_module.dumps({"run": opened.choice.as_dict(), **report.to_dict()}, indent=2, default=str)
        (draft / "report.json").write_text(text + "\n", encoding="utf-8")
        if report.sites and report.is_original:
            save_original(opened, folded, draft / "model.safetensors")
        files = sorted(file.name for file in draft.iterdir())
    return report, files


def save_program(folded: UtcGraphModule, example: Example, path: Path) -> None:
    """Write the folded module as a program of `torch.export`, with a dynamic batch."""
    import torch

    batch = torch.export.Dim("batch")
    inputs = [n.target for n in folded.graph.nodes if n.op == "placeholder"]
    args = example if isinstance(example, tuple) else tuple(example[str(name)] for name in inputs)
    shapes: dict[str, object] = {
        str(name): {0: batch} if name in folded.batch_inputs else None for name in inputs[: len(args)]
    }
    with torch.no_grad():
        program = torch.export.export(folded, args, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _outputs(module: torch.nn.Module, example: Example) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    result = module(*example) if isinstance(example, tuple) else module(**example)
    result = dict(result) if hasattr(result, "keys") else result
    return [leaf for leaf in tree_leaves(result) if hasattr(leaf, "abs") and leaf.is_floating_point()]


def save_original(opened: Run, folded: torch.nn.Module, path: Path) -> None:
    """Write the folded weights under the original architecture's names, if that model then computes the same."""
    import torch
    from safetensors.torch import save_file

    from utcompile.errors import UtcError

    model, state = opened.choice.build(), folded.state_dict()
    names = model.state_dict().keys()
    missing = sorted(names - state.keys())
    if missing:
        raise UtcError(
            "the folded model lacks tensors of the original", why=", ".join(missing[:3]), code="fold/not-proven"
        )
    # `state_dict` names a tied tensor twice; safetensors needs separate memory for each name
    tensors = {name: state[name].detach().clone().contiguous() for name in names}
    model.load_state_dict(tensors)
    with torch.no_grad():
        expected, found = _outputs(folded, opened.example), _outputs(model, opened.example)
    if not all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())) for a, b in zip(found, expected, strict=True)
    ):
        raise UtcError(
            "the original model with the folded weights does not compute what the folded one computes",
            code="fold/not-proven",
        )
    save_file(tensors, path)

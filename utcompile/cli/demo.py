"""`utcompile demo`: the whole job on the embedded model and digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.early_runs import check_new_folder
from utcompile.cli.folders import check_free
from utcompile.cli.options import Json, Seed, examples

EXAMPLES = examples("utcompile demo", "utcompile demo -o digits-demo --seed 1", "utcompile demo --json > demo.json")
REPORT = "demo.json"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")] = Path(
        "demo-output"
    ),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Tune EfficientNet-Lite0 on 5,000 handwritten digits, fold, export, prove; no network, some two minutes.

    A linear probe is trained first, for comparison. FOLDER contains the three ONNX files, the run and the digits; a
    FOLDER of an earlier demo is replaced.
    """
    check_free(out, overwrite=(out / REPORT).is_file(), flag="delete it")
    check_new_folder(out)
    from utcompile.cli.demo_steps import run_demo
    from utcompile.cli.demo_table import table

    report = run_demo(out, seed=seed)
    if json:
        output.emit(report)
        return
    output.stdout().print(table(report))
    output.say(f"the proven file: {report['files']['folded']}   the run: {report['files']['run']}")
    output.say(f"how the run went: {report['files']['report']}")
    output.say(f"next: utcompile explain -m demo:efficientnet_lite0 -r {report['rules']} --input-size 64", "dim")

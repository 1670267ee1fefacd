"""`utcompile bench`: latency of a run, or of ONNX files, measured pairwise."""

from __future__ import annotations

import csv as csv_module
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.drawings import check_targets
from utcompile.cli.early_runs import check_providers, check_source
from utcompile.cli.options import Json, OptionalModel, Providers, Trust, Weights, examples, numbers_of

if TYPE_CHECKING:
    from rich.table import Table

    from utcompile.deploy.benching import Timed

EXAMPLES = examples(
    "utcompile bench run/",
    "utcompile bench run/ --batch-sizes 1,8 --threads 1,2 --compiled --csv times.csv --plot times.svg",
    "utcompile bench base.onnx folded.onnx pets.onnx --rounds 50 --json",
)


def bench(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|FILE...", help="One run, or ONNX files.")],
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", metavar="N,N,…", help="Samples per call.")] = "1,8",
    threads: Annotated[str, typer.Option("--threads", metavar="N,N,…", help="Threads within an operation.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; each runs everything once.")] = 20,
    compiled: Annotated[bool, typer.Option("--compiled", help="PyTorch with torch.compile, too.")] = False,
    providers: Providers = "cpu",
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table here, too.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the table.")] = None,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure latency: base, tuned, folded and live of a run, in PyTorch and ONNX Runtime; or ONNX files.

    Medians with quartiles. Each round runs everything once, and ratios are taken within a round, because the speed of a
    machine drifts.
    """
    sizes, counts = numbers_of(batch_sizes, "--batch-sizes"), numbers_of(threads, "--threads")
    folders = [source for source in sources if source.is_dir()]
    if folders and len(sources) > 1:
        raise typer.BadParameter("give one run, or ONNX files", param_hint="RUN|FILE")
    check_providers(providers)
    check_targets(csv, plot)
    for source in sources:
        check_source(source, model, weights, trust=trust)
    from utcompile.cli.runs import open_run
    from utcompile.deploy import providers_named
    from utcompile.deploy.benching import bench_files, bench_run
    from utcompile.files import replace_file, reported

    chosen = providers_named(providers)
    if folders:
        opened = open_run(folders[0], model, weights, trust)
        with tempfile.TemporaryDirectory() as folder:
            output.progress("folding and exporting")
            rows = bench_run(
                opened.one_graph("what is measured")[0],
                opened.example,
                folders[0],
                Path(folder),
                sizes,
                counts,
                rounds,
                chosen,
                compiled=compiled,
            )
    else:
        rows = bench_files(sources, sizes, counts, rounds, chosen)
    if csv is not None:
        with reported("the table cannot be written", csv):
            replace_file(csv, _csv(rows).encode())
    if plot is not None:
        from utcompile.cli.bench_plot import svg_of

        with reported("the plot cannot be written", plot):
            replace_file(plot, svg_of(rows).encode())
    if json:
        output.emit([row.to_dict() for row in rows])
    else:
        output.stdout().print(_table(rows))


def _csv(rows: list[Timed]) -> str:
    text = io.StringIO()
    writer = csv_module.DictWriter(text, list(rows[0].to_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue()


def _table(rows: list[Timed]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for head in ("what", "batch", "threads", "median, ms", "quartiles", "of the first", "MB", "memory, MB"):
        table.add_column(head, justify="left" if head == "what" else "right")
    for row in rows:
        spread = f"{row.lower:.2f} to {row.upper:.2f}"
        size = f"{row.megabytes:.1f}" if row.megabytes else ""
        memory = f"{row.memory:.1f}" if row.memory is not None else ""
        figures = (f"{row.median:.2f}", spread, f"{row.ratio:.3f}", size, memory)
        table.add_row(row.what, str(row.batch), str(row.threads), *figures)
    return table

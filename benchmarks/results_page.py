"""`docs/results.md`, made of the runs in `results-output/`: what each method reaches here, and in the paper."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utcompile.report.charts import WIDE
from utcompile.report.comparison import Comparison, Result, Row, cells, plots_of
from utcompile.report.page import asset
from utcompile.report.svg import DARK, LIGHT, colours

# ViT-B/16 with ImageNet-21k weights on CIFAR-100: arXiv 2303.00690 and 2310.19859, their own tables
PAPER: Mapping[str, float] = {
    "probe/linear": 85.95,
    "full": 89.12,
    "res_tuning/bypass": 89.33,
    "prefix/prefix": 90.95,
    "adapter/pfeiffer": 91.80,
    "u_tuning/single_block": 92.13,
    "u_tuning/single_ffn": 92.19,
    "u_tuning/dual": 92.57,
    "u_tuning/tri": 92.75,
}
_HEADS = ("method", "test accuracy", "to the probe", "parameters", "kept for backward", "time", "folded", "lr", "seeds")
_INTRO = """\
# Results

`make results` makes this page. It trains for at most 15 minutes per call, and goes on where it stopped. Learning rates
are tuned on the validation data, with the same budget for each method. The best epoch is chosen on the validation data,
and the tables show accuracy on test data that chose nothing. Every method has the same seeds. They decide the start of
the tuners and of the head, and the order of the samples. A second run of a part on the same machine gives the same
accuracies, to the last digit (`tests/benchmarks/test_results_again.py`).

**Read with care.** The data sets and the budgets are small: they fit two CPU cores. The ± is one standard deviation
over the seeds. Differences to the linear probe are paired by seed, with their range. Where the ranges of two methods
overlap, these runs do not say which is better. Three seeds can show a gap of several points, and no gap below the ±.
Learning rates come from a short list, so a method may have a better one. Times are those of a busy machine.
"""
_RECIPES = """\
## The paper's own runs

These are the paper's settings (ViT-B/16 with ImageNet-21k weights, 224 pixels), for a machine that has the data and the
weights. Each data set is a folder of class folders:

```text
RULES=probe/linear,adapter/pfeiffer,prefix/prefix,u_tuning/single_mha,u_tuning/single_ffn,u_tuning/single_block
RULES=$RULES,u_tuning/dual,u_tuning/tri,res_tuning/dual,res_tuning/bypass,full
for set in cifar100 cub nabirds flowers cars dogs; do
  utcompile compare -m timm:vit_base_patch16_224.augreg_in21k -d $set/ -r $RULES --seeds 3 \\
    --epochs 100 --batch-size 64 --lr 1e-4,1e-3,5e-3 --weight-decay 1e-4 -o results/$set/
done
```

The paper does not state its optimizer, learning rates and epochs, so these are ours. They have not been run here.
"""


def write_page(
    page: Path,
    out: Path,
    titles: Mapping[str, str],
    methods: Mapping[str, Sequence[str]],
    notes: Mapping[str, str] | None = None,
    commonest: Mapping[str, float] | None = None,
) -> None:
    """Write the page and its plots.

    Args:
        out: where the runs are.
        titles: of the parts.
        methods: of the parts, those without a run too.
        notes: of the parts, below their tables.
        commonest: the share of the commonest class in the test data of the parts.
    """
    found = {name: read_part(out / name, methods[name]) for name in titles}
    done = {name: part for name, part in found.items() if part is not None and part.results}
    text = [_INTRO, _ranking(done, titles)]
    for name, part in done.items():
        known = [_no_better(part.rows(), (commonest or {}).get(name)), (notes or {}).get(name, "")]
        note = "\n\n".join(filter(None, known))
        text.append(_part(titles[name], note, part, page.parent / "assets" / "results" / f"{name}.svg", methods[name]))
    missing = [titles[name] for name in titles if name not in done]
    if missing:
        text.append("## Not run yet\n\n" + "\n".join(f"- {title}" for title in missing) + "\n")
    text += [_RECIPES, _counts(out)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(filter(None, text)), encoding="utf-8")


def read_part(folder: Path, methods: Sequence[str]) -> Comparison | None:
    """The results of a part, of methods whose runs are not complete too; each with its best rate."""
    path = folder / "comparison.json"
    if not path.is_file():
        return None
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    seeds = known["settings"]["seeds"]
    every: dict[str, list[Result]] = {}
    for file in sorted(folder.glob("runs/*/*/result.json")):
        entry = json.loads(file.read_text(encoding="utf-8"))
        every.setdefault(entry["method"], []).append(Result.of(entry))
    results: list[Result] = []
    for method in methods:
        runs = every.get(method, [])
        first = {r.lr: r.validation for r in runs if r.seed == seeds[0]}
        if set(first) != set(known["settings"]["lrs"]):
            continue  # its rate is not chosen yet
        best = max(known["settings"]["lrs"], key=first.__getitem__)
        results += sorted((r for r in runs if r.lr == best), key=lambda r: r.seed)
    return Comparison(
        tuple(results),
        known["settings"],
        known.get("left_out", {}),
        known.get("latency_ms", {}),
        "test",
        engine=known.get("engine", ""),
    )


def _part(title: str, note: str, part: Comparison, picture: Path, methods: Sequence[str]) -> str:
    rows = part.rows()
    settings = part.settings
    about = (
        f"{settings['model']}. {settings['data']}. {settings['epochs']} epochs, batches of {settings['batch_size']}, "
        f"learning rates {', '.join(f'{lr:g}' for lr in settings['lrs'])}.\n"  # type: ignore[attr-defined]
    )
    lines = [f"## {title}\n", about, _table(rows)]
    if part.engine:
        lines.append(f"Folded: latency of the folded model. {part.engine}\n")
    if any(row.is_shared for row in rows):
        lines.append("`*` trained on values of one frozen forward of the backbone.\n")
    lines += [f"{note}\n"] if note else []
    refused = [f"`{name}` ({why.partition(':')[0]})" for name, why in part.left_out.items()]
    waiting = [f"`{m}`" for m in methods if m not in part.left_out and all(r.method != m for r in part.results)]
    if refused:
        lines.append(f"Do not fit this model: {', '.join(refused)}.\n")
    if waiting:
        lines.append(f"Not run yet: {', '.join(waiting)}.\n")
    plots = plots_of(rows)
    if plots:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(standalone(plots) + "\n", encoding="utf-8")
        lines.append(f"![Accuracy over parameters, memory, time and latency](assets/results/{picture.name})\n")
    return "\n".join(lines)


def _no_better(rows: Sequence[Row], share: float | None) -> str:
    """What always the same answer would reach, and the methods that are no better."""
    if share is None:
        return ""
    found = [f"`{row.method}`" for row in rows if row.value.mean < share + max(0.01, row.value.deviation or 0.0)]
    text = f"The commonest class is {100 * share:.1f} % of the test data."
    return f"{text} No better than that: {', '.join(found)}." if found else text


def _table(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(_HEADS)} |", f"|---|{'--:|' * (len(_HEADS) - 1)}"]
    for row in rows:
        first, *rest = cells(row)
        lines.append(f"| `{first}` | {' | '.join(rest)} | {len(row.seeds)} |")
    return "\n".join(lines) + "\n"


def _ranking(parts: Mapping[str, Comparison], titles: Mapping[str, str]) -> str:
    """The paper's accuracies next to ours, in the paper's order."""
    if not parts:
        return ""
    ours = {name: {row.method: row for row in part.rows()} for name, part in parts.items()}
    heads = ["method", "paper, CIFAR-100", *(titles[name] for name in parts)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for method, value in sorted(PAPER.items(), key=lambda item: item[1]):
        found = [cells(rows[method])[1] if method in rows else "" for rows in ours.values()]
        lines.append(f"| `{method}` | {value:.2f} | {' | '.join(found)} |")
    note = (
        "The paper's figures are for ViT-B/16 with ImageNet-21k weights on CIFAR-100 (arXiv 2303.00690, 2310.19859); "
        "ours are for other models and data, so only the order can be compared.\n"
    )
    said = "\n".join(_said(titles[name], rows) for name, rows in ours.items())
    return "\n".join(["## The paper's ranking, and ours\n", note, *lines, "", said, ""])


def _said(title: str, rows: Mapping[str, Row]) -> str:
    """Where the order repeats: pairs of methods whose ranges do not overlap, compared with the paper's order."""
    known = sorted((m for m in PAPER if m in rows and len(rows[m].seeds) > 1), key=PAPER.__getitem__)
    same, other, open_ = [], [], 0
    for i, low in enumerate(known):
        for high in known[i + 1 :]:
            a, b = rows[low].value, rows[high].value
            if a.most < b.least:
                same.append((low, high))
            elif b.most < a.least:
                other.append(f"`{low}` is above `{high}` here")
            else:
                open_ += 1
    total = len(same) + len(other) + open_
    if not total:
        return f"- **{title}**: fewer than two of the paper's methods have several seeds yet."
    against = f" Not: {'; '.join(other)}." if other else ""
    decided = (
        f"{len(same)} have the paper's order with ranges that do not overlap, {len(other)} have the opposite order"
    )
    return (
        f"- **{title}**: of {total} pairs of the paper's methods, {decided}, and {open_} are not decided by these "
        f"seeds.{against}"
    )


def _counts(out: Path) -> str:
    path = out / "counts.json"
    if not path.is_file():
        return ""
    rows = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "Parameters of these rules on ViT-B/16 with 100 classes, and the loss of one step on random images with random "
        "weights (`python -m benchmarks.results --part counts`; every trained parameter gets a gradient):\n"
    ]
    lines += ["| rules | parameters, with the head | the paper prints | loss of one step |", "|---|--:|--:|--:|"]
    lines += [f"| `{r['rules']}` | {r['parameters']:,} | {r['paper']} | {r['loss']:.3f} |" for r in rows]
    return "\n".join(lines) + "\n"


def standalone(charts: Sequence[str]) -> str:
    """Charts below one another, as one SVG file that follows the reader's theme."""
    width, height = WIDE + 14, 6 + max(float(re.search(r'height="([\d.]+)"', chart)[1]) for chart in charts)  # type: ignore[index]
    css = asset("page.css")
    rules = "".join(line for line in css.splitlines() if line.startswith(".chart"))
    style = f"svg{{{colours(LIGHT)}}}@media(prefers-color-scheme:dark){{svg{{{colours(DARK)}}}}}{rules}"
    style += "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    placed = "".join(
        chart.replace("<svg ", f'<svg x="{(i % 2) * width}" y="{(i // 2) * height:g}" ', 1)
        for i, chart in enumerate(charts)
    )
    wide, high = min(2, len(charts)) * width, (len(charts) + 1) // 2 * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high:g}" width="{wide}" height="{high:g}">'
        f'<style>{style}</style><rect width="{wide}" height="{high:g}" fill="var(--page)"/>{placed}</svg>'
    )

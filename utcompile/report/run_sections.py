"""`run_page`: how a run went, as one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from utcompile.folding import FoldReport
from utcompile.matching import PlanData
from utcompile.matching.cost import plan_cost
from utcompile.report.charts import Series, line_chart
from utcompile.report.page import Section, graph_sections, page
from utcompile.report.predictions import Predictions, Sample
from utcompile.text import amount, percent

_MOST_CLASSES = 24  # in the table of confusion; of more, the pairs that are confused most
_SHARES = ("accuracy", "f1", "iou")
_INNER = ("epoch", "seconds", "lr", "train_loss", "validation_loss")


@dataclass(frozen=True)
class Speed:
    """The latency of one model: median and quartiles in milliseconds, and the ratio to the first one."""

    name: str
    median: float
    lower: float
    upper: float
    ratio: float


@dataclass(frozen=True)
class RunFacts:
    """What a page says of a run.

    Attributes:
        title: the run's folder, or what else names it.
        summary: names and values of the first lines.
        history: one entry per epoch.
        plan: what was inserted; by path, where parts of the model are tuned.
        parameters: all of the model with its tuners.
        checkpoint: bytes of the saved tuners; None where nothing is saved.
        predictions: on the validation data; None for a task without classes.
        speeds: latencies, and what measured them.
        fold: the report; or, as a text, why there is none.
        outside: parameters that train outside of the parts.
    """

    title: str
    summary: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    plan: PlanData | Mapping[str, PlanData]
    parameters: int
    checkpoint: int | None = None
    predictions: Predictions | None = None
    speeds: Sequence[Speed] = ()
    engine: str = ""
    fold: FoldReport | str = ""
    notes: Sequence[str] = field(default=())
    outside: int = 0

    @property
    def plans(self) -> Mapping[str, PlanData]:
        """The plan of each part by its path; of a whole model as one graph by the empty path."""
        return self.plan if isinstance(self.plan, Mapping) else {"": self.plan}


def run_page(facts: RunFacts) -> str:
    """The page of a run."""
    sections = [_summary(facts), _curves(facts), _cost(facts)]
    if facts.speeds:
        sections.append(_latency(facts))
    sections.append(_folding(facts.fold))
    if facts.predictions is not None:
        sections += [_confusion(facts.predictions)] if facts.predictions.pairs else []
        sections.append(_samples(facts.predictions))
    sections += graph_sections(facts.plans)
    return page(facts.title, sections)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int, classes: str = "") -> str:
    """An HTML table; its last `numbers` columns are numbers. Cells are text, not HTML."""
    left = len(heads) - numbers

    def cell(tag: str, text: str, column: int) -> str:
        return f"<{tag}{' class=number' if column >= left else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", text, i) for i, text in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', text, i) for i, text in enumerate(row))}</tr>" for row in rows)
    return f"<table{f' class={classes}' if classes else ''}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts_list(facts: Mapping[str, str]) -> str:
    """Names with values next to one another."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
        + "</dl>"
    )


def _summary(facts: RunFacts) -> Section:
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in facts.notes)
    return Section("summary", "Summary", facts_list(facts.summary) + notes, wide=True)


def _curves(facts: RunFacts) -> Section:
    history = facts.history
    losses = [("training", "train_loss"), ("validation", "validation_loss")]
    charts = [_chart("loss", history, losses)]
    for key in dict.fromkeys(k for entry in history for k in entry if k.startswith("validation_") and k not in _INNER):
        name = key.removeprefix("validation_").replace("_", " ")
        is_share = any(word in key for word in _SHARES)
        charts.append(_chart(name, history, [("validation", key)], "{:.1%}" if is_share else "{:.3g}"))
    charts.append(_chart("learning rate", history, [("at the end of an epoch", "lr")], "{:.3g}"))
    known = f'<div class="charts">{"".join(charts)}</div>' if any(charts) else "<p>No figure of this run is finite.</p>"
    keys = [k for k in history[-1] if k != "epoch"]
    rows = [[str(int(e["epoch"])), *(f"{e[k]:.4g}" if k in e else "" for k in keys)] for e in history]
    heads = ["epoch", *(k.replace("_", " ") for k in keys)]
    numbers = f"<details><summary>all numbers</summary>{table(heads, rows, len(heads))}</details>"
    return Section("curves", "Curves", known + numbers, wide=True)


def _chart(
    title: str, history: Sequence[Mapping[str, float]], lines: Sequence[tuple[str, str]], form: str = "{:.3g}"
) -> str:
    known = [
        Series(name, [e.get(key, float("nan")) for e in history])
        for name, key in lines
        if any(key in e for e in history)
    ]
    return line_chart(title, known, form) if known else ""


def _confusion(found: Predictions) -> Section:
    title = f"Confusion: {found.accuracy or 0:.2%} of {found.samples:,} right"
    pairs = sorted(((number, i, j) for (i, j), number in found.pairs.items() if i != j), reverse=True)
    names = (*found.names, "no class")
    most = table(["true", "predicted", "samples"], [[names[i], names[j], f"{n:,}"] for n, i, j in pairs[:8]], 1)
    most = most if pairs else "<p>Every sample is right.</p>"
    if len(found.names) > _MOST_CLASSES:
        return Section("confusion", title, f'<p class="soft">The pairs that are confused most.</p>{most}')
    return Section("confusion", title, _matrix(found) + most)


def _matrix(found: Predictions) -> str:
    shown = len(found.names) + any(row[-1] for row in found.confusion)
    names = (*found.names, "none")[:shown]
    head = "".join(map(_class_head, names))
    rows = []
    for i, counts in enumerate(found.confusion):
        total = max(1, sum(counts))
        cells = []
        for j, number in enumerate(counts[:shown]):
            colour = "trained" if i == j else "tuned"
            share = round(100 * number / total)
            shade = (
                f"background:color-mix(in srgb,var(--{colour}) {max(6, share * 0.7):.0f}%,transparent)"
                if number
                else ""
            )
            hint = f"{found.names[i]} predicted as {names[j]}: {number} of {total}"
            cells.append(f'<td style="{shade}" title="{escape(hint)}">{number or "·"}</td>')
        rows.append(f"<tr>{_class_head(found.names[i])}{''.join(cells)}</tr>")
    return (
        f'<table class="confusion"><thead><tr><th>true \\ '
        f"predicted</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _class_head(name: str) -> str:
    return f'<th dir=auto title="{escape(name)}">{escape(name)}</th>'


def _samples(found: Predictions) -> Section:
    parts = []
    for title, samples in (("Worst", found.worst), ("Best", found.best)):
        figures = "".join(map(_figure, samples))
        parts.append(f'<h3>{title} by loss</h3><div class="samples">{figures}</div>')
    return Section("samples", "Predictions", "".join(parts), wide=True)


def _figure(sample: Sample) -> str:
    is_right = sample.truth == sample.guess
    share = "" if sample.share is None else f"; {sample.share:.1%} {'right' if not sample.truth else 'for the truth'}"
    hint = f"loss {sample.loss:.3g}{share}"
    truth, guess = (f"<bdi>{escape(name)}</bdi>" if name else "" for name in (sample.truth, sample.guess))
    said = truth if is_right else f"{truth} as <b>{guess}</b>"
    shown = f'<img alt="{escape(sample.truth or "image, true and predicted classes")}" src="{sample.image}">'
    shown = shown if sample.image else f"<blockquote dir=auto>{escape(sample.text)}</blockquote>"
    kind = " ".join(filter(None, ("" if is_right else "wrong", "" if sample.image else "text")))
    part = "" if sample.share is None else f'<span class="soft">{sample.share:.0%}</span>'
    return f'<figure class="{kind}" title="{escape(hint)}">{shown}{said} {part}</figure>'


def _cost(facts: RunFacts) -> Section:
    plans = facts.plans.values()
    costs = [plan_cost(plan.sites, plan.view, 1) for plan in plans]
    every = [(site, cost.sites.get(site.id)) for plan, cost in zip(plans, costs, strict=True) for site in plan.sites]
    rows = []
    for rule in dict.fromkeys(site.rule for site, _ in every):
        sites = [site for site, _ in every if site.rule == rule]
        known = [cost for site, cost in every if site.rule == rule and cost is not None]
        kinds = Counter(s.inserts for s in sites)
        rows.append(
            [
                rule,
                ", ".join(kinds),
                str(len(sites)),
                f"{sum(s.parameters for s in sites):,}",
                amount(sum(c.flops for c in known)),
                amount(sum(c.saved_bytes for c in known), "B"),
            ]
        )
    own = {name: size for plan in plans for name, size in plan.sizes.items()}
    trained = sum(sum(plan.sizes.values()) for plan in plans) + facts.outside
    if trained:
        rows.append(["train:", ", ".join(list(own)[:3]), "", f"{trained:,}", "", ""])
    heads = ["rule", "inserts", "sites", "parameters", "FLOPs", "saved"]
    parameters = sum(plan.parameters for plan in plans) + facts.outside
    share = percent(parameters / max(1, facts.parameters))
    name = "the model's FLOPs" if "" in facts.plans else "the parts' FLOPs"
    more = {
        "trained": f"{parameters:,} of {facts.parameters:,} ({share})",
        name: amount(sum(cost.model_flops for cost in costs)),
    }
    if facts.checkpoint is not None:
        more["saved tuners"] = amount(facts.checkpoint, "B")
    note = '<p class="soft">FLOPs of a forward and bytes saved for backward, for one sample.</p>'
    return Section("cost", "Parameters and memory", facts_list(more) + table(heads, rows, 4) + note)


def _latency(facts: RunFacts) -> Section:
    rows = [[s.name, f"{s.median:.2f}", f"{s.lower:.2f} to {s.upper:.2f}", f"{s.ratio:.2f}"] for s in facts.speeds]
    heads = ["model", "median, ms", "quartiles", f"to {facts.speeds[0].name}"]
    return Section("latency", "Latency", table(heads, rows, 3) + f'<p class="soft">{escape(facts.engine)}</p>')


def _folding(fold: FoldReport | str) -> Section:
    if isinstance(fold, str):
        text = (
            fold or "Nothing was folded for this page: `utcompile report RUN` does, and adds what became of each site."
        )
        return Section("folding", "Folding", f'<p class="soft">{escape(text)}</p>')
    head, *rows = fold.rows()
    summary = "".join(f"<p>{escape(line)}</p>" for line in fold.summary().splitlines()[:3])
    every = f"<details><summary>every site</summary>{table(head, [list(r) for r in rows], 5)}</details>"
    kept = [[s.id, s.reason] for s in fold.kept]
    reasons = table(["kept", "why"], kept, 0) if kept else ""
    return Section("folding", "Folding", summary + reasons + every)

"""A comparison of methods as data: results, means and spreads, paired differences; as a table, as CSV, as a page."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from utcompile.report.charts import Point, scatter
from utcompile.report.page import Section, page
from utcompile.report.run_sections import facts_list, table
from utcompile.text import amount, counted
from utcompile.train.result import SHARES

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Result:
    """One finished run of a method.

    Attributes:
        value: of the metric, on the data that are compared, in the epoch that is best on the validation data.
        validation: its best value on the validation data.
        lr: the learning rate.
        epoch: the best epoch.
        seconds: of training and validating.
        parameters: that train.
        saved_bytes: kept for backward per sample, measured.
        is_shared: it trained on values of the one frozen forward.
    """

    method: str
    seed: int
    value: float
    validation: float
    lr: float
    epoch: int
    seconds: float
    parameters: int
    saved_bytes: int
    is_shared: bool = False

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Result:
        """A result from plain data; what other versions wrote more is left out, and `accuracy` is their `value`."""
        found = {"value": entry.get("accuracy"), **entry}
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (of the sample; None for one value) and range of some numbers."""

    mean: float
    deviation: float | None
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        value: of the metric, over the seeds.
        difference: to the baseline, seed by seed; None for the baseline, and where no seed is common.
        latency: of the folded model in milliseconds; None where it was not measured.
    """

    method: str
    seeds: tuple[int, ...]
    value: Spread
    difference: Spread | None
    lr: float
    parameters: int
    saved_bytes: int
    seconds: float
    latency: float | None
    is_shared: bool


@dataclass(frozen=True)
class Comparison:
    """Methods on one budget and one split.

    Attributes:
        results: every run that the table is made of.
        settings: the budget, the data and the model, as plain data.
        left_out: methods without a result, with the reasons.
        latencies: of folded models in milliseconds, by method; `base` is the model without tuners.
        measured_on: `test` or `validation`.
        forward_seconds: of the one frozen forward; 0 where no method shares it.
        engine: what measured the latencies.
        tried: the validation figure of the first seed at each learning rate; None where the loss was not finite.
        metric: what is compared: `accuracy`, `f1`, `mae` …
    """

    results: tuple[Result, ...]
    settings: Mapping[str, object]
    left_out: Mapping[str, str] = field(default_factory=dict)
    latencies: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = "validation"
    forward_seconds: float = 0.0
    engine: str = ""
    tried: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    metric: str = "accuracy"

    @property
    def baseline(self) -> str:
        """The method that others are compared with: the first one."""
        return self.results[0].method if self.results else ""

    def rows(self) -> list[Row]:
        """A row per method, in the order of the results."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.method, []).append(result)
        base = {r.seed: r.value for r in found.get(self.baseline, [])}
        return [self._row(name, results, base) for name, results in found.items()]

    def _row(self, name: str, results: Sequence[Result], base: Mapping[int, float]) -> Row:
        differences = [r.value - base[r.seed] for r in results if r.seed in base]
        is_base = name == self.baseline
        return Row(
            name,
            tuple(r.seed for r in results),
            Spread.of([r.value for r in results]),
            Spread.of(differences) if differences and not is_base else None,
            results[0].lr,
            results[0].parameters,
            results[0].saved_bytes,
            statistics.fmean(r.seconds for r in results),
            self.latencies.get(name),
            results[0].is_shared,
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "settings": dict(self.settings),
            "metric": self.metric,
            "measured_on": self.measured_on,
            "rows": [asdict(row) for row in self.rows()],
            "results": [asdict(result) for result in self.results],
            "left_out": dict(self.left_out),
            "latency_ms": dict(self.latencies),
            "forward_seconds": self.forward_seconds,
            "engine": self.engine,
            "tried": {name: dict(found) for name, found in self.tried.items()},
        }


def heads(metric: str) -> tuple[str, ...]:
    """The heads of the columns of `cells`."""
    return "method", metric.replace("_", " "), "to the first", "parameters", "saved", "time", "latency", "lr"


def shown(value: float, metric: str) -> str:
    """`97.50 %` for a share, `0.1234` for other metrics."""
    return f"{value:.2%}" if metric in SHARES else f"{value:.4g}"


def cells(row: Row, metric: str = "accuracy") -> list[str]:
    """The cells of a method under `heads(metric)`; differences of shares are in percentage points."""
    scale, form, unit = (100, ".1f", " %") if metric in SHARES else (1, ".4g", "")
    value, difference = row.value, ""
    spread = f" {PLUS_MINUS} {scale * value.deviation:{form}}" if value.deviation is not None else ""
    if row.difference is not None:
        d = row.difference
        difference = f"{scale * d.mean:+{form}}"
        difference += f" ({scale * d.least:+{form}} … {scale * d.most:+{form}})" if d.deviation is not None else ""
    return [
        row.method,
        f"{scale * value.mean:{form}}{spread}{unit}",
        difference,
        f"{row.parameters:,}",
        amount(row.saved_bytes, "B"),
        f"{row.seconds:.0f} s{'*' if row.is_shared else ''}",
        "" if row.latency is None else f"{row.latency:.2f} ms",
        f"{row.lr:g}",
    ]


def csv_of(comparison: Comparison) -> str:
    """Every run as one line of CSV, with the method's folded latency; the metric's column has its name."""
    file = io.StringIO()
    fields = list(Result.__dataclass_fields__)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(comparison.metric if name == "value" else name for name in fields), "latency_ms"])
    for result in comparison.results:
        own = asdict(result)
        writer.writerow([*(own[name] for name in fields), comparison.latencies.get(result.method, "")])
    return file.getvalue()


def notes_of(comparison: Comparison) -> list[str]:
    """What a reader of the table must know."""
    count = max((len(row.seeds) for row in comparison.rows()), default=0)
    over = f"mean {PLUS_MINUS} standard deviation over {counted(count, 'seed')}" if count > 1 else "of one seed"
    metric = comparison.metric.replace("_", " ").capitalize()
    found = [
        f"{metric} on the {comparison.measured_on} data, {over}; "
        "the epoch is chosen on the validation data. "
        f"Differences to {comparison.baseline} are paired by seed{', with their range' if count > 1 else ''}.",
        "Saved: bytes kept for backward per sample, without parameters.",
    ]
    if comparison.measured_on == "validation":
        found.append("The epoch was chosen on the same data, so every figure is a little too good.")
    if any(result.is_shared for result in comparison.results):
        took = f", which took {comparison.forward_seconds:.0f} s in this call" if comparison.forward_seconds else ""
        found.append(f"* trained on values of one frozen forward for all of them{took}.")
    if comparison.engine:
        found.append(f"Latency of the folded model: {comparison.engine}")
    return found


def comparison_page(comparison: Comparison) -> str:
    """The page of a comparison."""
    rows = comparison.rows()
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes_of(comparison))
    metric, names = comparison.metric, heads(comparison.metric)
    body = table(names, [cells(row, metric) for row in rows], len(names) - 1) + notes
    plots = f'<div class="charts plots">{"".join(plots_of(rows, metric))}</div>'
    sections = [Section("methods", "Methods", body, wide=True), Section("plots", "Plots", plots, wide=True)]
    if any(len(found) > 1 for found in comparison.tried.values()):
        sections.append(Section("rates", "Learning rates", _rates(comparison.tried, metric)))
    if comparison.left_out:
        lines = [[name, why] for name, why in comparison.left_out.items()]
        sections.append(Section("left-out", "Left out", table(["method", "why"], lines, 0)))
    settings = {str(k): str(v) for k, v in comparison.settings.items()}
    sections.append(Section("settings", "Budget", facts_list(settings), wide=True))
    return page(f"Comparison of {len(rows)} methods", sections)


def plots_of(rows: Sequence[Row], metric: str = "accuracy") -> list[str]:
    """The metric over parameters, memory, time and folded latency, as SVG."""
    axes: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("parameters to train", lambda row: float(row.parameters)),
        ("bytes kept for backward, per sample", lambda row: float(row.saved_bytes)),
        ("seconds of training", lambda row: row.seconds),
        ("folded latency, ms", lambda row: math.nan if row.latency is None else row.latency),
    )
    charts, form = [], "{:.1%}" if metric in SHARES else "{:.4g}"
    for unit, x in axes:
        points = [Point(r.method, x(r), r.value.mean, r.value.deviation or 0.0) for r in rows]
        charts.append(scatter(f"{metric.replace('_', ' ')} over {unit}", points, unit, form))
    return [chart for chart in charts if chart]


def _rates(tried: Mapping[str, Mapping[str, float | None]], metric: str) -> str:
    rates = list(dict.fromkeys(rate for found in tried.values() for rate in found))
    lines = [[name, *(_tried(found, rate, metric) for rate in rates)] for name, found in tried.items()]
    note = '<p class="soft">Best validation figure of the first seed at each rate; the best rate is used for all.</p>'
    return table(["method", *rates], lines, len(rates)) + note


def _tried(found: Mapping[str, float | None], rate: str, metric: str) -> str:
    if rate not in found:
        return ""
    value = found[rate]
    return "not finite" if value is None else shown(value, metric)

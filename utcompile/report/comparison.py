"""A comparison of methods as data: results, means and spreads, paired differences; as a table, as CSV, as a page."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape

from utcompile.report.charts import Point, scatter
from utcompile.report.page import Section, page
from utcompile.report.run_sections import facts_list, table
from utcompile.text import amount, counted

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Result:
    """One finished run of a method.

    Attributes:
        accuracy: on the data that are compared, of the epoch with the best validation accuracy.
        validation: the best validation accuracy.
        lr: the learning rate.
        epoch: the best epoch.
        seconds: of training and validating.
        parameters: that train.
        saved_bytes: kept for backward per sample, measured.
        is_shared: it trained on values of the one frozen forward.
    """

    method: str
    seed: int
    accuracy: float
    validation: float
    lr: float
    epoch: int
    seconds: float
    parameters: int
    saved_bytes: int
    is_shared: bool = False


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
        accuracy: over the seeds.
        difference: to the baseline, seed by seed; None for the baseline, and where no seed is common.
        latency: of the folded model in milliseconds; None where it was not measured.
    """

    method: str
    seeds: tuple[int, ...]
    accuracy: Spread
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
    """

    results: tuple[Result, ...]
    settings: Mapping[str, object]
    left_out: Mapping[str, str] = field(default_factory=dict)
    latencies: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = "validation"
    forward_seconds: float = 0.0
    engine: str = ""
    tried: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The method that others are compared with: the first one."""
        return self.results[0].method if self.results else ""

    def rows(self) -> list[Row]:
        """A row per method, in the order of the results."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.method, []).append(result)
        base = {r.seed: r.accuracy for r in found.get(self.baseline, [])}
        return [self._row(name, results, base) for name, results in found.items()]

    def _row(self, name: str, results: Sequence[Result], base: Mapping[int, float]) -> Row:
        differences = [r.accuracy - base[r.seed] for r in results if r.seed in base]
        is_base = name == self.baseline
        return Row(
            name,
            tuple(r.seed for r in results),
            Spread.of([r.accuracy for r in results]),
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
            "measured_on": self.measured_on,
            "rows": [asdict(row) for row in self.rows()],
            "results": [asdict(result) for result in self.results],
            "left_out": dict(self.left_out),
            "latency_ms": dict(self.latencies),
            "forward_seconds": self.forward_seconds,
            "engine": self.engine,
            "tried": {name: dict(found) for name, found in self.tried.items()},
        }


HEADS = ("method", "accuracy", "to the first", "parameters", "saved", "time", "latency", "lr")


def cells(row: Row) -> list[str]:
    """The cells of a method under `HEADS`."""
    spread = f" {PLUS_MINUS} {100 * row.accuracy.deviation:.1f}" if row.accuracy.deviation is not None else ""
    difference = ""
    if row.difference is not None:
        d = row.difference
        difference = f"{100 * d.mean:+.1f}"
        difference += f" ({100 * d.least:+.1f} … {100 * d.most:+.1f})" if d.deviation is not None else ""
    return [
        row.method,
        f"{100 * row.accuracy.mean:.1f}{spread} %",
        difference,
        f"{row.parameters:,}",
        amount(row.saved_bytes, "B"),
        f"{row.seconds:.0f} s{'*' if row.is_shared else ''}",
        "" if row.latency is None else f"{row.latency:.2f} ms",
        f"{row.lr:g}",
    ]


def csv_of(comparison: Comparison) -> str:
    """Every run as one line of CSV, with the method's folded latency."""
    file = io.StringIO()
    names = [*Result.__dataclass_fields__, "latency_ms"]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for result in comparison.results:
        writer.writerow({**asdict(result), "latency_ms": comparison.latencies.get(result.method, "")})
    return file.getvalue()


def notes_of(comparison: Comparison) -> list[str]:
    """What a reader of the table must know."""
    seeds = counted(max((len(row.seeds) for row in comparison.rows()), default=0), "seed")
    found = [
        f"Accuracy on the {comparison.measured_on} data, mean {PLUS_MINUS} standard deviation over {seeds}; "
        "the epoch is chosen on the validation data. "
        f"Differences to {comparison.baseline} are paired by seed, with their range.",
        "Saved: bytes kept for backward per sample, without parameters.",
    ]
    if comparison.measured_on == "validation":
        found.append("The epoch was chosen on the same data, so every accuracy is a little too high.")
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
    body = table(HEADS, [cells(row) for row in rows], len(HEADS) - 1) + notes
    sections = [Section("methods", "Methods", body, wide=True), Section("plots", "Plots", _plots(rows), wide=True)]
    if any(len(found) > 1 for found in comparison.tried.values()):
        sections.append(Section("rates", "Learning rates", _rates(comparison.tried)))
    if comparison.left_out:
        lines = [[name, why] for name, why in comparison.left_out.items()]
        sections.append(Section("left-out", "Left out", table(["method", "why"], lines, 0)))
    settings = {str(k): str(v) for k, v in comparison.settings.items()}
    sections.append(Section("settings", "Budget", facts_list(settings), wide=True))
    return page(f"Comparison of {len(rows)} methods", sections)


def plots_of(rows: Sequence[Row]) -> list[str]:
    """Accuracy over parameters, memory, time and folded latency, as SVG."""
    axes: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("parameters to train", lambda row: float(row.parameters)),
        ("bytes kept for backward, per sample", lambda row: float(row.saved_bytes)),
        ("seconds of training", lambda row: row.seconds),
        ("folded latency, ms", lambda row: math.nan if row.latency is None else row.latency),
    )
    charts = []
    for unit, x in axes:
        points = [Point(r.method, x(r), r.accuracy.mean, r.accuracy.deviation or 0.0) for r in rows]
        charts.append(scatter(f"accuracy over {unit}", points, unit))
    return [chart for chart in charts if chart]


def _plots(rows: Sequence[Row]) -> str:
    return f'<div class="charts">{"".join(plots_of(rows))}</div>'


def _rates(tried: Mapping[str, Mapping[str, float]]) -> str:
    rates = list(dict.fromkeys(rate for found in tried.values() for rate in found))
    lines = [
        [name, *(f"{100 * found[rate]:.1f} %" if rate in found else "" for rate in rates)]
        for name, found in tried.items()
    ]
    note = '<p class="soft">Best validation accuracy of the first seed at each rate; the best rate is used for all.</p>'
    return table(["method", *rates], lines, len(rates)) + note

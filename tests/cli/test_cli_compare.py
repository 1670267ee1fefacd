"""`compare`: one table of methods that goes on where it stopped, and leaves out what does not fit."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from support.browser import BROWSER, drive
from support.cli_toys import parsed, passed, refused, utc, write_data
from torch import nn
from torch.overrides import TorchFunctionMode

import utcompile
from utcompile.cli import compare_methods
from utcompile.cli.compare_methods import Budget, Methods, Task
from utcompile.cli.frozen_forward import FrozenForward, shareable
from utcompile.errors import UtcError
from utcompile.train import Data

METHODS = "probe/linear,res_tuning/bypass,lora/all_linear,convnet/inverted_residual_foldable"
ARGUMENTS = (
    "--no-pretrained", "--input-size", "64", "--seeds", "2", "--epochs", "2", "--batch-size", "8", "--latency", "torch"
)  # fmt: skip


class Blocks(nn.Module):
    """Four residual blocks between a stem and a head, on rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4))
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def rows(count: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Rows whose class is whether their sum is positive."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [(row, int(row.sum() > 0)) for row in x]


def task() -> Task:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Blocks()
            torch.manual_seed(seed)
            model.head.reset_parameters()
        return model.eval()

    data = Data(rows(64, 0), rows(16, 1), 2, ("no", "yes"))
    return Task(build, (torch.randn(2, 4),), data, rows(32, 2), {"data": "rows"}, channels_last=False)


BUDGET = Budget(epochs=2, batch_size=16, lrs=(1e-3, 3e-2), seeds=(0, 1))
NAMES = ("probe/linear", "lora/all_linear", "prefix/prefix", "full")


def test_a_table_with_paired_differences_and_what_does_not_fit(tmp_path):
    found = Methods(tmp_path / "out", task(), BUDGET, latency="none").run(NAMES)
    assert [row.method for row in found.rows()] == ["probe/linear", "lora/all_linear", "full"]
    assert list(found.left_out) == ["prefix/prefix"] and "matched 0 places" in found.left_out["prefix/prefix"]
    assert found.measured_on == "test"
    base, lora, full = found.rows()
    assert base.difference is None and base.seeds == lora.seeds == (0, 1)
    by_seed = {(r.method, r.seed): r.value for r in found.results}
    differences = [by_seed["lora/all_linear", s] - by_seed["probe/linear", s] for s in (0, 1)]
    assert (lora.difference.least, lora.difference.most) == (min(differences), max(differences))
    assert base.parameters == 34 < lora.parameters < full.parameters == sum(p.numel() for p in Blocks().parameters())
    assert base.is_shared and not full.is_shared
    assert set(found.tried["full"]) == {"0.001", "0.03"} and full.value.mean > 0.8
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert len(lines) == 6 and float(lines[0]["accuracy"]) == found.results[0].value


def test_an_interrupted_comparison_goes_on_with_the_same_figures(tmp_path):
    whole = Methods(tmp_path / "whole", task(), BUDGET, latency="none").run(NAMES[:2])

    seen: list[str] = []

    def stop(text: str) -> None:
        seen.append(text)
        if len([t for t in seen if "seed" in t]) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Methods(tmp_path / "cut", task(), BUDGET, latency="none", say=stop).run(NAMES[:2])
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("result.json")}
    assert len(done) == 3
    damaged = tmp_path / "cut/runs/probe_linear/seed-0-lr-0.001/result.json"
    damaged.write_text("{")  # its run is whole: it is measured again, and not trained
    again = Methods(tmp_path / "cut", task(), BUDGET, latency="none").run(NAMES[:2])
    kept = [path for path, time in done.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == 2

    def figures(found):
        return [(r.method, r.seed, r.lr, r.value, r.validation, r.epoch) for r in found.results]

    assert figures(again) == figures(whole)


def test_other_settings_and_a_folder_of_something_else_are_refused(tmp_path):
    Methods(tmp_path / "out", task(), BUDGET, latency="none")
    with pytest.raises(UtcError, match="other settings") as caught:
        Methods(tmp_path / "out", task(), Budget(epochs=3, lrs=(1e-3,)), latency="none")
    assert "epochs was 2, is 3" in str(caught.value) and caught.value.code == "report/comparison"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UtcError, match="has no comparison"):
        Methods(tmp_path / "mine", task(), BUDGET)
    (tmp_path / "out" / "comparison.json").write_text("[]")
    with pytest.raises(UtcError, match="damaged"):
        Methods(tmp_path / "out", task(), BUDGET)


@pytest.mark.parametrize("below", [False, True])
def test_a_folder_that_cannot_be_made_is_one_error(below, tmp_path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(UtcError, match="the folder of the comparison cannot be made") as caught:
        Methods(tmp_path / "file" / "out" if below else tmp_path / "file", task(), BUDGET)
    assert caught.value.code == "path/invalid" and (tmp_path / "file").read_text() == "keep"


def test_where_no_method_fits_it_is_one_error(tmp_path):
    with pytest.raises(UtcError, match="no method gave a result") as caught:
        Methods(tmp_path / "out", task(), BUDGET, latency="none").run(["prefix/prefix", "no/such"])
    assert "no/such" in str(caught.value) and "prefix/prefix" in str(caught.value)


def test_a_method_that_fails_in_training_is_listed_and_the_others_go_on(tmp_path, monkeypatch):
    fit = compare_methods.fit

    def failing(model, *args, **options):
        if "lora" in str(options["out"]):
            raise UtcError("the loss is nan at step 3", code="train/loss")
        return fit(model, *args, **options)

    monkeypatch.setattr(compare_methods, "fit", failing)
    found = Methods(tmp_path / "out", task(), BUDGET, latency="none").run(["probe/linear", "lora/all_linear"])
    assert found.left_out == {"lora/all_linear": "the loss is nan at step 3"}


@pytest.mark.parametrize("rules", ["probe/linear", "res_tuning/bypass", "side/lst"])
def test_the_frozen_forward_gives_what_the_whole_model_gives(rules):
    from support.models import captured

    model = captured("resnet")
    tuned = utcompile.match(model, rules).apply().eval()
    method = shareable(tuned, model)
    x = torch.randn(3, 3, 32, 32)
    data = Data([(row, 0) for row in x], [(x[0], 1)], 2, ("a", "b"))
    frozen = FrozenForward(model, data)
    frozen.fill(method.names)
    with torch.no_grad():
        found = frozen.model(method)(torch.arange(4))
        # batches of another size may add in another order
        torch.testing.assert_close(found, tuned(torch.cat((x, x[:1]))), rtol=1e-4, atol=1e-5)
    assert not FrozenForward(model, data, budget=100.0).has_room(method.names)


class RowsOf(TorchFunctionMode):
    """Counts the rows of each batch that goes through the linear layer of a weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.at, self.rows = weight.data_ptr(), list[int]()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear and args[1].data_ptr() == self.at:
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


LADDER = """
version: 1
name: ladder
rules:
  - name: rung
    match: "b = ffn(x); y = add(x, b)"
    insert: {chain: y -> y, from: x, tuner: {kind: ladder, width: 4}}
train: ["pattern:head"]
"""


def test_what_leaves_the_backbone_alone_shares_one_forward_of_every_sample(tmp_path):
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text(LADDER)
    methods = Methods(tmp_path / "out", task(), BUDGET, latency="none")
    samples, example = 64 + 16 + 32, 2
    with RowsOf(methods.captured.get_submodule("stem").weight) as counted:
        found = methods.run(["probe/linear", str(ladder)])
    assert [row.is_shared for row in found.rows()] == [True, True]
    # 8 runs of 2 epochs, and each sample is computed once; that tuners start as the identity is seen on the example
    assert sum(n for n in counted.rows if n != example) == samples
    with RowsOf(methods.captured.get_submodule("stem").weight) as counted:
        first = tmp_path / "first.yaml"
        first.write_text(RULES.format("blocks.0.0.**"))
        methods.run(["probe/linear", str(first)])
    assert (
        sum(counted.rows) > 4 * samples
    )  # what trains is at the beginning: each epoch of three runs computes the stem


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("resnet", "lora/all_conv"), ("vit", "ssf/all_layers"), ("vit", "lora/all_linear"), ("vit", "bitfit/biases")],
)
def test_what_changes_the_backbone_is_not_shared(kind, rules):
    from support.models import captured

    model = captured(kind)
    assert shareable(utcompile.match(model, rules).apply(), model) is None


def test_wrong_options_are_refused_before_any_work(tmp_path):
    base = ("compare", "-m", "timm:test_vit", "-d", tmp_path / "none", "-o", tmp_path / "out")
    refused(*base, "-r", "probe/linear", says=("the data path does not exist",))
    for wrong in (("--lr", "fast"), ("--lr", "-1"), ("--latency", "gpu"), ("-r", ",")):
        arguments = wrong if "-r" in wrong else ("-r", "probe/linear", *wrong)
        assert utc(*base, *arguments).exit_code == 2


@pytest.mark.full
def test_compare_writes_a_page_and_runs_that_other_verbs_open(tmp_path):
    data, out = write_data(tmp_path / "data.npz"), tmp_path / "out"
    arguments = ("compare", "-m", "timm:test_vit", "-d", data, "-r", METHODS, "-o", out, *ARGUMENTS)
    found = parsed(*arguments)
    assert [row["method"] for row in found["rows"]] == METHODS.split(",")[:3] and found["measured_on"] == "validation"
    assert set(found["latency_ms"]) == {"base", *METHODS.split(",")[:3]}
    page = (out / "comparison.html").read_text()
    assert "inverted_residual" in page and page.count('class="chart"') == 4
    if BROWSER is not None:
        assert drive(page, "return document.querySelectorAll('tbody tr').length", tmp_path) >= 3
    text = passed(*arguments).stdout
    assert "to the first" in text and "left out: convnet" in text
    (best,) = re.findall(r"next: utcompile report (\S+), utcompile export \1 -o", " ".join(text.split()))
    every = [json.loads(file.read_text())["validation"] for file in out.glob("runs/*/*/result.json")]
    assert json.loads((Path(best) / "result.json").read_text())["validation"] == max(every)
    run = next(Path(out / "runs" / "lora_all_linear").iterdir())
    said = parsed("report", run)
    result = json.loads((run / "result.json").read_text())
    assert said["accuracy"] == pytest.approx(result["validation"]) and not said["notes"]
    for run in (out / "runs" / "lora_all_linear").iterdir():  # of every seed: all of them have one split
        result = json.loads((run / "result.json").read_text())
        assert parsed("evaluate", run)["figures"]["accuracy"] == pytest.approx(result["validation"])


def test_a_rate_at_which_the_loss_is_not_finite_is_not_chosen(tmp_path, monkeypatch):
    fit = compare_methods.fit

    def failing(model, *args, **options):
        if options["lr"] > 1:
            raise UtcError("the loss is nan at step 3", code="train/loss")
        return fit(model, *args, **options)

    monkeypatch.setattr(compare_methods, "fit", failing)
    budget = Budget(epochs=1, batch_size=16, lrs=(3e-2, 1e9), seeds=(0, 1))
    found = Methods(tmp_path / "out", task(), budget, latency="none").run(["probe/linear"])
    assert not found.left_out and [r.lr for r in found.results] == [3e-2, 3e-2]
    assert found.tried["probe/linear"]["1e+09"] is None
    assert "not finite" in (tmp_path / "out" / "comparison.html").read_text()


RULES = 'version: 1\nname: mine\ntrain: ["parameter:{}"]\n'


def test_a_rule_file_that_has_changed_is_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget, mine = Budget(epochs=1, batch_size=16, seeds=(0,)), tmp_path / "mine.yaml"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.yaml").write_text(RULES.format("head.weight"))
    mine.write_text(RULES.format("head.bias"))
    names = ["mine.yaml", "a/mine.yaml"]
    first = Methods(tmp_path / "out", task(), budget, latency="none").run(names)
    assert [row.parameters for row in first.rows()] == [2, 32]
    mine.write_text(RULES.format("head.**"))
    again = Methods(tmp_path / "out", task(), budget, latency="none").run(names)
    assert [row.parameters for row in again.rows()] == [34, 32]


def test_values_of_several_methods_fit_together_or_the_last_ones_run_alone(tmp_path):
    data = task().data
    samples = len(data.train) + len(data.validation) + 32
    # the head reads 16 numbers of each sample, the last layer 32 and 16 others
    last = tmp_path / "last.yaml"
    last.write_text(RULES.format("blocks.3.2.**"))
    budget = Budget(epochs=1, batch_size=16, seeds=(0,))
    methods = Methods(tmp_path / "out", task(), budget, latency="none", cache=4 * 48 * samples)
    found = methods.run(["probe/linear", str(last)])
    assert [row.is_shared for row in found.rows()] == [True, False]


def test_a_model_that_is_not_exported_leaves_the_others_their_latency(tmp_path, monkeypatch):
    from utcompile.cli import speeds

    export = speeds.export_onnx

    def failing(model, path, example):
        if path.name == "1.onnx":
            raise UtcError("an operation has no equal in ONNX", code="export/failed")
        return export(model, path, example)

    monkeypatch.setattr(speeds, "export_onnx", failing)
    budget = Budget(epochs=1, batch_size=16, seeds=(0,))
    found = Methods(tmp_path / "out", task(), budget).run(["probe/linear", "full"])
    assert set(found.latencies) == {"base", "full"} and "Not measured: probe/linear (an operation" in found.engine


def test_results_of_an_earlier_version_are_read():
    entry = {"method": "full", "seed": 0, "accuracy": 0.5, "validation": 0.6, "lr": 1e-3, "epoch": 1, "seconds": 1.0}
    found = compare_methods.Result.of({**entry, "parameters": 3, "saved_bytes": 4, "unknown": 1})
    assert found.value == 0.5 and not found.is_shared


def test_no_figure_of_the_table_is_cut_in_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    from utcompile.cli.compare import _show
    from utcompile.report.comparison import Comparison, Result, cells

    monkeypatch.setenv("COLUMNS", "60")
    names = ("probe/linear", "convnet/inverted_residual_foldable")
    results = [Result(name, s, 0.9 + s / 100, 0.9, 1e-3, 3, 12.0, 270_000, 4_250_000) for name in names for s in (0, 1)]
    found = Comparison(tuple(results), {}, latencies={names[1]: 2.25})
    _show(found, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for row, line in zip(found.rows(), lines[1:], strict=False):
        assert all(cell in line for cell in cells(row))

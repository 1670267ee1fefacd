"""`report`, and the page at the end of `train`."""

from __future__ import annotations

import json

import pytest
from support.browser import BROWSER, drive
from support.cli_toys import MODEL, RULES, parsed, passed, refused, write_data


def test_a_page_that_cannot_be_written_is_found_before_any_work(tmp_path):
    refused("report", tmp_path, "-o", tmp_path / "no" / "page.html", says=("does not exist",))
    refused("report", tmp_path, "-o", tmp_path, says=("is a folder",))


def test_a_folder_without_a_run_or_a_history(tmp_path):
    refused("report", tmp_path, says=("there is no checkpoint here", "utcompile train -o"))
    (tmp_path / "manifest.json").write_text("{}")
    refused("report", tmp_path, says=("the run has no history", "utcompile train -o", "report/history"))


@pytest.mark.full
def test_train_ends_with_a_page_and_report_writes_it_again(tmp_path):
    data, run = write_data(tmp_path / "data.npz"), tmp_path / "run"
    arguments = ("--epochs", "2", "--batch-size", "8", "--lr", "0.01")
    found = parsed("train", *MODEL, *RULES, "-d", data, "-o", run, *arguments)
    page = run / "report.html"
    assert found["report"] == str(page)
    text = page.read_text()
    for words in ("Curves", "Confusion", "Worst by loss", "Latency", "absorbed", "What is inserted", "lora r=2"):
        assert words in text
    if BROWSER is not None:
        assert drive(text, "return document.images.length", tmp_path) > 0

    page.unlink()
    said = parsed("report", run, "-o", tmp_path / "again.html")
    assert not page.exists() and said["accuracy"] == pytest.approx(found["best_accuracy"]) and not said["notes"]
    assert set(said["latency_ms"]) == {"base", "tuned", "folded"} and said["fold"]["max_error"] < 1e-4

    data.unlink()  # the page is written without what needs the data, and says so
    said = parsed("report", run, "--no-fold")
    assert said["accuracy"] is None and "Predictions are left out" in said["notes"][0] and page.exists()
    assert "note: Predictions" in passed("report", run, "--no-fold").stdout


@pytest.mark.full
def test_other_data_and_damaged_runs_leave_a_page_with_a_note(tmp_path):
    data, run = write_data(tmp_path / "data.npz"), tmp_path / "run"
    parsed("train", *MODEL, *RULES, "-d", data, "-o", run, "--epochs", "1", "--no-report")
    said = parsed("report", run, "--no-fold", "-d", write_data(tmp_path / "five.npz", 50, 5))
    assert "the data are not those that the run was trained on" in said["notes"][0]
    manifest = json.loads((run / "manifest.json").read_text())
    for damage in ({"held_out": {"seed": "x"}}, {"held_out": 5}, {"held_out": None, "training": {"seed": -1}}):
        (run / "manifest.json").write_text(json.dumps({**manifest, **damage}))
        assert "Predictions are left out" in parsed("report", run, "--no-fold")["notes"][0]
    (run / "history.jsonl").write_text('{"epoch": 1, "train_loss": NaN}\n{"epoch": 2, "train_loss": 1}\n')
    assert parsed("report", run, "--no-fold")["epochs"] == 2

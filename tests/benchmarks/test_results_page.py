"""The page of results: unfinished parts show what is done, and pairs are decided only where ranges do not overlap."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.results_page import write_page

METHODS = ("probe/linear", "u_tuning/dual", "full", "lora/all_linear", "prefix/prefix")


def write_run(folder: Path, method: str, seed: int, lr: float, accuracy: float) -> None:
    run = folder / "runs" / method.replace("/", "_") / f"seed-{seed}-lr-{lr:g}"
    run.mkdir(parents=True)
    values = {"accuracy": accuracy, "validation": accuracy, "epoch": 1, "seconds": 2.0}
    numbers = {"parameters": 1234, "saved_bytes": 99, "is_shared": method == "probe/linear"}
    (run / "result.json").write_text(json.dumps({"method": method, "seed": seed, "lr": lr, **values, **numbers}))


def test_a_page_of_unfinished_parts(tmp_path):
    part = tmp_path / "out" / "digits"
    for method, accuracies in {
        "probe/linear": (0.80, 0.82),
        "u_tuning/dual": (0.90, 0.91),
        "full": (0.81, 0.95),
    }.items():
        write_run(part, method, 0, 0.01, 0.5)  # a rate that is worse
        for seed, accuracy in enumerate(accuracies):
            write_run(part, method, seed, 0.001, accuracy)
    write_run(part, "lora/all_linear", 0, 0.001, 0.9)  # its second rate is missing, so none is chosen
    settings = {
        "model": "a model", "data": "some data", "epochs": 3, "batch_size": 8, "lrs": [0.001, 0.01], "seeds": [0, 1]
    }  # fmt: skip
    (part / "comparison.json").write_text(json.dumps({"settings": settings, "left_out": {"prefix/prefix": "no: why"}}))
    page = tmp_path / "docs" / "results.md"
    titles = {"digits": "A model on digits", "mnist": "Another"}
    write_page(page, tmp_path / "out", titles, dict.fromkeys(titles, METHODS))
    text = page.read_text()
    assert "| `u_tuning/dual` | 90.5 ± 0.7 % | +9.5 (+9.0 … +10.0) | 1,234 |" in text
    assert "Not run yet: `lora/all_linear`." in text and "`prefix/prefix` (no)" in text
    assert "## Not run yet\n\n- Another" in text
    # probe < dual is the paper's order; full, with its wide range, decides nothing
    assert "of 3 pairs of the paper's methods, 1 have the paper's order" in text and "2 are not decided" in text
    picture = page.parent / "assets" / "results" / "digits.svg"
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg") and picture.name in text

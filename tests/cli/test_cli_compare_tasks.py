"""`compare` on every task: what it measures is what `evaluate` measures, and its runs are opened by other verbs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from support.cli_toys import parsed, refused
from support.task_toys import NET, write_bert, write_reviews, write_scenes

pytestmark = pytest.mark.full

SHORT = ("--seeds", "1", "--epochs", "1", "--batch-size", "8", "--latency", "none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "net.py").write_text(NET)
    write_scenes(folder / "scenes")
    return folder


def test_texts_with_a_test_part(home: Path) -> None:
    write_bert(home / "bert")
    write_reviews(home / "all.csv")
    rows = list(csv.DictReader((home / "all.csv").read_text().splitlines()))
    table = home / "reviews.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({**row, "split": ("train", "train", "val", "test")[i // 2 % 4]})
    out = home / "texts"
    rules = "probe/linear,lora/all_linear,conv/conv_adapter"
    found = parsed(
        "compare", "-m", f"hf:{home / 'bert'}", "--no-pretrained", "--task", "text", "-d", table, "-r", rules,
        "--metric", "f1", "-o", out, *SHORT,
    )  # fmt: skip
    assert found["metric"] == "f1" and found["measured_on"] == "test" and list(found["left_out"]) == [rules[-17:]]
    assert [row["is_shared"] for row in found["rows"]] == [True, False]
    header = (out / "comparison.csv").read_text().partition("\n")[0]
    assert header.startswith("method,seed,f1,validation,")
    # what the runs say of themselves is what the table says
    tested = home / "test.csv"
    tested.write_text(
        "text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for i, r in enumerate(rows) if i // 2 % 4 == 3)
    )
    for row, name in zip(found["rows"], ("probe_linear", "lora_all_linear"), strict=True):
        run = out / "runs" / name / "seed-0-lr-0.001"
        assert parsed("evaluate", run, "-d", tested)["figures"]["f1"] == pytest.approx(row["value"]["mean"], abs=1e-6)
        validated = parsed("evaluate", run)["figures"]["f1"]
        assert validated == pytest.approx(json.loads((run / "result.json").read_text())["validation"], abs=1e-6)
        assert parsed("report", run, "--no-fold")["notes"] == []


def test_numbers_where_less_is_better(home: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (40, 12, 12, 3)).astype(np.uint8)
    np.savez(home / "numbers.npz", x=x, y=x.mean((1, 2, 3))[:, None].astype(np.float32))
    arguments = ("-m", "timm:test_efficientnet", "--no-pretrained", "--input-size", "32", "--num-classes", "1")
    found = parsed(
        "compare", *arguments, "--task", "regress", "--metric", "mae", "-d", home / "numbers.npz",
        "-r", "probe/linear,bitfit/biases", "-o", home / "mae", "--lr", "1e-5,1e-2", *SHORT,
    )  # fmt: skip
    for row in found["rows"]:
        rates = found["tried"][row["method"]]
        assert min(rates, key=rates.get) == f"{row['lr']:g}"
    assert "mae" in (home / "mae" / "comparison.html").read_text()


def test_pixels(home: Path) -> None:
    found = parsed(
        "compare", "-m", f"{home / 'net.py'}:pixels", "--input-size", "32", "--task", "segment", "-d", home / "scenes",
        "-r", "lora/all_conv,full", "-o", home / "pixels", *SHORT,
    )  # fmt: skip
    assert found["metric"] == "iou" and len(found["rows"]) == 2


def test_a_custom_task(home: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(home / "rows.npz", x=x, y=x[:, :1])
    net = home / "net.py"
    base = (
        "compare",
        "-m",
        f"{net}:numbers",
        "--task",
        "custom",
        "-d",
        home / "rows.npz",
        "--example",
        f"{net}:example",
    )
    given = ("--loss", f"{net}:loss", "--metrics-function", f"{net}:metrics", "--metric", "worst", "--lower-is-better")
    found = parsed(*base, *given, "-r", "lora/all_linear,full", "-o", home / "custom", *SHORT)
    assert found["metric"] == "worst" and found["rows"][1]["method"] == "full"
    refused(*base, "-r", "full", "-o", home / "none", *SHORT, says=("a custom task needs a loss function",))

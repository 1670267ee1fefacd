"""Tasks other than image classification, from files to figures, and back again; their bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.cli_toys import names, parsed, passed, refused, utc
from support.task_toys import NET, WORDS, write_bert, write_images, write_reviews, write_scenes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "net.py").write_text(NET)
    write_reviews(folder / "reviews.csv")
    write_scenes(folder / "scenes")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(folder / "numbers.npz", x=x, y=x[:, :1])
    return folder


@pytest.fixture(scope="module")
def bert_folder(home: Path) -> Path:
    return write_bert(home / "bert")


@pytest.fixture(scope="module")
def text_run(home: Path, bert_folder: Path) -> Path:
    run = home / "text"
    arguments = ("-r", "lora/all_linear", "--var", "r=2", "--task", "text", "-d", home / "reviews.csv")
    passed(
        "train",
        "--no-report",
        "-m",
        f"hf:{home / 'bert'}",
        *arguments,
        "-o",
        run,
        "epochs=2",
        "--metric",
        "f1",
        "--metric",
        "accuracy",
    )
    return run


@pytest.mark.full
def test_a_text_run_has_all_that_a_prediction_needs(text_run: Path, home: Path) -> None:
    described = json.loads((text_run / "task.json").read_text())
    assert described["task"] == "text" and described["labels"] == ["bad", "good"]
    how = {"kind": "text", "tokenizer": "tokenizer", "max_length": 40, "pair": False}  # what BERT has positions for
    assert described["preprocessing"].items() >= how.items()
    assert (text_run / "tokenizer" / "tokenizer.json").is_file()
    manifest = json.loads((text_run / "manifest.json").read_text())
    assert manifest["model"]["spec"] == f"hf:{home / 'bert'}@text" and manifest["model"]["num_classes"] == 2
    assert (text_run / "metrics.csv").read_text().startswith("epoch,train_loss,validation_loss,validation_f1")


@pytest.mark.full
def test_an_exported_text_run_predicts_from_texts(text_run: Path, tmp_path: Path) -> None:
    passed("export", text_run, "-o", tmp_path / "reviews.onnx")
    assert (tmp_path / "reviews.tokenizer" / "tokenizer.json").is_file()
    (tmp_path / "two.txt").write_text("the film was fine\nthe film was poor\n")
    texts = ("the film was fine", "the film was poor " * 60)  # the second is cut at 40 tokens
    of_file = parsed("predict", tmp_path / "reviews.onnx", *texts, tmp_path / "two.txt", "--json")
    of_run = parsed("predict", text_run, *texts, tmp_path / "two.txt", "--json")
    assert [e["input"] for e in of_file] == [*texts, "the film was fine", "the film was poor"]
    for a, b in zip(of_file, of_run, strict=True):
        assert a["top"][0]["label"] == b["top"][0]["label"]
        assert a["top"][0]["probability"] == pytest.approx(b["top"][0]["probability"], abs=1e-4)
    (tmp_path / "t.csv").write_text("text\nfine\n")
    refused("predict", tmp_path / "reviews.onnx", tmp_path / "t.csv", says=("a text is needed, and this is a file",))


@pytest.mark.full
def test_evaluate_measures_as_training_did(text_run: Path, home: Path) -> None:
    found = parsed("evaluate", text_run)
    history = [json.loads(line) for line in (text_run / "history.jsonl").read_text().splitlines()]
    best = max(history, key=lambda entry: (entry["validation_f1"], -entry["validation_loss"]))
    assert found["figures"]["accuracy"] == best["validation_accuracy"]
    assert found["figures"]["loss"] == pytest.approx(best["validation_loss"], rel=1e-5)
    other = passed("evaluate", text_run, "-d", home / "reviews.csv", "-o", home / "figures.json")
    assert "24 samples" in other.stdout and "true class (rows)" in other.stdout
    written = json.loads((home / "figures.json").read_text())
    assert sum(map(sum, written["confusion"])) == 24 and [c["support"] for c in written["classes"]] == [12, 12]


@pytest.mark.full
def test_evaluate_matches_classes_by_name(text_run: Path, tmp_path: Path) -> None:
    table = tmp_path / "other.csv"
    table.write_text("text,label\n" + "the film was fine,good\nthe film was poor,great\n" * 6)
    refused("evaluate", text_run, "-d", table, says=("the data has the class 'great', which the run does not have",))


@pytest.mark.full
def test_segment_with_a_factory_that_gets_the_classes(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = ("-m", f"{home / 'net.py'}:pixels", "--input-size", "16")
    passed(
        "train",
        "--no-report",
        *model,
        "-r",
        "lora/all_conv",
        "--task",
        "segment",
        "-d",
        home / "scenes",
        "-o",
        run,
        "epochs=1",
    )
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"]["num_classes"] == 2
    described = json.loads((run / "task.json").read_text())
    assert described["ignored"] == 255 and described["preprocessing"]["resize"] == "squash"
    found = parsed("evaluate", run, "--trust")
    assert {"iou", "precision"} <= found["classes"][0].keys()


def test_a_custom_task_and_its_resumption(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, net = tmp_path / "run", home / "net.py"
    arguments = (
        "train", "-m", f"{net}:numbers", "-r", "lora/all_linear", "--task", "custom", "-d", home / "numbers.npz",
        "--loss", f"{net}:loss", "--metrics-function", f"{net}:metrics", "--metric", "worst", "--lower-is-better",
        "-o", run, "epochs=3", "--cache", "none",
    )  # fmt: skip
    from utcompile.train.run_folder import RunFolder

    keep = RunFolder.keep_last

    def stop(self, state, history):
        keep(self, state, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "keep_last", stop)
        result = utc(*arguments)
    assert result.exit_code == 130
    assert f"go on with: utcompile train --resume -o {run} --cache none --trust\n" in result.stderr
    refused("train", "--resume", "-o", run, says=("would run code", "--trust"))
    resumed = parsed("train", "--no-report", "--resume", "-o", run, "--cache", "none", "--trust")
    assert resumed["metric"] == "worst" and len(resumed["history"]) == 3


def test_looking_at_models_of_any_input(home: Path, tmp_path: Path) -> None:
    assert (
        parsed("inspect", "-m", f"{home / 'net.py'}:numbers", "--example", f"{home / 'net.py'}:example")["parameters"]
        == 49
    )
    np.savez(tmp_path / "x.npz", np.zeros((2, 4), np.float32))
    assert parsed("inspect", "-m", f"{home / 'net.py'}:numbers", "--example", tmp_path / "x.npz")["parameters"] == 49


@pytest.mark.full
def test_looking_at_a_model_of_texts(home: Path, bert_folder: Path) -> None:
    bert = ("-m", f"hf:{home / 'bert'}@text")
    passed("explain", *bert, "-r", "lora/all_linear", "--input", "input_ids=2,8", "--input", "attention_mask=2,8")
    refused("inspect", *bert, "--input", "input_ids=two", says=("'input_ids=two' is no size of an input",))
    refused("inspect", *bert, "--example", "none.npz", says=("there is no such file of example inputs",))


def test_suggest_ranks_what_fits_and_names_what_does_not(home: Path) -> None:
    model = ("-m", f"{home / 'net.py'}:numbers", "--example", f"{home / 'net.py'}:example")
    found = parsed("suggest", *model, "--for", "parameters")
    order = [entry["name"] for entry in found["fitting"]]
    assert order[0] == "probe/linear" and "lora/all_linear" in order
    assert (
        found["refused"]["prefix/prefix"] == "finds no attention"
        and found["refused"]["lora/all_conv"] == "finds no conv"
    )
    assert [e["parameters"] for e in found["fitting"]] == sorted(e["parameters"] for e in found["fitting"])
    text = passed("suggest", *model).stdout
    assert "for latency: " in text and "because all its tuners vanish in folding" in text


def bad(home: Path, out: Path, *arguments: str | Path, model: str | Path = "", says: tuple[str, ...]) -> None:
    model = model or f"hf:{home / 'bert'}"
    refused("train", "-m", model, "-r", "lora/all_linear", "--task", "text", "-o", out / "run", *arguments, says=says)
    assert "run" not in names(out)


@pytest.mark.full
def test_tokenizers_that_do_not_fit(home: Path, bert_folder: Path, tmp_path: Path) -> None:
    data = ("-d", home / "reviews.csv")
    bad(
        home,
        tmp_path,
        *data,
        "--max-length",
        "128",
        says=("texts of 128 tokens are too long for the model", "max_length=40"),
    )
    write_bert(tmp_path / "other", [*WORDS, "new"])
    message = ("the tokenizer does not fit the model", "it has 13 tokens, the model embeddings for 12")
    bad(home, tmp_path, *data, "--tokenizer", tmp_path / "other", says=message)
    bad(home, tmp_path, *data, "--tokenizer", tmp_path, says=("the tokenizer cannot be read",))
    bad(home, tmp_path, *data, model=f"{home / 'net.py'}:numbers", says=("texts need a tokenizer",))
    tokens = ("--tokenizer", home / "bert")
    bad(
        home,
        tmp_path,
        *data,
        *tokens,
        model=f"{home / 'net.py'}:numbers",
        says=("the model takes none of the tokenizer's",),
    )
    bad(home, tmp_path, *data, model=f"hf:{tmp_path}", says=("the folder contains no model of transformers",))


@pytest.mark.full
def test_skip_bad_leaves_out_what_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "data" / name)
    (tmp_path / "data" / "a" / "3.png").write_bytes(b"no image")
    arguments = ("train", "-m", "timm:test_resnet", "--no-pretrained", "--input-size", "32", "-r", "bitfit/norms")
    more = ("-d", tmp_path / "data", "-o", tmp_path / "run", "epochs=1", "--no-report")
    refused(*arguments, *more, says=("1 of 24 samples cannot be used", "3.png", "--skip-bad"))
    assert names(tmp_path) == ["data"]
    said = passed(*arguments, *more, "--skip-bad").stderr
    assert "left out: 1 of 24 samples" in said and "3.png: " in said
    assert "21 training and 2 validation samples" in said

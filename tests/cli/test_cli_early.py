"""What is refused before torch is imported, by every verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import utcompile
from utcompile.cli.early_runs import DTYPES, PROVIDERS, check_inputs
from utcompile.cli.names import IMAGE_SUFFIXES, timm_optimizers
from utcompile.cli.train_checks import METRICS, MOST
from utcompile.errors import UtcError

GOOD = ("train", "-m", "timm:resnet18", "-r", "lora/all_conv", "-d", "PHOTOS", "-o", "run")
WRONG = {
    "schedule=cosin": "did you mean 'cosine'",
    "precision=bf32": "unknown precision 'bf32'",
    "class_weights=x": "known: balanced, none",
    "device=gpu": "did you mean 'cpu'",
    "epochs=0": "epochs is 0",
    "workers=-1": "workers is -1",
    "seed=-1": "seed is -1",
    "num_classes=0": "num_classes is 0",
    "max_length=0 task=text": "max_length is 0",
    "weight_decay=nan": "weight_decay is nan",
    "lr=nan": "lr is nan",
    "grad_clip=0": "grad_clip is 0",
    "warmup=1": "warmup is 1",
    "ema=1": "ema is 1",
    "mixup=-1": "mixup is -1",
    "mixup=1 task=segment": "the task 'segment' has no use for mixup",
    "cutmix=1 task=multilabel": "the task 'multilabel' has no use for cutmix",
    "label_smoothing=0.1 task=custom": "the task 'custom' has no use for label_smoothing",
    "class_weights=balanced task=regress": "the task 'regress' has no use for class_weights",
    "policy=rand-m9 task=segment": "the task 'segment' has no use for policy",
    "input_size=32 task=text": "the task 'text' has no use for input_size",
    "loss=net.py:loss": "the task 'classify' has no use for loss",
    "tokenizer=words": "the task 'classify' has no use for tokenizer",
    "metric=f1 task=custom": "the metrics of a custom task are those that your function returns",
    "loss=nowhere.py:loss task=custom": "there is no such Python file",
    "tokenizer=nowhere task=text": "there is no folder with this tokenizer",
    "policy=rand-m9 --no-augment": "contradict each other",
    "optimizer=adamww": "did you mean 'adamw'",
    "metric=acuracy": "did you mean 'accuracy'",
    "metric=iou task=text": "the task 'text' has no metric 'iou'",
    "cache=much": "cache is 'much'",
    "cache=0GB": "cache is '0GB'",
    "cache=0.5": "cache is '0.5'",
    "var=r": "'r' is not key=value",
    "train=none,module:x": "'none' stands alone",
    "rate=head": "is not RULE=NUMBER",
    "rate=head=1e39": "is not RULE=NUMBER",
    "lr=1e39": "lr is 1e+39",
    "seed=99999999999999999999": "seed is 99999999999999999999",
    "input_size=big": "is no size",
    "weights=nowhere.pth": "there is no such weights file",
    "example=nowhere.npz": "there is no such file of example inputs",
    "example=inputs": "names no function",
    "input=x=2,a": "is no size of an input",
}
CHEAP = [
    (("train", "-m", "timm:resnet1811", "-r", "lora/all_conv", "-d", "DATA", "-o", "run"), "timm has no model"),
    (("train", "-m", "resnet18", "-r", "lora/all_conv", "-d", "DATA", "-o", "run"), "write timm:resnet18"),
    (("train", "-m", "torchvision:resnet81", "-r", "lora/all_conv", "-d", "DATA", "-o", "run"), "did you mean"),
    (("train", "-m", "net.py:make", "-r", "lora/all_conv", "-d", "DATA", "-o", "run"), "no such Python file"),
    (("train", "-m", "timm:resnet18", "-r", "lora/all_cov", "-d", "DATA", "-o", "run"), "did you mean 'lora/all_conv'"),
    (("train", "-m", "timm:resnet18", "-r", "lora/all_conv", "-d", "nowhere", "-o", "run"), "path does not exist"),
    (("train", "-m", "timm:resnet18", "-r", "lora/all_conv", "-d", "DATA", "-o", "run"), "no class folders"),
    (("train", "-m", "timm:resnet18", "-r", "lora/all_conv", "-d", "DATA", "-o", "OLD"), "contains a run already"),
    (("train", "epohcs=3"), "did you mean 'epochs'"),
    *(((*GOOD, *wrong.split()), says) for wrong, says in WRONG.items()),
    (("inspect", "-m", "timm:resnet1811"), "did you mean"),
    (("explain", "-m", "timm:resnet18", "-r", "lora/all_cov"), "did you mean"),
    (("inspect", "-m", "hf:nowhere"), "contains no model of transformers"),
    (("suggest", "-m", "hf:DATA@text"), "contains no model of transformers"),
    (("suggest", "-m", "timm:resnet18", "--for", "speed"), "known: accuracy, latency, memory, parameters"),
    (("inspect", "-m", "timm:resnet18", "--input", "x"), "is no size of an input"),
    (("inspect", "-m", "timm:resnet18", "--input-size", "1,2"), "is no size"),
    (("inspect", "-m", "timm:resnet18", "--example", "net.py:make"), "no such Python file"),
    (("explain", "-m", "timm:resnet18", "-r", "lora/all_conv", "--var", "r"), "is not key=value"),
    (("explain", "-m", "timm:resnet18", "-r", "lora/all_conv", "--html", "nowhere/a.html"), "does not exist"),
    (("suggest", "-m", "timm:resnet18", "--example", "nowhere.npz"), "no such file of example inputs"),
    *(
        ((verb, *before, "nowhere", *after), "there is no checkpoint here")
        for verb, before, after in (
            ("evaluate", (), ()),
            ("fold", (), ("-o", "folded")),
            ("export", (), ("-o", "a.onnx")),
            ("verify", ("FILE.onnx",), ()),
            ("report", (), ("-o", "a.html")),
        )
    ),
    *(
        ((*(run if part == "RUN" else part for part in verb), *wrong), says)
        for verb in (
            ("evaluate", "RUN"),
            ("fold", "RUN", "-o", "folded"),
            ("export", "RUN", "-o", "a.onnx"),
            ("verify", "FILE.onnx", "RUN"),
            ("predict", "RUN", "cat.png"),
            ("bench", "RUN"),
            ("report", "RUN", "-o", "a.html"),
        )
        for run, wrong, says in (
            ("OWN", ("-m", "timm:resnet1811"), "did you mean"),
            ("OWN", ("--weights", "nowhere.pth"), "there is no such weights file"),
            ("RUN", (), "building this run's model would run code"),
        )
    ),
    (("evaluate", "OWN"), "evaluating this run would run code"),
    (("evaluate", "OWN", "--trust", "-d", "nowhere"), "path does not exist"),
    (("evaluate", "OWN", "--trust", "-o", "nowhere/a.json"), "folder to write to does not exist"),
    (("train", "--resume", "-o", "nowhere"), "there is no checkpoint here"),
    (("train", "--resume", "-o", "OWN"), "resuming this run would run code"),
    (("train", "--resume", "-o", "OWN", "-d", "nowhere"), "path does not exist"),
    (("train", "--resume", "-o", "OWN", "--epochs", "3"), "its own settings"),
    (("fold", "OWN", "-o", "FILE.onnx"), "this is a file"),
    (("fold", "OWN", "-o", "FILE.onnx/folded"), "the folder to write to is a file"),
    (("fold", "OWN", "-o", "OWN/folded"), "lies in the run"),
    (("fold", "OWN", "-o", "OLD"), "the folder is not empty"),
    (("export", "-o", "a.onnx"), "give a RUN, or tasks"),
    (("export", "--task", "cats", "-o", "a.onnx"), "is not NAME=RUN"),
    (("export", "--task", "a=OWN", "--task", "b=nowhere", "-o", "a.onnx"), "there is no checkpoint here"),
    (("export", "OWN", "-o", "nowhere/a.onnx"), "folder to write to does not exist"),
    (("export", "OWN", "-o", "DATA"), "the path to write to is a folder"),
    (("export", "OWN", "-o", "a.onnx", "--dtype", "float61"), "did you mean 'float16'"),
    (("export", "OWN", "-o", "a.onnx", "--routing", "rows"), "did you mean 'row'"),
    (("export", "OWN", "-o", "a.onnx", "--batch-sizes", "1,x"), "is no list of batch sizes"),
    (("export", "OWN", "-o", "a.onnx", "--tolerance", "nan"), "tolerance is nan"),
    (("export", "OWN", "-o", "OLD", "--peft"), "the folder is not empty"),
    (("verify", "nowhere.onnx", "OWN"), "there is no such ONNX file"),
    (("verify", "FILE.onnx", "OWN", "--tolerance", "-1"), "tolerance is -1"),
    (("verify", "FILE.onnx", "OWN", "--providers", "gpu"), "there is no provider 'gpu'"),
    (("verify", "FILE.onnx", "OWN", "--batch-sizes", "0"), "is no list of batch sizes"),
    (("predict", "nowhere.onnx", "cat.png"), "there is no such ONNX file"),
    (("predict", "FILE.onnx", "cat.png"), "there is no such file"),
    (("predict", "FILE.onnx", "cats.npz"), "there is no such file"),
    (("predict", "OWN", "a text"), "there is no such file"),
    (("predict", "FILE.onnx", "DATA", "--providers", "cdua"), "did you mean 'cuda'"),
    (("predict", "FILE.onnx", "a text", "--masks", "FILE.onnx"), "the path is a file"),
    (("predict", "FILE.onnx", "a text", "--csv", "--json"), "give one of the two"),
    (("bench", "nowhere.onnx"), "there is no such ONNX file"),
    (("bench", "OWN", "FILE.onnx"), "give one run, or ONNX files"),
    (("bench", "OWN", "--threads", "x"), "is no list of positive numbers"),
    (("bench", "OWN", "--csv", "nowhere/a.csv"), "folder to write to does not exist"),
    (("bench", "OWN", "--providers", ""), "there is no provider"),
    (("report", "OWN", "-o", "nowhere/a.html"), "folder to write to does not exist"),
    (("report", "OWN", "-d", "nowhere"), "path does not exist"),
    (("report", "nowhere"), "there is no checkpoint here"),
    *(
        (("compare", "-m", "timm:resnet18", "-d", "PHOTOS", "-o", "new", *wrong.split()), says)
        for wrong, says in {
            "-r lora/all_conv,lora/all_cov": "did you mean 'lora/all_conv'",
            "-r lora/all_conv --schedule cosin": "is none of cosine",
            "-r lora/all_conv --metric f2": "the task 'classify' has no metric 'f2'",
            "-r lora/all_conv --lr fast": "is no list of learning rates",
            "-r lora/all_conv --weights nowhere.pth": "there is no such weights file",
            "-r lora/all_conv --task custom --loss nowhere.py:loss": "there is no such Python file",
            "-r lora/all_conv -o FILE.onnx": "the path is a file",
            "-r lora/all_conv -d nowhere": "path does not exist",
            "-r lora/all_conv -m timm:resnet81": "timm has no model",
        }.items()
    ),
    (("rules", "list", "-m", "timm:resnet81"), "timm has no model"),
    (("rules", "show", "lora/all_cov"), "did you mean 'lora/all_conv'"),
    (("rules", "test", "lora/all_cov"), "did you mean 'lora/all_conv'"),
    (("rules", "test", "DATA"), "the folder contains no rule file"),
    (("rules", "schema", "-o", "nowhere/a.json"), "folder to write to does not exist"),
    (("demo", "-o", "FILE.onnx"), "this is a file"),
]


def test_cheap_checks_come_before_torch(tmp_path: Path) -> None:
    for name in ("DATA", "OLD", "OWN", "RUN", "PHOTOS", "PHOTOS/cats"):
        (tmp_path / name).mkdir()
    (tmp_path / "FILE.onnx").write_bytes(b"no model")
    (tmp_path / "OLD" / "history.jsonl").write_text("")
    own = {"model": {"spec": "timm:resnet18"}, "training": {"loss": "net.py:loss"}}
    (tmp_path / "OWN" / "manifest.json").write_text(json.dumps(own))
    (tmp_path / "RUN" / "manifest.json").write_text(json.dumps({"model": {"spec": "net.py:make"}}))
    before = sorted(tmp_path.rglob("*"))
    code = f"""
import sys
from typer.testing import CliRunner
from utcompile.cli import app
for arguments, says in {CHEAP!r}:
    result = CliRunner().invoke(app, list(arguments))
    said = " ".join(result.stderr.replace("\u2502", " ").split())  # a box around the errors of typer
    assert result.exit_code in (1, 2) and says in said, (arguments, result.output, result.exception)
    assert "torch" not in sys.modules, arguments
"""
    package = str(Path(utcompile.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r})\n{code}"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_texts_may_end_like_the_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    check_inputs(tmp_path / "a.onnx", ["the picture is named cat.jpg"])
    check_inputs(tmp_path / "run", ["cat.jpg", "dull"])
    with pytest.raises(UtcError, match="there is no such file"):
        check_inputs(tmp_path / "run", ["cats.npz"])


def test_words_are_those_of_the_packages() -> None:
    from timm.optim import list_optimizers

    from utcompile.deploy import half, runtime
    from utcompile.train import folders, settings, tasks

    assert {name for name in list_optimizers() if not name.startswith("bnb")} <= set(timm_optimizers())
    assert MOST == settings.MOST and METRICS == tasks.METRICS and folders.SUFFIXES == IMAGE_SUFFIXES
    assert DTYPES == half.DTYPES and tuple(runtime.PROVIDERS) == PROVIDERS

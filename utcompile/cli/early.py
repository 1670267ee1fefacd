"""Checks that cost nothing, made before torch is imported and the model is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from utcompile.cli.folders import MANIFEST, is_run
from utcompile.cli.names import rule_names, timm_names, torchvision_names
from utcompile.cli.options import SPECS, shapes_of
from utcompile.errors import UtcError, did_you_mean

_STATE = Path("last") / "training_state.pt"


def check_tensorboard() -> None:
    """Refuse to write for TensorBoard without its package."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UtcError(
            "--tensorboard needs the package tensorboard",
            fix="pip install tensorboard, or read metrics.csv",
            code="train/needs",
        )


def check_packages() -> None:
    """Refuse to train without accelerate."""
    if importlib.util.find_spec("accelerate") is None:
        from utcompile.train.needs import check_accelerate

        check_accelerate()


def check_model(spec: str) -> None:
    """Raise where a model's name is none: no such kind, name, or file.

    Names of pretrained weights (`resnet50.a1_in1k`), modules and folders are looked at when the model is built.
    """
    kind, colon, name = spec.rpartition(":") if ".py:" in spec else spec.partition(":")
    if not colon or not kind or not name:
        fix = f"give {SPECS}"
        if spec in timm_names():
            fix = f"write timm:{spec}; other models are {SPECS}"
        raise UtcError(f"{spec!r} names no model", fix=fix, code="model/unknown")
    if kind == "timm" and timm_names() and name.partition(".")[0] not in timm_names():
        fix = did_you_mean(name.partition(".")[0], timm_names())
        raise UtcError(
            f"timm has no model {name!r}", fix=f"{fix} List them with timm.list_models()", code="model/unknown"
        )
    if kind == "torchvision" and torchvision_names() and name not in torchvision_names():
        raise UtcError(
            f"torchvision has no classification or segmentation model {name!r}",
            fix=did_you_mean(name, torchvision_names()),
            code="model/unknown",
        )
    folders = {name, name.rpartition("@")[0] or name}  # hf:DIR@text names a head
    if kind == "hf" and not any((Path(folder) / "config.json").is_file() for folder in folders):
        raise UtcError(
            "the folder contains no model of transformers",
            where=name,
            why="there is no config.json in it" if Path(name).is_dir() else "there is no such folder",
            fix="give a local folder that `save_pretrained` wrote; names on the hub are not downloaded",
            code="model/unknown",
        )
    if kind.endswith(".py") and not Path(kind).is_file():
        raise UtcError(
            "there is no such Python file", where=kind, fix="name a file of yours, as net.py:make", code="model/unknown"
        )


def runs_code(spec: str) -> bool:
    """Whether building a model runs code of the user's: a factory."""
    return ".py:" in spec or spec.partition(":")[0] not in ("timm", "torchvision", "hf", "demo")


def check_weights(path: Path | None) -> None:
    """Raise where there is no such file of weights."""
    if path is not None and not path.is_file():
        raise UtcError(
            "there is no such weights file",
            where=str(path),
            fix="check the path given to --weights",
            code="model/weights",
        )


def check_example(example: str | None, shapes: Sequence[str] | None = None) -> None:
    """Raise where example inputs come from no file, or their sizes are none."""
    shapes_of(shapes or ())
    if example is None or example.endswith(".npz"):
        if example is not None and not Path(example).is_file():
            raise UtcError(
                "there is no such file of example inputs",
                where=example,
                fix="correct --example; numpy.savez writes such files",
                code="path/invalid",
            )
        return
    module, colon, name = example.rpartition(":")
    if not colon or not module or not name:
        raise UtcError(
            f"{example!r} names no function", fix="give the example as file.py:function", code="model/unknown"
        )
    if module.endswith(".py") and not Path(module).is_file():
        raise UtcError("there is no such Python file", where=module, fix="correct --example", code="model/unknown")


def check_rules(source: str) -> None:
    """Raise where rules are neither a file nor shipped."""
    if "\n" not in source and not Path(source).is_file() and source not in rule_names():
        why = "it is neither a file nor the name of shipped rules; YAML text would have more than one line"
        raise UtcError(
            f"no rules {source!r:.200}", why=why, fix=did_you_mean(source, rule_names()), code="rule/not-found"
        )


def check_rule_path(source: str | None) -> None:
    """Raise where a file of rules, a folder of them, or shipped rules are none; None is all that are shipped."""
    if source is None or not Path(source).is_dir():
        check_rules(source or rule_names()[0])
    elif not any(Path(source).rglob("*.yaml")):
        raise UtcError(
            "the folder contains no rule file", where=source, fix="rule files end in .yaml", code="rule/not-found"
        )


def check_data(path: Path, task: str) -> None:
    """Raise where there is no data, or no class folder where there must be some."""
    if ".py:" in str(path):
        check_example(str(path))
        return
    if not path.exists():
        raise UtcError(
            "the data path does not exist",
            where=str(path),
            fix="correct the path given to --data",
            code="data/not-found",
        )
    if task == "classify" and path.is_dir():
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        if not any(e.is_dir() or e.name.startswith("train.") or e.suffix == ".json" for e in entries):
            raise UtcError(
                "the folder contains no class folders",
                where=str(path),
                why=f"{len(entries)} files lie in it directly" if entries else "it is empty",
                fix="put the images of each class into a folder named for it",
                code="data/not-found",
            )


def check_new_run(out: Path) -> None:
    """Raise where a new run would be written over another."""
    if out.exists() and not out.is_dir():
        raise UtcError("the run folder is a file", where=str(out), fix="give another path", code="train/run")
    if (out / _STATE).exists() or (out / "history.jsonl").exists():
        raise UtcError(
            "the folder contains a run already",
            where=str(out),
            fix="continue it with --resume, or give another folder",
            code="train/run",
        )
    if is_run(out):
        raise UtcError(
            "the folder contains a checkpoint already",
            where=str(out),
            why=f"{out / MANIFEST} exists",
            fix="give another folder",
            code="train/run",
        )

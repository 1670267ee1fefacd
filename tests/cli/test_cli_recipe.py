"""Recipes, `key=value` and flags; what the shell completes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.cli_toys import refused, utc

from utcompile.cli import train as train_verb
from utcompile.cli.complete import complete_model, complete_override, complete_recipe, complete_rules
from utcompile.cli.names import recipe_files, rule_names, timm_names, torchvision_names
from utcompile.cli.train_checks import TASKS, USES, WORDS


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The values with which `train` would start."""
    found: list[dict[str, Any]] = []

    def start(values: dict[str, Any]) -> dict[str, Any]:
        found.append(dict(values))
        values["report"] = False  # there is no run
        return {"run": "run", "model": "timm:resnet18", "task": "classify", "stopped_early": False, "text": "done"}

    monkeypatch.setattr(train_verb, "start_run", start)
    return found


def test_a_flag_wins_over_key_value_over_the_file_over_the_default(
    settled: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "about: Mine.\nepochs: 7\nlr: 1e-4\nbatch-size: 5\nvar: {r: 2}\nrate: {train: 1e-2}\nlabel_column: [a, b]\n"
        "skip_bad: on\npatience: none\ntrain: pattern:head\n"
    )
    result = utc("train", "--recipe", recipe, "--epochs", "9", "lr=3e-4", "epochs=8", "seed=4", "input-size=32")
    assert result.exit_code == 0, result.output
    values = settled[0]
    assert (values["epochs"], values["lr"], values["batch_size"], values["seed"]) == (9, 3e-4, 5, 4)
    assert (values["var"], values["rate"], values["label_column"]) == (["r=2"], ["train=1e-2"], ["a", "b"])
    assert (values["skip_bad"], values["patience"], values["input_size"]) == (True, None, "32")
    assert values["train_"] == ["pattern:head"] and values["schedule"] == "cosine"  # the default


def test_every_flag_is_a_key_and_lists_are_read_as_flags_are(settled: list[dict[str, Any]]) -> None:
    keys = ("train=none", "input=x=2,3,32,32", "var=r=4", "var=names=[q, v]", "metric=f1, accuracy", "rate=a=1,b=2")
    assert utc("train", *keys, "label_column=a b,c", "out=run").exit_code == 0
    values = settled[0]
    assert (values["train_"], values["input_shapes"]) == (["none"], ["x=2,3,32,32"])
    assert (values["var"], values["metric"]) == (["r=4", "names=[q, v]"], ["f1", "accuracy"])
    assert (values["rate"], values["label_column"], values["out"]) == (["a=1", "b=2"], ["a b", "c"], Path("run"))
    assert utc("train", "train=null", "metric=~").exit_code == 0
    assert settled[1]["train_"] is None and settled[1]["metric"] is None


@pytest.mark.parametrize("name", recipe_files())
def test_shipped_recipes(name: str, settled: list[dict[str, Any]]) -> None:
    assert utc("train", "--task", name).exit_code == 0 and utc("train", "--recipe", name).exit_code == 0
    assert settled[0]["task"] == settled[1]["task"] == name
    assert settled[0] | {"recipe": None} == settled[1] | {"recipe": None}


@pytest.mark.parametrize(
    ("arguments", "text", "says"),
    [
        (("epohcs=3",), "", ("epohcs=3: there is no option 'epohcs'", "did you mean 'epochs'")),
        (("epochs=many",), "", ("'epochs' cannot be 'many'", "a whole number")),
        (("augment=perhaps",), "", ("true or false",)),
        (("epochs",), "", ("'epochs' is not key=value",)),
        (("lr=1", "lr=2"), "", ("'lr' is given twice",)),
        ((), "epohcs: 3\n", (".yaml:1:1: there is no option 'epohcs'",)),
        ((), "lr: 1\nlr: 2\n", (".yaml:2:1: 'lr' is given twice",)),
        ((), "lr: {a: {b: 1}}\n", ("nested too deep",)),
        ((), "- a\n", ("a recipe is a mapping",)),
        ((), "lr: [\n", ("the recipe cannot be read",)),
        ((), "resume: true\n", ("there is no option 'resume'",)),
        (("train_=none",), "", ("there is no option 'train_'", "did you mean 'train'")),
        (("input_shapes=x=1",), "", ("there is no option 'input_shapes'",)),
        (("--recipe", "segmnt"), None, ("no recipe 'segmnt'", "did you mean 'segment'")),
        (("--task", "segmnt"), None, ("unknown task 'segmnt'", "did you mean 'segment'")),
    ],
)
def test_mistakes(arguments: tuple[str, ...], text: str | None, says: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text or "")
    refused("train", *arguments, *(() if text is None else ("--recipe", recipe)), says=says)


@pytest.mark.full
def test_names_are_those_of_the_packages() -> None:
    import timm
    from torchvision import models

    from utcompile.rules import shipped_rules

    assert set(timm_names()) == set(timm.list_models())
    known = {*models.list_models(module=models), *models.list_models(module=models.segmentation)}
    assert known <= set(torchvision_names())
    assert list(rule_names()) == list(shipped_rules())


def test_completion_of_values() -> None:
    assert complete_model("ti") == ["timm:"]
    assert "timm:resnet18" in complete_model("timm:resnet1")
    options = [SimpleNamespace(name=name, opts=[f"--{name}"]) for name in ("epochs", "ema", "json")]
    context = SimpleNamespace(command=SimpleNamespace(params=options), params={})
    assert complete_override(context, "e") == ["epochs=", "ema="]
    context.params = {"model": "timm", "overrides": [":"]}  # as bash makes words of `timm:resnet1`
    assert "resnet18" in complete_override(context, "resnet1")
    assert complete_rules("lora/all_") == ["lora/all_conv", "lora/all_linear"]
    assert complete_recipe("seg") == ["segment"]


def test_words_and_tasks_are_those_of_the_trainer() -> None:
    from utcompile.train import settings, tasks
    from utcompile.train.schedule import SCHEDULES

    assert WORDS["schedule"] == SCHEDULES and WORDS["precision"] == settings.PRECISIONS
    assert WORDS["class_weights"] == settings.CLASS_WEIGHTS and TASKS == tasks.TASKS
    assert all(set(names) < set(TASKS) for names in USES.values())

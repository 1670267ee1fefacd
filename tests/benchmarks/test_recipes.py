"""The recipes of the paper's runs: the command that the page of results prints is one that works, on data of its form."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli_toys import parsed

from benchmarks.results_page import _RECIPES
from utcompile.rules import shipped_rules


def recipe() -> list[str]:
    """The arguments of the command, with the shell's variables put in."""
    text = _RECIPES.replace("\\\n", " ")
    values = dict.fromkeys(("RULES", "set"), "")
    for name, value in re.findall(r"^(RULES)=(\S+)", text, re.MULTILINE):
        values[name] = value.replace("$RULES", values[name])
    values["set"] = "cifar100"
    (line,) = re.findall(r"utcompile (compare .*)", text)
    return shlex.split(re.sub(r"\$(\w+)", lambda found: values[found[1]], line))


def test_every_rule_of_the_recipe_is_shipped_and_every_data_set_of_the_paper_is_named():
    arguments = recipe()
    rules = arguments[arguments.index("-r") + 1].split(",")
    assert len(rules) == 11 and set(rules) - {"full"} <= set(shipped_rules()) and "u_tuning/tri" in rules
    assert arguments[arguments.index("-m") + 1] == "timm:vit_base_patch16_224.augreg_in21k"
    assert "for set in cifar100 cub nabirds flowers cars dogs;" in _RECIPES


@pytest.mark.full
def test_the_command_takes_its_steps_with_every_rule(tmp_path: Path) -> None:
    for i in range(12):
        folder = tmp_path / "cifar100" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 40 + 160 * (i % 2) + i, np.uint8)).save(folder / f"{i}.png")
    arguments = recipe()
    smaller = {
        "-m": "timm:test_vit", "-d": str(tmp_path / "cifar100"), "-o": str(tmp_path / "out"), "--seeds": "1",
        "--epochs": "1", "--batch-size": "8", "--lr": "1e-3",
    }  # fmt: skip
    for option, value in smaller.items():
        arguments[arguments.index(option) + 1] = value
    found = parsed(*arguments, "--no-pretrained", "--input-size", "64", "--latency", "none")
    assert found["left_out"] == {} and len(found["rows"]) == 11

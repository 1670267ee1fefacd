"""The smallest model of each of timm's classes, captured and compared with the model: values, gradients, several sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from tools.zoo.rows import Task
from tools.zoo.work import work

# written from the rows of the zoo; "shapes" where comparing values needs more than 10 GB or four minutes (768 px and more)
_LISTED = [line.split() for line in Path(__file__).with_name("timm_classes.txt").read_text().splitlines()]
# what an ordinary run does of it
_SLICE = ("test_vit", "test_resnet", "efficientvit_b0")


@pytest.mark.parametrize(
    ("verify", "name"),
    [pytest.param(*line, id=line[1], marks=() if line[1] in _SLICE else pytest.mark.full) for line in _LISTED],
)
def test_a_model_of_each_class(verify: str, name: str) -> None:
    row = work(Task("timm", name, verify), lambda _: None)
    assert (row.status, row.opaque, row.reason) == ("ok", (), "")
    assert row.verified.startswith("values" if verify == "full" else "shapes")


def test_the_list_names_models_of_this_timm() -> None:
    assert {name for _, name in _LISTED} <= {*timm.list_models()}

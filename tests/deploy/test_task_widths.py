"""Tasks of one file whose tuners have another rank or width, and another fixed factor on the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import shake
from support.onnx_toys import IDS, IMAGES, MASK, Pixels, Texts
from torch import nn

import utcompile as utc
from utcompile.deploy import verify_tasks

RULES = """version: 1
name: t
vars: {size: 4, alpha: 2}
rules:
  - {name: r, match: {op: NAME}, not_inside: {module: head}, insert: {INSERT}}
train: ['pattern:head']
"""
KINDS = {
    "lora": ("linear", "weight: h, tuner: {kind: lora, r: $size, alpha: $alpha, how: branch}"),
    "lora of the weight": ("linear", "weight: h, tuner: {kind: lora, r: $size, alpha: $alpha, how: reparametrised}"),
    "rslora": ("linear", "weight: h, tuner: {kind: lora, r: $size, alpha: $alpha, rslora: true, how: branch}"),
    "dora": ("linear", "weight: h, tuner: {kind: dora, r: $size, alpha: $alpha}"),
    "adapter": ("linear", "parallel: x -> h, tuner: {kind: adapter, dim: $size, scale: channel, factor: $alpha}"),
    "conv lora": ("conv2d", "weight: h, tuner: {kind: lora, r: $size, alpha: $alpha, how: branch}"),
    "conv adapter": ("conv2d", "parallel: x -> h, tuner: {kind: adapter, dim: $size, factor: $alpha}"),
    "conv_lora": ("conv2d", "parallel: x -> h, tuner: {kind: conv_lora, r: $size, alpha: $alpha}"),
}
TASKS: dict[str, tuple[int, dict[str, int]]] = {
    "same": (3, {}),
    "wide": (5, {"size": 8, "alpha": 1}),
    "thin": (2, {"size": 1}),
    "wider": (3, {"size": 16, "alpha": 3}),
}
Inputs = tuple[torch.Tensor, ...]


def compiled(kind: str, classes: int, values: Mapping[str, int]) -> tuple[utc.TunedModule, Inputs]:
    op, insert = KINDS[kind]
    build, example = (Pixels, (IMAGES,)) if "conv" in kind else (Texts, (IDS, MASK))
    rules = RULES.replace("NAME", op).replace("INSERT", insert)
    return utc.compile(build(classes).eval(), rules, example, vars=values).eval(), example


def runs(folder: Path, kind: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for seed, (name, (classes, values)) in enumerate(TASKS.items()):
        tuned, _ = compiled(kind, classes, values)
        torch.manual_seed(seed)
        shake(tuned)
        utc.save_tuners(tuned, folder / name)
        found[name] = tuned
    return found


def check(path: Path, its: Mapping[str, nn.Module], example: Inputs) -> None:
    model = utc.OnnxModel(path)
    rows = list(its)[:2]
    mixed = model(*example, task=rows)
    assert isinstance(mixed, np.ndarray)
    with torch.no_grad():
        for name, own in its.items():
            # float32 in other orders of sums, and a factor that is rounded into B
            np.testing.assert_allclose(model(*example, task=name), own(*example).numpy(), atol=2e-5, err_msg=name)
        for i, name in enumerate(rows):
            wanted = its[name](*example).numpy()[i]
            np.testing.assert_allclose(mixed[i, : len(wanted)], wanted, atol=2e-5)


SOME = ("lora",)


@pytest.mark.parametrize("kind", [k if k in SOME else pytest.param(k, marks=pytest.mark.full) for k in KINDS])
def test_each_task_has_its_own_width(kind: str, tmp_path: Path) -> None:
    its = runs(tmp_path, kind)
    tuned, example = compiled(kind, 3, {})
    path = tmp_path / "m.onnx"
    tasks = {name: tmp_path / name for name in ("same", "wide")}
    result = utc.export_onnx(tuned, path, example, tasks=tasks, batch_sizes=(2,))
    assert not any("all tasks have the ranks" in note for note in result.notes)
    for name in ("thin", "wider"):
        utc.add_task(path, tmp_path / name)
    check(path, its, example)
    known = json.loads(path.with_suffix(".json").read_text())
    assert {task["sizes"].get("r.dim", task["sizes"].get("r.r")) for task in known["tasks"]} == {4, 8, 1, 16}
    assert verify_tasks(path, tuned, example, [tmp_path / name for name in its], (2,)).passed
    np.testing.assert_allclose(utc.OnnxModel(path)(*example), tuned(*example).detach().numpy(), atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_room_for_the_widest(kind: str, tmp_path: Path) -> None:
    its = runs(tmp_path, kind)
    tuned, example = compiled(kind, 3, {})
    path = tmp_path / "m.onnx"
    tasks = {name: tmp_path / name for name in ("wide", "same")}
    utc.export_onnx(tuned, path, example, tasks=tasks, routing="row", batch_sizes=(2,))
    utc.add_task(path, tmp_path / "thin")
    check(path, {name: its[name] for name in ("wide", "same", "thin")}, example)
    if kind in ("lora of the weight", "dora"):  # the file has changed weights, of one size for all ranks
        utc.add_task(path, tmp_path / "wider")
        check(path, {name: its[name] for name in ("wide", "same", "thin", "wider")}, example)
        return
    before = path.read_bytes()
    with pytest.raises(utc.UtcError, match=r"the task has a larger r\.\w+ than the file has room for: 8"):
        utc.add_task(path, tmp_path / "wider")
    assert path.read_bytes() == before

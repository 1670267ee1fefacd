"""Tuned modules inside what training loops wrap around them, and several tasks on one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.utils.model_ema as ema
import torch
from support import models as zoo
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import utcompile as utc

X = torch.linspace(-1, 1, 8).view(2, 4)


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, classes)).eval()


def tuned_of(classes: int = 3, train: bool = True) -> utc.TunedModule:
    rules = utc.RuleSet.load("lora/all_linear", vars={"r": 2})
    torch.manual_seed(1)
    return utc.compile(net(classes), rules, (X,), verify="shapes")


def shaken(tuned: utc.TunedModule, std: float) -> utc.TunedModule:
    zoo.shake(tuned, std)
    return tuned.eval()


class Holder:
    def __init__(self, model: nn.Module) -> None:
        self.inner = model


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.deep = nn.ModuleList([model])


def averaged(tuned: nn.Module) -> AveragedModel:
    result = AveragedModel(tuned, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        result.update_parameters(tuned)
    return result


def ema_v3(tuned: nn.Module) -> ema.ModelEmaV3:
    result = ema.ModelEmaV3(tuned, decay=0.9)
    for _ in range(3):
        result.update(tuned)
    return result


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, averaged, ema_v3, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_saving_and_folding_take_the_model_out_of_its_wrapper(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    tuned = shaken(tuned_of(), 0.3)
    wrapped = wrap(tuned)
    utc.save_tuners(wrapped, tmp_path / "ours")
    utc.save_peft(wrapped, tmp_path / "peft")
    # an average of equal values is one of them, up to rounding
    assert torch.allclose(utc.load_tuners(tuned_of(), tmp_path / "ours").eval()(X), tuned(X), atol=1e-6)
    assert torch.allclose(utc.load_peft(tuned_of(), tmp_path / "peft").eval()(X), tuned(X), atol=1e-6)
    assert torch.allclose(utc.fold(wrapped)[0](X), tuned(X), atol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "fix"),
    [
        (Holder, "save_tuners(model.inner, …)"),
        (Around, "save_tuners(model.deep.0, …)"),
        (lambda m: ema.ModelEmaV2(m), "ModelEmaV3"),
        (lambda m: ema.ModelEma(m), "ModelEmaV3"),
        (lambda m: nn.Linear(2, 2), "compile the model first"),
    ],
)
def test_what_is_not_clear_says_how(wrap: Callable[[Any], Any], fix: str, tmp_path: Path) -> None:
    with pytest.raises(utc.UtcError, match="fix: ") as caught:
        utc.save_tuners(wrap(tuned_of()), tmp_path / "run")
    assert fix in str(caught.value)


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[utc.TunedModule, dict[str, tuple[utc.TunedModule, Path]]]:
    """A tuned module, and three tasks of 2, 3 and 5 classes that were trained elsewhere."""
    folder = tmp_path_factory.mktemp("tasks")
    found = {}
    for i, classes in enumerate((2, 3, 5)):
        other = shaken(tuned_of(classes), 0.2 + 0.1 * i)
        found[f"t{classes}"] = other, utc.save_tuners(other, folder / str(classes))
    tuned = shaken(tuned_of(), 0.1)
    for name, (_, path) in found.items():
        tuned.add_task(name, path)
    return tuned, found


def test_a_task_computes_what_its_own_model_computes(tasks: Any) -> None:
    tuned, found = tasks
    code, default = tuned.code, tuned(X)
    assert tuned.task == "default"
    for name in ("t2", "t5", "t3", "t2", "default", "t5"):
        tuned.set_task(name)
        expected = default if name == "default" else found[name][0](X)
        assert torch.equal(tuned(X), expected) and tuned.task == name
    tuned.set_task("default")
    assert tuned.code is code and torch.equal(tuned(X), default)


def test_a_task_trains_saves_folds_and_is_copied_alone(tasks: Any, tmp_path: Path) -> None:
    tuned, found = copy.deepcopy(tasks[0]), tasks[1]
    tuned.set_task("t5")
    before = tuned(X)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    tuned(X).square().sum().backward()
    optimizer.step()
    after = tuned(X)
    assert not torch.equal(after, before)
    assert torch.allclose(utc.fold(tuned)[0](X), after, atol=1e-5)
    utc.save_tuners(tuned, tmp_path)
    folded, _ = utc.fold(tuned)
    assert tuned.get_submodule("2").out_features == folded.get_submodule("2").out_features == 5
    tuned.set_task("t2")
    assert tuned.get_submodule("2").out_features == 2 and folded.get_submodule("2").out_features == 5
    assert torch.equal(tuned(X), found["t2"][0](X))
    assert torch.equal(utc.load_tuners(tuned_of(5), tmp_path).eval()(X), after)
    tuned.set_task("t5")
    assert torch.equal(tuned(X), after)
    assert torch.equal(tasks[0](X), copy.deepcopy(tasks[0])(X))


def test_tasks_that_wait_are_cast_with_the_module(tasks: Any) -> None:
    tuned = copy.deepcopy(tasks[0]).double()
    tuned.set_task("t2")
    assert torch.allclose(tuned(X.double()).float(), tasks[1]["t2"][0](X), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "says"),
    [("t9", "known: default, t2, t3, t5"), (3, "must be a task's name"), (["t2"], "must be a task's name")],
)
def test_no_such_task(tasks: Any, name: Any, says: str) -> None:
    with pytest.raises(utc.UtcError, match=says):
        tasks[0].set_task(name)


def test_a_task_is_checked_as_a_checkpoint_is(tasks: Any, tmp_path: Path) -> None:
    tuned, found = tasks
    with pytest.raises(utc.UtcError, match="there is a task 't2' already"):
        tuned.add_task("t2", found["t2"][1])
    with pytest.raises(utc.UtcError, match="there is no checkpoint here"):
        tuned.add_task("new", tmp_path)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    utc.save_tuners(utc.compile(other, "lora/all_linear", (X,), vars={"r": 2}, verify="shapes"), tmp_path / "other")
    with pytest.raises(utc.UtcError, match="another base"):
        tuned.add_task("new", tmp_path / "other")
    assert "new" not in tuned.tasks.names

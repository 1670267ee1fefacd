"""`within=`: parts of a model are tuned inside the user's own class, and every door takes the result."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import models as zoo
from support.parts_toys import RULES, Block, Blocks, Finder, Looped, Odd, Tied
from torch import nn

import utcompile as utc
from utcompile.rewrite import Whole


@pytest.fixture(scope="module")
def blocks() -> tuple[Blocks, torch.Tensor]:
    torch.manual_seed(0)
    return Blocks(), torch.randn(2, 5, 8)


Made = tuple[Blocks, torch.Tensor]


@pytest.fixture(scope="module")
def captured(blocks: Made) -> utc.CapturedParts:
    return utc.capture_parts(*blocks, within="stages.*")


def tuned_of(captured: utc.CapturedParts, train: list[str] | None = None) -> nn.Module:
    torch.manual_seed(0)
    tuned = utc.match(captured, RULES, train=train).apply()
    zoo.shake(tuned, 0.3)
    return tuned.eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_model_with_losses_and_choices_trains_in_its_own_loop(tmp_path: Path) -> None:
    model = Finder()
    before = state(model)
    images = [torch.rand(3, 8, 12) for _ in range(2)]
    masks = [i[0, ::2, ::2].round() for i in images]
    tuned = utc.compile(model, RULES, (images, masks), within="backbone", train=["module:head"])
    assert type(tuned) is Finder and isinstance(tuned.backbone, utc.TunedModule) and type(tuned.head) is nn.Sequential
    names = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in tuned.named_parameters() if ".tuners." in n or n.startswith("head.")}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for step in range(8):  # images of several widths: what a part allows to vary varies
        wide = [torch.cat([i] * (1 + step % 2), 2) for i in images]
        loss = tuned(wide, [torch.cat([m] * (1 + step % 2), 1) for m in masks])["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert same(state(model), before), "training has changed the original"
    found = tuned.eval()(images)
    assert all(f.shape[1] == 2 for f in found)

    utc.save_tuners(tuned, tmp_path)
    again = utc.compile(model, RULES, (images, masks), within="backbone", train=["module:head"])
    utc.load_tuners(again, tmp_path)
    assert same(state(again), state(tuned)), "statistics of norms outside of the parts are saved too"
    folded, report = utc.fold(tuned)
    assert type(folded) is Finder and type(folded.backbone) is nn.Sequential and report.is_original
    assert all(torch.equal(a, b) for a, b in zip(folded(images), found, strict=True))
    model.load_state_dict(folded.state_dict(), strict=True)


def test_all_doors_take_a_model_with_tuned_parts(blocks: Made, captured: utc.CapturedParts, tmp_path: Path) -> None:
    model, x = blocks
    tuned = tuned_of(captured)
    whole = Whole.of(tuned, "test")
    assert [s.id for s in whole.sites][:2] == ["linear/stages.0.up/0", "linear/stages.0.down/0"]
    changed, base = tuned(x), model(x)
    assert not torch.allclose(changed, base, atol=1e-3)
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), base)
    utc.save_tuners(tuned, tmp_path / "run")
    again = utc.match(captured, RULES).apply().eval()
    assert torch.equal(again(x), base), "identity at the start"
    assert utc.load_tuners(again, tmp_path / "run") is again and torch.equal(again(x), changed)
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(other(x), changed)
        utc.load_task(other, "same", tmp_path / "run")
        zoo.shake(other, 0.5)
        utc.set_task(other, "same")
        assert torch.equal(other(x), changed)
        utc.set_task(other, "default")
        assert not torch.allclose(other(x), changed, atol=1e-3)
    wrapped = torch.optim.swa_utils.AveragedModel(tuned)
    utc.save_tuners(wrapped, tmp_path / "average")
    folded, report = utc.fold(wrapped)
    assert type(folded) is Blocks and type(folded.stages[0]) is type(model.stages[0])
    assert report.is_original and [s.status for s in report.sites] == ["absorbed"] * 6
    assert [s.id for s in report.sites] == [s.id for s in whole.sites]
    torch.testing.assert_close(folded(x), changed, rtol=1e-5, atol=1e-5)  # rounding of the folded weights


@pytest.mark.parametrize("inside", [False, True])
def test_a_task_with_other_classes_is_folded_to_the_users_class(inside: bool, tmp_path: Path) -> None:
    """With a head outside of the parts, and with one inside."""

    def model_of(classes: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(Block(8), Block(8)), nn.Linear(8, classes))

    x = torch.randn(2, 5, 8)
    rules = RULES.replace("expect", "select: {first: 4}, expect")
    around, of_five = (
        utc.compile(nn.Sequential(model_of(n)), rules, x, within="0" if inside else "0.0", train=["module:0.1"])
        for n in (2, 5)
    )
    zoo.shake(of_five, 0.3)
    utc.save_tuners(of_five, tmp_path)
    utc.load_task(around, "five", tmp_path)
    start = around.eval()(x)
    utc.set_task(around, "five")
    expected = of_five.eval()(x)
    assert torch.equal(around(x), expected)
    folded, _ = utc.fold(around)
    assert type(folded[0]) is nn.Sequential and folded[0][1].out_features == 5
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)  # rounding of the folded weights
    utc.set_task(around, "default")
    assert torch.equal(around(x), start) and folded[0][1].out_features == 5
    again, _ = utc.fold(around)
    assert again[0][1].out_features == 2


def test_memory_is_shared_and_flags_are_not(blocks: Made, captured: utc.CapturedParts) -> None:
    model, _ = blocks
    tuned = tuned_of(captured, train=["module:head"])
    frozen = {p.data_ptr() for p in tuned.parameters() if not p.requires_grad}
    assert {p.data_ptr() for n, p in model.named_parameters() if not n.startswith("head")} <= frozen
    assert all(p.requires_grad for p in model.parameters())
    assert tuned.head.weight.data_ptr() != model.head.weight.data_ptr()


def test_a_plan_counts_over_all_parts(captured: utc.CapturedParts) -> None:
    plan = utc.match(
        captured, RULES.replace("expect: {optional: true}}\n  - {name: conv", "select: {last: 3}}\n  - {name: conv")
    )
    assert [s.id for s in plan.sites] == ["linear/stages.1.down/0", "linear/stages.2.up/0", "linear/stages.2.down/0"]
    assert plan.parameters == sum(p.numel() for p in plan.apply().parameters() if p.requires_grad)
    assert set(plan.plans) == {"stages.1", "stages.2"}
    assert "3 sites in 2 parts" in str(plan) and "linear" in plan.explain("stages.1.down")
    assert plan.to_dict()["trainable_parameters"] == plan.parameters
    assert "linear: 0 sites" in plan.explain("stages.0") and set(plan.explanations()) == {
        f"stages.{i}" for i in range(3)
    }
    with pytest.raises(utc.UtcError, match="none of the parts"):
        plan.explain("head")
    with pytest.raises(utc.UtcError, match="matched 6 places, expected exactly 2"):
        utc.match(
            captured,
            RULES.replace("expect: {optional: true}}\n  - {name: conv", "expect: {exactly: 2}}\n  - {name: conv"),
        )


def test_one_part_is_called_at_several_sizes_in_one_graph() -> None:
    model, x = Looped(), torch.randn(2, 4, 16, 16)
    tuned = utc.compile(model, RULES, x, within="step")
    assert isinstance(tuned.step, utc.TunedModule)
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned)
    wide = torch.randn(3, 4, 32, 32)
    torch.testing.assert_close(folded(wide), tuned(wide), rtol=1e-4, atol=1e-4)  # rounding, amplified by three rounds
    assert report.is_original


def test_ties_that_cross_a_part_stay_and_are_not_tuned() -> None:
    model, ids = Tied(), torch.randint(0, 11, (2, 5))
    tuned = utc.compile(model, RULES, ids, within=["block", "embed"], train=[])
    assert tuned.head.weight is tuned.embed.weight
    for within, train in (("head", []), ("block", ["module:head"]), (["head", "block"], ["parameter:embed.weight"])):
        with pytest.raises(utc.UtcError, match="tied to") as error:
            utc.compile(model, RULES, ids, within=within, train=train)
        assert error.value.code == "parts/shared"


def test_what_trains_outside_cannot_be_turned_off(captured: utc.CapturedParts, blocks: Made) -> None:
    tuned = tuned_of(captured, train=["module:head"])
    with pytest.raises(utc.UtcError, match="trains outside of the tuned parts"), utc.disable_tuners(tuned):
        pass
    with utc.disable_tuners(tuned.stages[0]):  # a part by itself
        tuned(blocks[1])


BAD: dict[str, tuple[Callable[[], nn.Module], object, str, str]] = {
    "names nothing": (Blocks, "stage.*", "did you mean 'stages.*'", "parts/not-found"),
    "names nothing near": (Blocks, "zzz", "the model has: head, stages", "parts/not-found"),
    "a container": (Blocks, "stages", 'within="stages.*"', "parts/not-called"),
    "never called": (Looped, ["step", "idle"], "the part idle is never called", "parts/not-called"),
    "one in another": (Blocks, ["stages.0", "stages.0.up"], "is inside the part stages.0", "parts/overlap"),
    "no glob": (Blocks, "stages..0", "a part between two dots is empty", "arguments/value"),
    "no text": (Blocks, 3, "one or several globs", "arguments/type"),
    "several ways": (Odd, "two", "called in 2 ways", "parts/signatures"),
    "no tensor": (Odd, "text", "the part text", "capture/unsupported"),
    "an object": (Odd, "remembers", "changes what it is given: a Memory", "parts/unsupported"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_parts_are_refused_by_name(name: str) -> None:
    make, within, said, code = BAD[name]
    x = {Blocks: torch.randn(2, 5, 8), Looped: torch.randn(2, 4, 8, 8), Odd: torch.randn(2, 4)}[make]
    with pytest.raises(utc.UtcError) as error:
        utc.compile(make(), RULES, x, within=within)  # type: ignore[call-overload]
    assert said in str(error.value) and error.value.code == code


def test_a_weight_that_the_code_around_a_part_reads_is_not_folded_into() -> None:
    model, x = Odd(), torch.randn(2, 4)
    beside = "version: 1\nname: a\nrules:\n  - {name: u, match: {op: linear}, insert: {parallel: x -> h, tuner: u}}\n"
    tuned = utc.compile(
        model, beside + "tuners:\n  u: {kind: adapter, dim: 2, activation: identity}\n", x, within="read"
    )
    zoo.shake(tuned, 0.5)
    with pytest.raises(utc.UtcError, match="reads their weights itself") as error:
        utc.fold(tuned)
    assert error.value.code == "fold/not-proven"


def test_a_method_that_the_code_around_a_part_calls_is_named() -> None:
    class Helped(nn.Linear):
        def helper(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Helped(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner.helper(self.inner(x))
            return result

    with pytest.raises(utc.UtcError, match="no attribute 'helper'") as error:
        utc.compile(Outer(), RULES, torch.randn(2, 4), within="inner")
    assert error.value.code == "parts/unsupported"


def test_a_checkpoint_says_which_parts_it_is_of(captured: utc.CapturedParts, blocks: Made, tmp_path: Path) -> None:
    model, x = blocks
    utc.save_tuners(tuned_of(captured), tmp_path)
    fewer = utc.compile(model, RULES, x, within=["stages.0", "stages.1"])
    with pytest.raises(utc.UtcError, match="sites are not this model's"):
        utc.load_tuners(fewer, tmp_path)
    alone = utc.compile(model.stages[0], RULES, x)
    with pytest.raises(utc.UtcError, match="of parts of a model"):
        utc.load_tuners(alone, tmp_path)
    other = copy.deepcopy(model)
    nn.init.ones_(other.head.bias)
    with pytest.raises(utc.UtcError, match="another base") as error:
        utc.load_tuners(utc.compile(other, RULES, x, within="stages.*"), tmp_path)
    assert "head.bias" in str(error.value)
    with pytest.raises(utc.UtcError, match="takes one TunedModule") as error:
        utc.save_peft(tuned_of(captured), tmp_path / "peft")
    assert "model.stages.0" in str(error.value)
    with pytest.raises(utc.UtcError, match="a budget of memory is for one graph"):
        utc.compile(model, RULES, x, within="stages.*", memory=0.5)  # type: ignore[call-overload]

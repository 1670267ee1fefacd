"""A budget of memory: a plan fits it, says what a step takes, and changes no gradient; a prefix is cut off exactly."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from support import architectures
from support import models as zoo
from torch import nn
from torch.profiler import ProfilerActivity, profile

import utcompile as utc


def total(result: Any) -> torch.Tensor:
    parts = list(result.values()) if isinstance(result, dict) else [result]
    return torch.stack([p.square().sum() for p in parts]).sum()


def gradients(module: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    module.zero_grad()
    total(module(**inputs)).backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def allocated(module: nn.Module, inputs: dict[str, Any]) -> int:
    """The most bytes that torch's allocator has out in a step."""
    gradients(module, inputs)
    module.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        total(module(**inputs)).backward()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.fixture(scope="module")
def vit() -> tuple[utc.TunedModule, dict[str, torch.Tensor]]:
    _, tuned, x = zoo.compiled("vit", "lora/all_linear")
    zoo.shake(tuned, 0.1)
    return tuned, {"x": torch.cat([x, x, x, x])}


@pytest.mark.parametrize("share", [0.45, pytest.param(0.65, marks=pytest.mark.full)])
def test_a_plan_fits_its_budget_and_predicts_the_peak(
    vit: tuple[utc.TunedModule, dict[str, torch.Tensor]], share: float
) -> None:
    tuned, inputs = copy.deepcopy(vit[0]), vit[1]
    expected = gradients(tuned, inputs)
    plan = tuned.plan_memory(share, inputs)
    assert plan.again and plan.expected.peak <= share * plan.before.peak
    assert plan.expected.flops > plan.curve[0].flops  # blocks run again
    assert plan.expected.peak == pytest.approx(allocated(tuned, inputs), rel=0.05)  # working memory of kernels aside
    plain = copy.deepcopy(vit[0])
    plain.memory = None
    assert plan.before.peak == pytest.approx(allocated(plain, inputs), rel=0.05)
    assert equal(gradients(tuned, inputs), expected)
    assert equal(gradients(pickle.loads(pickle.dumps(tuned)), inputs), expected)
    assert "runs again" in str(plan) and "without a plan" in str(plan)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_working_memory_of_convolutions_is_predicted(form: torch.memory_format) -> None:
    """Many channels on few pixels: reordered weights are more than all values."""
    convs = [m for _ in range(4) for m in (nn.Conv2d(96, 96, 3, padding=1), nn.ReLU())]
    x = torch.randn(2, 96, 5, 5).contiguous(memory_format=form)
    tuned = utc.compile(nn.Sequential(*convs), "lora/all_conv", (x,), vars={"r": 2}, verify="shapes")
    plan = tuned.memory.surveyed(tuned, (x,))
    assert plan.expected.peak == pytest.approx(allocated(tuned, {"input": x}), rel=0.1)
    assert plan.expected.peak > 2 * plan.expected.kept and not plan.again


@pytest.mark.parametrize("kind", ["convnet", "llama", "unet", pytest.param("swin", marks=pytest.mark.full)])
def test_running_everything_again_changes_no_gradient(kind: str) -> None:
    model, inputs = architectures.make(kind)
    rules = "lora/all_conv" if kind in ("convnet", "unet") else "lora/all_linear"
    tuned = utc.compile(model, rules, inputs, verify="shapes")
    zoo.shake(tuned, 0.1)
    expected = gradients(tuned, inputs)
    with pytest.raises(utc.UtcError, match="least possible"):
        tuned.plan_memory(1e-6, inputs)
    from utcompile.memory.units import units_of

    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    assert len(units) > 1
    tuned.memory = type(tuned.memory)(again=tuple((u.first, u.last) for u in units))
    assert equal(gradients(tuned, inputs), expected)


def test_a_size_counts_parameters_and_inputs() -> None:
    model, inputs = architectures.make("vit of two blocks")
    inputs = {"image": torch.cat([inputs["image"]] * 32)}  # so that values outweigh parameters
    tuned = utc.compile(model, "lora/all_linear", inputs, verify="shapes")
    large = tuned.plan_memory("1 GB", inputs)
    assert not large.again and large.others > sum(p.nbytes for p in tuned.parameters())
    needed = large.others + int(0.9 * large.expected.peak)
    assert tuned.plan_memory(needed, inputs).again
    with pytest.raises(utc.UtcError, match="are parameters, buffers and inputs"):
        tuned.plan_memory(f"{large.others // 1000}KB", inputs)


NO_BUDGETS = [0, -1, 1.5, True, "much", "8 apples", "1.2.3GB", ".", "9" * 400 + "GB", None, float("nan"), float("inf")]


@pytest.mark.parametrize(
    "budget", [*NO_BUDGETS, "0", "0GB", "0.0", "0.5B", "", "50%", b"8GB", np.float32(2), np.int64(0)]
)
def test_what_is_no_budget_is_refused(vit: tuple[utc.TunedModule, dict[str, torch.Tensor]], budget: Any) -> None:
    with pytest.raises(utc.UtcError, match="memory budget"):
        vit[0].plan_memory(budget)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "the example inputs must be a tuple, a dict or a tensor, not int"),
        ((torch.randn(2, 8), torch.randn(2, 8)), "do not fit the module's forward"),
        ({"other": torch.randn(2, 8)}, "do not fit the module's forward"),
        ((torch.randn(2, 5),), "was recorded with input.shape[1]=8, not 5"),
        (("text",), "input must be a tensor"),
    ],
)
def test_inputs_that_the_module_refuses_have_no_plan(given: Any, says: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 8),), vars={"r": 2})
    before = tuned.memory
    with pytest.raises(utc.UtcError) as caught:
        tuned.plan_memory(0.9, given)
    assert says in str(caught.value) and caught.value.fix
    assert tuned.memory is before


@pytest.mark.parametrize(
    ("budget", "is_share"),
    [(np.float32(1e-6), True), ("0.000001", True), (np.int64(1), False), ("1.0B", False), (1, False)],
)
def test_the_least_possible_is_said_as_the_budget_is(budget: Any, is_share: bool) -> None:
    x = torch.randn(40, 8)
    tuned = utc.compile(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)), "lora/all_linear", (x,))
    with pytest.raises(utc.UtcError, match="least possible") as caught:
        tuned.plan_memory(budget, (x,))
    assert ("B, of which" in str(caught.value.why)) is not is_share


def test_compile_takes_a_budget() -> None:
    model, inputs = architectures.make("vit of two blocks")
    tuned = utc.compile(model, "lora/all_linear", inputs, verify="shapes", memory=0.9)
    assert tuned.memory.expected.peak <= 0.9 * tuned.memory.before.peak
    with pytest.raises(utc.UtcError, match="memory budget is 'all'"):
        utc.compile(model, "lora/all_linear", inputs, memory="all")


LAST = """\
version: 1
name: last
tuners:
  l: {kind: lora, r: 2}
rules:
  - name: last
    match: {op: linear}
    inside: {module: "blocks.1"}
    insert: {weight: h, tuner: l}
"""


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_prefix_and_the_rest_are_the_whole(kind: str) -> None:
    model, inputs = architectures.make("vit of two blocks" if kind == "vit" else "convnet")
    rules = LAST if kind == "vit" else "probe/linear"
    tuned = utc.compile(model, rules, inputs, verify="shapes")
    zoo.shake(tuned, 0.1)
    prefix, rest = utc.split_prefix(tuned)
    border = prefix(**inputs)
    before = [b.clone() for b in border if isinstance(b, torch.Tensor)]
    assert all(not b.requires_grad for b in before) and not any(p.requires_grad for p in prefix.parameters())
    expected = gradients(tuned, inputs)
    tuned.zero_grad()
    result = rest(*border)
    total(result).backward()
    found = [p.grad.clone() for p in tuned.parameters() if p.grad is not None]
    assert torch.equal(result, tuned(**inputs)) and equal(found, expected)
    assert all(map(torch.equal, before, (b for b in border if isinstance(b, torch.Tensor))))  # nothing wrote into it
    one = prefix(**{k: v[:1] for k, v in inputs.items()})
    assert torch.allclose(rest(*one), result[:1], rtol=1e-4, atol=1e-5)  # a kernel for one row sums otherwise


def test_where_a_tuner_reads_the_inputs_there_is_no_prefix() -> None:
    model, inputs = architectures.make("convnet")
    with pytest.raises(utc.UtcError, match="no frozen prefix"):
        utc.split_prefix(utc.compile(model, "lora/all_conv", inputs, verify="shapes"))

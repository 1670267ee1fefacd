"""A linear or convolution and its LoRA as one operation: the gradients of the two, up to rounding."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from support import models as zoo
from torch import Tensor, nn
from torch.nn import functional as F

import utcompile as utc
from utcompile.memory import one_call, strides
from utcompile.memory.planned import plan_graph
from utcompile.memory.tuned_call import TunedCall
from utcompile.memory.units import units_of
from utcompile.tuners import branches

RULES = """\
version: 1
name: convolutions
tuners:
  l: {kind: lora, r: 2, how: HOW, dropout: DROP}
rules:
  - name: conv
    match: {op: conv}
    insert: {weight: h, tuner: l}
    on_refusal: skip
  - name: linear
    match: {op: linear}
    insert: {weight: h, tuner: l}
"""


class Net(nn.Module):
    """Convolutions of one and two axes, with strides, padding, dilation and biases, and one of groups; two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.few = nn.Conv2d(6, 8, 1, stride=(2, 1))
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(8, 4, (1, 3), padding=(0, 1))
        self.line = nn.Conv1d(4, 5, 3, padding=1)
        self.axes = nn.Linear(32, 6)
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.grouped(self.few(self.point(self.first(x).relu())).relu()))
        return F.linear(self.axes(self.line(x.flatten(2))).mean(1), self.weight)


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_call, "cheapest_form", lambda *_: "one")
    monkeypatch.setattr(strides, "_FEWEST", 0)
    monkeypatch.setattr(branches, "_SMALL", 0)


def pair(how: str, drop: float = 0.0) -> tuple[utc.TunedModule, utc.TunedModule, Tensor]:
    """A tuned module, the same one as torch runs it, and its input; in float64, where a wrong formula shows."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 17, 17)
    rules = RULES.replace("HOW", how).replace("DROP", str(drop))
    tuned = utc.compile(Net().eval(), rules, (x,), verify="shapes").double()
    zoo.shake(tuned, 0.1)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    return tuned, plain, x.double()


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    result = module(x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [result.detach(), *torch.autograd.grad(result.square().sum(), parameters)]


def close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-12) -> bool:
    """Within a share of the largest number: the same sums in another order."""
    return all(float((a - b).abs().max()) <= bound * float(b.abs().max()) for a, b in zip(found, expected, strict=True))


def joined(tuned: utc.TunedModule) -> int:
    graph, _, _ = plan_graph(tuned.graph, tuned, tuned.follows_mode)
    return sum(getattr(n.target, "__name__", "") == "tuned_call" for n in graph.nodes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("how", "expected"), [("branch", 7), ("reparametrised", 7)])
def test_results_and_gradients(how: str, expected: int, layout: torch.memory_format) -> None:
    tuned, plain, x = pair(how)
    assert joined(tuned) == expected  # all but the one with groups
    x = x.contiguous(memory_format=layout).requires_grad_()
    assert close(step(tuned, x), step(plain, x))
    (of_x,), (other,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (tuned, plain))
    assert close([of_x], [other])


@pytest.mark.parametrize("how", ["branch", "reparametrised"])
def test_small_ones_are_torchs_own_operations(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, plain, x = pair(how)
    expected = step(plain, x)
    monkeypatch.setattr(branches, "_SMALL", 2**18)
    found = _functions(tuned(x))
    assert found["_TunedBackward"] == 2 and not found["_ConvBranchBackward"]  # the linears are not torch's own
    for module in (tuned, plain):
        assert close(step(module, x), expected)
        assert close(step(module, x.contiguous(memory_format=torch.channels_last)), expected)


def _functions(result: Tensor) -> Counter[str]:
    """How many autograd functions of each name a result comes from."""
    found, waiting = set(), [result.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None and node not in found:
            found.add(node)
            waiting += [n for n, _ in node.next_functions]
    return Counter(type(node).__name__ for node in found)


def test_the_numbers_of_a_result_are_known_before_it() -> None:
    x = torch.randn(2, 3, 17, 17)
    call = TunedCall("conv2d", ((2, 1), (1, 0), 2))
    weight = torch.randn(4, 3, 3, 1)
    result = torch.conv2d(x, weight, None, (2, 1), (1, 0), 2)
    assert call._numbers(x, weight) == result.numel()


@pytest.mark.parametrize("small", [0, 2**18])
def test_gradients_of_gradients(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "_SMALL", small)
    tuned, plain, x = pair("branch")

    def second(module: nn.Module) -> list[Tensor]:
        given = [p for p in module.parameters() if p.requires_grad]
        first = torch.autograd.grad(module(x).square().sum(), given, create_graph=True)
        return list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), given))

    assert close(second(tuned), second(plain))


def test_where_it_does_not_apply_it_is_two_operations() -> None:
    tuned, plain, x = pair("branch", 0.5)
    plain.train(), tuned.train()
    outputs = []
    for module in (tuned, plain):
        torch.manual_seed(3)
        outputs.append(step(module, x))
    assert close(*outputs)
    tuned, plain, x = pair("reparametrised")
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, step(tuned.float(), x.float()), step(plain.float(), x.float())))
    for module in (tuned, plain):
        module.requires_grad_(True)
    assert close(step(tuned, x.float()), step(plain, x.float()), 1e-4)  # float32


def test_a_budget_runs_it_again() -> None:
    tuned, plain, x = pair("branch")
    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    assert units
    tuned.memory = type(tuned.memory)(again=tuple((u.first, u.last) for u in units))
    assert close(step(tuned, x), step(plain, x))


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("resnet", "lora/all_conv"),
        ("vit", "lora/all_linear"),
        pytest.param("convnext", "lora/all_conv", marks=pytest.mark.full),
        pytest.param("convnext", "lora/all_linear", marks=pytest.mark.full),
    ],
)
def test_real_models(kind: str, rules: str) -> None:
    _, tuned, x = zoo.compiled(kind, rules)
    zoo.shake(tuned, 0.1)
    tuned = copy.deepcopy(tuned).double()
    plain = copy.deepcopy(tuned)
    plain.memory = None
    assert joined(tuned)
    assert close(step(tuned, x.double()), step(plain, x.double()), 1e-9)  # norms and depth amplify rounding


def test_the_form_with_the_least_work_is_taken() -> None:
    """As measured on a CPU at batch 8: a few channels at many positions; many channels at few positions."""
    from utcompile.tuners.forms import cheapest_form

    assert cheapest_form((64, 64, 3, 3), 8, 8 * 64 * 56**2, 8 * 64 * 56**2) == "one"
    assert cheapest_form((512, 512, 3, 3), 8, 8 * 512 * 7**2, 8 * 512 * 7**2) == "branch"
    assert cheapest_form((1536, 384), 8, 8 * 384 * 197, 8 * 1536 * 197) == "one"
    assert cheapest_form((4096, 4096), 8, 8 * 4096 * 128, 8 * 4096 * 128) == "branch"
    assert cheapest_form((8, 8, 1, 1), 64, 8 * 8 * 32**2, 8 * 8 * 32**2) == "reparametrised"


def test_packed_projections_with_slices() -> None:
    """B of the queries and values alone is a block matrix, whose gradient goes to the blocks."""
    _, tuned, x = zoo.compiled("vit", "lora/qv")
    zoo.shake(tuned, 0.1)
    tuned = copy.deepcopy(tuned).double()
    plain = copy.deepcopy(tuned)
    plain.memory = None
    assert joined(tuned)
    assert close(step(tuned, x.double()), step(plain, x.double()), 1e-9)

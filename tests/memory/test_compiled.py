"""`torch.compile` is handed the plan: its partitioner keeps less than by itself, and gradients stay the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks

import utcompile as utc
from utcompile.memory import MemoryPlan
from utcompile.memory.units import units_of

BACKEND = "aot_eager_decomp_partition"  # the partitioner of inductor, without its code


class _Block(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, wide), nn.Linear(wide, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class _Convs(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Conv2d(16, wide, 3, 1, 1), nn.BatchNorm2d(wide), nn.Conv2d(wide, 16, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.down(F.relu(self.norm(self.up(x))))
        return out


CASES: dict[str, tuple[type[nn.Module], str, torch.Tensor]] = {
    "mlp": (_Block, "lora/all_linear", torch.randn(8, 16, 16)),
    "convolutions": (_Convs, "lora/all_conv", torch.randn(2, 16, 12, 12)),
}


def kept(module: nn.Module, call: nn.Module, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Bytes of what backward reads, the module's own tensors aside, and the gradients."""
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage()._cdata not in own:
            seen[t.untyped_storage()._cdata] = t
        return t

    module.zero_grad()
    with saved_tensors_hooks(pack, lambda t: t):
        loss = call(x).square().sum()
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return sum(t.untyped_storage().nbytes() for t in seen.values()), grads


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """float32: the same sums in another order."""
    return all(float((a - b).abs().max()) <= 1e-4 * float(b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["mlp", pytest.param("convolutions", marks=pytest.mark.full)])
def test_a_compiled_module_keeps_what_the_plan_keeps(kind: str) -> None:
    block, rules, x = CASES[kind]
    model = nn.Sequential(block(32), block(32), block(32)).eval()
    tuned = utc.compile(model, rules, (x,), vars={"r": 2}, verify="shapes")
    zoo.shake(tuned, 0.1)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    compiled = torch.compile(tuned, backend=BACKEND, fullgraph=True)
    by_itself, expected = kept(plain, torch.compile(plain, backend=BACKEND, fullgraph=True), x)
    planned, found = kept(tuned, compiled, x)
    assert close(found, expected)
    # a partitioner of one version keeps more by itself than that of another
    assert planned <= min(by_itself, kept(plain, plain, x)[0], 1.1 * kept(tuned, tuned, x)[0])
    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    tuned.memory = MemoryPlan(tuple((u.first, u.last) for u in units))  # the same compiled module follows a new plan
    fewer, found = kept(tuned, compiled, x)
    assert close(found, expected) and fewer < planned


@pytest.mark.full
def test_a_compiled_module_without_gradients_or_tuners_is_as_it_is() -> None:
    block, rules, x = CASES["mlp"]
    model = nn.Sequential(block(32), block(32)).eval()
    tuned = utc.compile(model, rules, (x,), vars={"r": 2}, verify="shapes")
    zoo.shake(tuned, 0.1)
    compiled = torch.compile(tuned, backend=BACKEND, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), tuned(x), atol=1e-5)
    with utc.disable_tuners(tuned):
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert torch.allclose(compiled(x), tuned(x), atol=1e-5)
    by_sample = torch.compile(torch.func.vmap(lambda one: tuned(one[None])[0]), backend=BACKEND, fullgraph=True)
    assert torch.allclose(by_sample(x), tuned(x), atol=1e-5)


def test_what_lies_above_a_frozen_prefix_follows_the_plan_too() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), _Block(64), _Block(64)).eval(), torch.randn(8, 16, 16)
    rules = "{version: 1, name: t, rules: [{name: l, match: {op: linear}, inside: [{class: _Block}],\n"
    rules += " insert: {weight: h, tuner: {kind: lora, r: 2}}}]}"
    tuned = utc.compile(model, rules, (x,), verify="shapes")
    zoo.shake(tuned, 0.1)
    prefix, rest = utc.split_prefix(tuned)
    (between,) = prefix(x)
    sizes, gradients = [], []
    for memory in (rest.memory, None):
        rest.memory = memory
        torch.compiler.reset()
        size, found = kept(rest, torch.compile(rest, backend=BACKEND, fullgraph=True), between)
        sizes.append(size)
        gradients.append(found)
    assert sizes[0] < 0.8 * sizes[1]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [MemoryPlan(), None])
def test_other_sizes_do_not_void_what_was_compiled(memory: MemoryPlan | None) -> None:
    tuned = utc.compile(nn.Sequential(_Block(32)), "lora/all_linear", torch.randn(8, 16, 16), verify="shapes")
    tuned.memory = memory
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tuned, backend=counter, fullgraph=True)
    for batch in (2, 1, 2, 1):
        compiled(torch.randn(batch, 16, 16)).sum().backward()
    assert counter.frame_count == 2
    torch._dynamo.reset()  # torch 2.11 does not ask by itself which parameters train
    tuned.get_parameter("0.up.weight").requires_grad_(True)
    compiled(torch.randn(2, 16, 16)).sum().backward()
    assert tuned.get_parameter("0.up.weight").grad is not None and counter.frame_count == 3

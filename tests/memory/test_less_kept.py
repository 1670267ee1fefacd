"""A tuned module keeps less for backward than torch would, and its outputs and gradients are the same bits."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import architectures
from support import models as zoo
from support.saved import saved_bytes
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import utcompile as utc
from utcompile.memory import Saving, functions, one_call, planned_forward
from utcompile.memory.planned import plan_graph

CASES = {  # model, rules, which ways of keeping less it must use
    "vit": ("lora/all_linear", {"remade"}),
    "resnet": ("lora/all_conv", {"frozen input", "index"}),
    "convnext": ("lora/all_linear", {"remade", "frozen input"}),
    "mobilenet": ("lora/all_conv", set()),
    "bert": ("lora/all_linear", {"remade"}),
    "llama": ("lora/all_linear", {"remade"}),
    "gpt2": ("lora/all_linear", set()),
    "convnet": ("convnet/residual_parallel", set()),
}


@cache
def _tuned(kind: str) -> tuple[utc.TunedModule, dict[str, Any]]:
    if kind in zoo.MODELS:
        _, tuned, x = zoo.compiled(kind, CASES[kind][0])
        return tuned, {"x": x}
    model, inputs = architectures.make(kind)
    return utc.compile(model, CASES[kind][0], inputs, verify="shapes"), inputs


def tuned_and_plain(kind: str) -> tuple[utc.TunedModule, utc.TunedModule, dict[str, Any]]:
    """A tuned module off its start, the same one as torch runs it, and its inputs."""
    original, inputs = _tuned(kind)
    tuned = copy.deepcopy(original)
    zoo.shake(tuned, 0.1)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    return tuned, plain, inputs


@pytest.fixture(autouse=True)
def _masks_for_small_tensors_too_and_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one operation, a layer and its LoRA sum in another order: `test_one_call.py` compares these."""
    monkeypatch.setattr(functions, "_SMALL", 0)
    monkeypatch.setattr(one_call, "cheapest_form", lambda *_: "branch")


def total(result: Any) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        return result.float().square().sum()
    parts = result.values() if isinstance(result, dict) else result
    return torch.stack([total(part) for part in parts]).sum()


def step(tuned: nn.Module, call: Callable[[], Any]) -> list[torch.Tensor]:
    """The loss of a call, and each parameter's gradient."""
    tuned.zero_grad()
    loss = total(call())
    loss.backward()
    gradients = [p.grad for p in tuned.parameters() if p.requires_grad]
    assert all(g is not None for g in gradients)
    return [loss.detach(), *(g.clone() for g in gradients if g is not None)]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Within a thousandth of the largest number: float32 sums in another order."""
    return all(float((a - b).abs().max()) <= 1e-3 * float(b.abs().max()) for a, b in zip(found, expected, strict=True))


def kept(tuned: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes of what autograd keeps, the module's own tensors aside."""
    return saved_bytes(tuned, lambda: total(call()))


def savings(tuned: utc.TunedModule) -> tuple[Saving, ...]:
    found = tuned.__dict__["_planned"].savings
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("kind", CASES)
def test_less_is_kept_and_every_bit_is_the_same(kind: str) -> None:
    tuned, plain, inputs = tuned_and_plain(kind)
    assert equal(step(tuned, lambda: tuned(**inputs)), step(plain, lambda: plain(**inputs)))
    ways = {s.how for s in savings(tuned)}
    assert ways >= CASES[kind][1]
    plan_graph(tuned.graph, tuned, tuned.follows_mode)[0].lint()
    less, before = kept(tuned, lambda: tuned(**inputs)), kept(plain, lambda: plain(**inputs))
    assert less < before if ways else less == before


@pytest.mark.parametrize("kind", ["vit", "resnet", "llama"])
def test_under_autocast(kind: str) -> None:
    tuned, plain, inputs = tuned_and_plain(kind)

    def lowered(module: nn.Module) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return module(**inputs)

    assert equal(step(tuned, lambda: lowered(tuned)), step(plain, lambda: lowered(plain)))
    assert kept(tuned, lambda: lowered(tuned)) <= kept(plain, lambda: lowered(plain))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_base_in_half_precision(kind: str) -> None:
    """What trains is in float32: casts of what it reads are made again too."""
    _, x = zoo.make(kind)
    half = utc.match(copy.deepcopy(zoo.captured(kind)).bfloat16(), CASES[kind][0]).apply()
    plain = copy.deepcopy(half)
    plain.memory = None
    assert equal(step(half, lambda: half(x.bfloat16())), step(plain, lambda: plain(x.bfloat16())))
    assert kept(half, lambda: half(x.bfloat16())) < kept(plain, lambda: plain(x.bfloat16()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing_nothing_is_kept(reentrant: bool) -> None:
    tuned, plain, inputs = tuned_and_plain("vit")
    x = inputs["x"].clone().requires_grad_()
    run = lambda: checkpoint(tuned, x, use_reentrant=reentrant)  # noqa: E731
    assert equal(step(tuned, run), step(plain, lambda: plain(x)))
    if not reentrant:
        assert kept(tuned, run) <= 2 * x.nbytes


def test_copies_pickles_and_changed_graphs_plan_for_themselves() -> None:
    tuned, plain, inputs = tuned_and_plain("vit")
    expected = step(plain, lambda: plain(**inputs))
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert equal(step(other, partial(other, **inputs)), expected) and savings(other)
    tuned(**inputs)
    before = tuned.__dict__["_planned"]
    tuned.recompile()
    assert equal(step(tuned, lambda: tuned(**inputs)), expected)
    assert tuned.__dict__["_planned"] is not before and savings(tuned) == before.savings


def test_the_graph_stays_the_tuned_one() -> None:
    """What folding, exporters and checkpoints read is never the planned graph."""
    tuned, plain, inputs = tuned_and_plain("resnet")
    step(tuned, lambda: tuned(**inputs))
    assert str(tuned.graph) == str(plain.graph)
    assert [type(m) for m in tuned.modules()][1:] == [type(m) for m in plain.modules()][1:]


def test_disabled_folded_and_exported(tmp_path: Path) -> None:
    tuned, plain, inputs = tuned_and_plain("convnet")
    model, _ = architectures.make("convnet")
    step(tuned, lambda: tuned(**inputs))
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(**inputs), model(**inputs))
    folded, _ = utc.fold(tuned)
    assert torch.allclose(folded(**inputs), plain(**inputs), atol=1e-4, rtol=1e-4)  # float32, other weights
    assert utc.export_onnx(tuned, tmp_path / "tuned.onnx", inputs).max_error < 1e-3


def test_compilers_and_transforms_see_torchs_operations() -> None:
    tuned, plain, inputs = tuned_and_plain("llama")
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    found, expected = step(tuned, lambda: compiled(**inputs)), step(plain, lambda: plain(**inputs))
    # compiled graphs order sums otherwise
    assert close(found, expected)
    assert "_planned" not in tuned.__dict__
    of = lambda module: torch.func.grad(  # noqa: E731
        lambda p: total(functional_call(module, p, kwargs=inputs))
    )({n: p.detach() for n, p in module.named_parameters() if p.requires_grad})
    assert equal(list(of(tuned).values()), list(of(plain).values()))


def test_a_hook_on_a_layer_is_called() -> None:
    tuned, _, inputs = tuned_and_plain("resnet")
    tuned(**inputs)
    layer = next(leaf for _, _, leaf, _ in tuned.__dict__["_planned"].layers)
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    assert planned_forward(tuned) is None
    tuned(**inputs)
    handle.remove()
    assert calls and planned_forward(tuned) is not None
    layer.forward = lambda x: calls.append(2) or type(layer).forward(layer, x)  # as accelerate's hooks do
    tuned(**inputs)
    assert calls[-1] == 2 and planned_forward(tuned) is None


def test_numbers_that_are_none_pass_a_relu_backward_as_in_torch() -> None:
    x = torch.tensor([1.0, float("nan"), -1.0, 0.0] * 8, requires_grad=True)
    (kept,) = torch.autograd.grad(functions.bit_relu(x).sum(), x)
    (own,) = torch.autograd.grad(torch.relu(x).sum(), x)
    assert torch.equal(kept, own) and kept[1] == 1


def test_what_is_unfrozen_later_trains() -> None:
    tuned, plain, inputs = tuned_and_plain("resnet")
    tuned(**inputs)  # planned while they were frozen
    for module in (tuned, plain):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.startswith("base_values."))
    assert equal(step(tuned, lambda: tuned(**inputs)), step(plain, lambda: plain(**inputs)))


@pytest.mark.parametrize("kind", ["vit", "resnet", "llama"])
def test_gradients_of_gradients(kind: str) -> None:
    tuned, plain, inputs = tuned_and_plain(kind)

    def second(module: nn.Module) -> list[torch.Tensor]:
        given = [p for p in module.parameters() if p.requires_grad]
        first = torch.autograd.grad(total(module(**inputs)), given, create_graph=True)
        return list(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), given))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused kernels have none
        found, expected = second(tuned), second(plain)
    # the same sums in another order
    assert close(found, expected)


def test_without_gradients_it_runs_as_it_is() -> None:
    tuned, _, inputs = tuned_and_plain("vit")
    with torch.no_grad():
        tuned(**inputs)
    assert "_planned" not in tuned.__dict__


@pytest.mark.parametrize("how", ["layer_norm", "expand", "cat"])
def test_sizes_inside_an_argument_are_made_again_too(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            if how == "layer_norm":
                h = nn.functional.layer_norm(h, h.shape[1:])
            elif how == "expand":
                h = nn.functional.gelu(h) * h.mean(1, True).expand(h.shape[0], h.shape[1], 4).sigmoid()
            else:
                h = nn.functional.gelu(torch.cat([h, h[:, : h.shape[1] // 2]], 1))
            return self.b(h)

    rules = "version: 1\nname: t\nrules: [{name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}]"
    tuned = utc.compile(Net().eval(), rules, torch.randn(2, 6, 4), dynamic={"x": {0: "B", 1: "L"}})
    zoo.shake(tuned, 0.2)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    for sizes in ((2, 6), (3, 9)):
        x = torch.randn(*sizes, 4)
        assert equal(step(tuned, partial(tuned, x)), step(plain, partial(plain, x)))

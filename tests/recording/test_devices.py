"""Devices: what is recorded on one runs on another; random numbers of GPUs; bounds by dtype and device."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from support import capture_toys as toys
from torch import nn
from transformers import LlamaConfig, LlamaModel

import utcompile as utc
from utcompile.recording import attempts, record
from utcompile.recording.bounds import bound, equal, why_not
from utcompile.recording.samples import other_device

T = torch.Tensor


class MakesTensors(nn.Module):
    """Every way to name a device in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: T) -> T:
        y = self.linear(x) + torch.arange(4, device=x.device)
        y = y + torch.ones(4, device=self.linear.weight.device) + x.new_zeros(4)
        return torch.where(torch.eye(4, device=y.device)[:1] > 0, y, torch.zeros(4).to(x.device))


def _llama() -> tuple[nn.Module, T]:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, use_cache=False
    )
    return LlamaModel(config).eval(), torch.randint(3, 40, (2, 8))


CASES = {
    "llama": _llama,
    "makes tensors": lambda: (MakesTensors(), torch.randn(2, 4)),
    "derives": lambda: (toys.Derives(), torch.randn(2, 4)),
}


def devices_in(graph: torch.fx.Graph) -> list[object]:
    return [
        (n.name, a)
        for n in graph.nodes
        for a in [*n.args, *n.kwargs.values()]
        if isinstance(a, torch.device) or a == "cuda"
    ]


@pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1"])
@pytest.mark.parametrize("kind", CASES)
def test_a_model_keeps_no_device_wherever_it_is_captured(kind: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights on the meta device, which are taken to be on another one: no GPU is needed."""
    for module in (record, attempts):
        monkeypatch.setattr(module, "home_of", lambda *_: torch.device(home))
    model, x = CASES[kind]()
    if kind == "derives":
        model.offset = model.offset.to("meta")  # type: ignore[union-attr]
    captured = utc.capture(model.to("meta"), (x.to("meta"),), verify="shapes")
    assert devices_in(captured.graph) == []
    assert not any(p.startswith("device") for p in captured.report.pinned)


@pytest.mark.parametrize("home", ["cpu", "cuda:0", "cuda:1", "mps", "xpu:0"])
def test_the_other_device_has_another_type(home: str) -> None:
    assert other_device(torch.device(home)).type != torch.device(home).type


def test_a_model_on_the_cpu_initialises_no_cuda_and_seeds_none() -> None:
    """In another process: calls that are queued for CUDA's initialisation stay queued there."""
    code = """
import torch, utcompile as utc
def fail(*a, **k): raise AssertionError("CUDA")
torch.cuda._lazy_init = fail
torch.cuda.device_count = torch.cuda.is_available = lambda: 1
queued = len(torch.cuda._queued_calls)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
utc.capture(model, torch.randn(2, 4), base="follow", verify="full")
utc.compile(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)), "lora/all_linear", torch.randn(2, 4))
assert len(torch.cuda._queued_calls) == queued, "seeded"
print("ok")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CASES)
def test_on_a_gpu(kind: str) -> None:
    model, x = CASES[kind]()
    model, given = model.eval().cuda(), x.cuda()
    if kind == "derives":
        model.offset = model.offset.cuda()
    before = torch.cuda.get_rng_state()
    captured = utc.capture(model, given, base="follow", verify="full")
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert devices_in(captured.graph) == []
    moved = copy.deepcopy(captured).cpu()
    assert next(iter(moved.parameters())).device.type == "cpu"
    moved(x)


# --- bounds -----------------------------------------------------------------------------------------------------------------


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and computes here."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_may_round_and_a_cpu_may_not(dtype: torch.dtype) -> None:
    a = torch.ones(4, dtype=dtype)
    b = a * (1 + 2 * torch.finfo(dtype).eps)
    assert not equal(a, b) and equal(a, a.clone())
    assert equal(a.as_subclass(OnGpu), b.as_subclass(OnGpu))
    assert not equal(a.as_subclass(OnGpu), (a * 1.2).as_subclass(OnGpu))
    assert torch.finfo(dtype).eps < bound(dtype) < 0.1


def test_values_that_are_not_finite() -> None:
    a = torch.tensor([1.0, float("nan"), float("inf")])
    assert equal(a, a.clone())
    assert not equal(a, torch.tensor([1.0, 2.0, float("inf")])) and not equal(a, torch.tensor([1.0, float("nan"), 3.0]))
    assert not equal(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) and not equal(torch.zeros(2), torch.zeros(3))


def test_the_reason_names_what_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.ones(2)
    assert why_not(value, "because") == "because"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    reason = why_not(value.as_subclass(OnGpu), "because")
    assert reason.startswith("because") and "TF32" in reason and "not deterministic" in reason

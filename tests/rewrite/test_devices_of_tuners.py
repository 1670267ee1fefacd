"""A model on other devices than this machine has: what can be seen of it on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support import models as zoo
from support.transformer_toys import RULES, Transformer
from torch import nn

import utcompile as utc
from utcompile.graph import recurrence
from utcompile.rewrite import apply_plan

LORA = """
version: 1
name: t
rules:
  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}
"""


@pytest.fixture(scope="module")
def captured() -> utc.CapturedModule:
    torch.manual_seed(0)
    return utc.capture(Transformer().eval(), (torch.randn(2, 5, 6),))


@pytest.mark.parametrize("rules", [*RULES.values(), "adapter/houlsby", "bitfit/biases"])
def test_a_tuner_is_made_where_its_site_is(captured: utc.CapturedModule, rules: str) -> None:
    """The second half of the model is elsewhere, as `device_map` would have it."""
    module = copy.deepcopy(captured)
    for path in ("blocks.1", "norm", "head"):
        module.get_submodule(path).to("meta")
    tuned = apply_plan(utc.match(module, rules))  # no device is there for a call that would prove it
    where = {s.path: {p.device.type for p in tuned.tuner(s.id).parameters()} for s in tuned.sites}
    assert where and all(len(types) == 1 for types in where.values())
    for path, (device,) in where.items():
        assert device == ("meta" if path.startswith(("blocks.1", "norm")) else "cpu"), path
    assert {d for types in where.values() for d in types} == {"cpu", "meta"}
    assert tuned.get_parameter("head.weight").device.type == "meta"


def test_compiling_a_cpu_model_asks_nothing_of_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Not even on a host with several devices: initialising them takes seconds and memory, and breaks `fork`."""

    def refuse(*_: object) -> None:
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)), torch.randn(2, 4)
    for options in ({}, {"verify": "full"}):
        tuned = utc.compile(model, "lora/all_linear", (x,), vars={"r": 2}, **options)  # type: ignore[arg-type]
    tuned(x).sum().backward()
    with utc.disable_tuners(tuned):
        tuned(x)
    utc.fold(tuned.eval())
    utc.save_tuners(tuned, f"{tmp_path}/run")


class Own(nn.LSTM):
    """A recurrent layer with a class of its own is recorded as a call of the kernel."""

    def forward(self, x: torch.Tensor, hx: object = None) -> object:  # type: ignore[override]
        return super().forward(x, hx)  # type: ignore[arg-type]


class Tagger(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.lift, self.layer, self.head = nn.Linear(4, 4), layer, nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.layer(self.lift(x))[0])
        assert isinstance(y, torch.Tensor)
        return y


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(4, 6, 2, dropout=0.5, batch_first=True),
    "gru in both directions": lambda: nn.GRU(4, 3, 2, dropout=0.5, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(4, 6, 2, dropout=0.5, nonlinearity="relu"),
    "an own lstm": lambda: Own(4, 6, 2, dropout=0.5, batch_first=True),
    "an lstm in a frozen part that is one node": lambda: nn.LSTM(4, 8, proj_size=6, batch_first=True),
}


@pytest.mark.parametrize(
    "kind", [k if k in ("lstm", "an own lstm") else pytest.param(k, marks=pytest.mark.full) for k in RECURRENT]
)
def test_a_frozen_recurrent_layer_has_a_backward_where_it_needs_training_kernels(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN refuses backward in eval; a CPU does not, so here the kernels' mode is watched instead."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4)
    model = Tagger(RECURRENT[kind]()).eval()
    tuned = utc.compile(model, LORA, (x,))
    zoo.shake(tuned, 0.3)
    modes: list[bool] = []

    def watched(name: str) -> Callable[..., object]:
        call = getattr(torch._VF, name)

        def run(*args: object) -> object:
            at = 6 if isinstance(args[3], list) else 5
            modes.append(bool(args[at + 1]) and not args[at])
            return call(*args)

        return run

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tuned.zero_grad()
        y = tuned.train()(x)
        y.square().sum().backward()
        return y.detach(), {n: p.grad.clone() for n, p in tuned.named_parameters() if p.grad is not None}

    expected, gradients = step()
    monkeypatch.setattr(recurrence, "needs_training_kernels", lambda x: torch.is_grad_enabled())
    calls = [watched(n) for n in ("lstm", "gru", "rnn_relu")]
    for name, call in zip(("lstm", "gru", "rnn_relu"), calls, strict=True):
        monkeypatch.setattr(torch, name, call)
        monkeypatch.setattr(torch._VF, name, call, raising=False)
    found, others = step()
    assert modes == [True]
    with torch.no_grad():  # nothing to go back through: the kernels stay in eval
        tuned(x)
    assert modes == [True, False]
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient)
    assert not any(m.training for m in tuned.modules() if isinstance(m, nn.RNNBase))
    monkeypatch.undo()
    folded, report = utc.fold(tuned.eval())
    assert not report.kept and not any(type(m).__module__ == recurrence.__name__ for m in folded.modules())

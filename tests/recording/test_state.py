"""State that a forward keeps: part of the graph, reported, or refused by name; and a capture leaves no trace itself."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from support import state_toys as toys
from torch import nn

import utcompile as utc

T = torch.Tensor
VERIFY = ("values", "shapes")
LORA = (
    "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"
)


def x(rows: int = 2) -> T:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))


def everything(model: nn.Module) -> dict[str, object]:
    """All that a capture could change, in a form that compares."""
    return {
        "values": {k: v.tolist() for k, v in model.state_dict().items()},
        "identities": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "flags": [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()],
        "attributes": {
            name: {k: repr(v) for k, v in vars(m).items() if not k.startswith("_")} for name, m in model.named_modules()
        },
        "hooks": {name: [list(m._forward_hooks), list(m._backward_hooks)] for name, m in model.named_modules()},
        "globals": (toys.CALLS, list(toys.LOG), dict(toys.TABLE), vars(toys.STATE).copy(), toys.ClassCounter.total),
        "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("kind", toys.READ_AGAIN)
def test_state_that_a_later_call_reads_is_refused_by_name(kind: type[toys.Base], verify: str) -> None:
    model = kind().eval()
    before = everything(model)
    with pytest.raises(utc.UtcError) as caught:
        utc.capture(model, x(), verify=verify)
    message = str(caught.value)
    assert "keeps state in Python" in message and f": {toys.READ_AGAIN[kind]}" in message and "fix:" in message
    assert everything(model) == before


@pytest.mark.parametrize("kind", [toys.Ema, toys.Counter, toys.Recent, toys.GlobalCounter])
def test_the_error_names_the_line_that_writes(kind: type[toys.Base]) -> None:
    with pytest.raises(utc.UtcError, match=r"state_toys\.py:\d+ in forward: the model's forward keeps state"):
        utc.capture(kind(), x())


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("kind", toys.UNREAD)
def test_state_that_nothing_reads_again_is_reported(kind: type[toys.Base], verify: str) -> None:
    model = kind().eval()
    before = everything(model)
    captured = utc.capture(model, x(), verify=verify)
    assert tuple(s.split(":")[0] for s in captured.report.state) == toys.UNREAD[kind]
    assert f"state: {toys.UNREAD[kind][0]}: " in str(captured.report)
    assert everything(model) == before
    for rows in (2, 2, 5):
        torch.testing.assert_close(captured(x(rows)), model(x(rows)), rtol=0, atol=0)


class _Rescales(toys.Base):
    """Divides its weight in the first call, as transformers' RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.is_rescaled = False

    def forward(self, x: T) -> T:
        if not self.is_rescaled:
            with torch.no_grad():
                self.linear.weight.div_(2)
            self.is_rescaled = True
        return self.linear(x)


class _WarmsUp(toys.Base):
    """Runs otherwise in the first call, and keeps a note of that."""

    def __init__(self) -> None:
        super().__init__()
        self.notes = {"calls": "none"}

    def forward(self, x: T) -> T:
        if self.notes["calls"] == "none":
            self.notes["calls"] = "some"
            return self.linear(x + 1)
        return self.linear(x)


@pytest.mark.parametrize("kind", [_Rescales, _WarmsUp])
def test_state_that_the_first_call_prepares_needs_one_call_before_the_capture(kind: type[toys.Base]) -> None:
    model = kind().eval()
    with pytest.raises(utc.UtcError, match="keeps state in Python") as caught:
        utc.capture(model, x())
    assert "fix: run the model once on the example first" in str(caught.value)
    with torch.no_grad():
        model(x())
    captured = utc.capture(model, x())
    for rows in (1, 2, 5):
        assert torch.equal(captured(x(rows)), model(x(rows)))


def test_a_cache_of_timm() -> None:
    model = timm.create_model("levit_128s", num_classes=3).eval()
    captured = utc.capture(model, torch.randn(1, 3, 224, 224), verify="shapes")
    assert captured.report.state and all("attention_bias_cache" in s for s in captured.report.state)
    assert all("made of weights" in s for s in captured.report.state)
    assert not any(m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache"))


@pytest.mark.parametrize("base", ["frozen", "follow"])
@pytest.mark.parametrize("kind", toys.WRITES)
def test_what_torch_operations_write_is_part_of_the_graph(kind: type[toys.Base], base: str) -> None:
    model, example = kind(), x() * 3
    before, given = everything(model), example.clone()
    captured = utc.capture(model, example, base=base, verify="full")  # type: ignore[arg-type]
    assert everything(model) == before and torch.equal(example, given)
    theirs, ours = copy.deepcopy(model).eval(), copy.deepcopy(captured).eval()
    for rows in (2, 3, 2):
        assert torch.equal(theirs(x(rows)), ours(x(rows)))
    assert_equal_state(theirs, ours)


def assert_equal_state(model: nn.Module, captured: nn.Module) -> None:
    theirs = dict(captured.state_dict())
    assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())


def test_the_graph_of_a_buffer_that_is_read_and_written_survives_pickle() -> None:
    captured = utc.capture(toys.EmaInPlace(), x())
    again = pickle.loads(pickle.dumps(captured))
    for _ in range(2):
        assert torch.equal(again(x()), captured(x()))


# --- a capture changes nothing -----------------------------------------------------------------------------------------


def _quantised() -> nn.Module:
    from torch.ao.quantization import FakeQuantize

    return nn.Sequential(nn.Linear(4, 4), FakeQuantize())


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def _spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.ReLU())


def _old_spectral() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [_quantised, _normed, _spectral, _old_spectral])
@pytest.mark.parametrize("base", ["frozen", "follow"])
def test_statistics_and_observers_stay(build: Callable[[], nn.Module], base: str, training: bool) -> None:
    torch.manual_seed(0)
    model, example = build().train(training), x(6) * 3 + 5
    before, given = everything(model), example.clone()
    try:
        utc.capture(model, example, base=base, verify="full")  # type: ignore[arg-type]
    except utc.UtcError as refused:  # what hooks compute is another matter; that nothing changes is not
        assert build is _old_spectral, refused
    assert everything(model) == before and torch.equal(example, given)


def test_real_values_leave_no_trace_either() -> None:
    """A forward that reads values is recorded with them."""

    class Reads(toys.Base):
        def forward(self, x: T) -> T:
            x.sub_(x.mean())
            self.mean.add_(x.mean(0))
            return self.linear(x).relu() if x.sum() < 100 else self.linear(x)

    model, example = Reads(), x()
    before, given = everything(model), example.clone()
    captured = utc.capture(model, example, verify="shapes")
    assert everything(model) == before and torch.equal(example, given)
    first = captured(x())
    assert torch.equal(first, restarted(model)(x()))


def restarted(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.get_buffer("mean").zero_()
    return model


def test_tables_that_a_process_keeps_hold_no_fakes() -> None:
    toys.positions.cache_clear()
    captured = utc.capture(toys.ProcessCache(), x())
    assert type(toys.positions(4)) is T
    assert torch.equal(captured(x()), toys.positions(4) + captured.linear(x()))


def test_what_a_model_is_compiled_from_stays_too() -> None:
    model = toys.EmaInPlace()
    before = everything(model)
    utc.compile(model, LORA, (x(),))
    after = everything(model)
    assert {**after, "random": None} == {**before, "random": None}  # the tuners' own weights are drawn


# --- random numbers and clocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("kind", toys.DRAWS)
def test_random_numbers_of_python_and_clocks_are_reported(kind: type[toys.Base], verify: str) -> None:
    model = kind().eval()
    before = everything(model)
    report = utc.capture(model, x(), verify=verify).report
    assert len(report.random) == 1 and report.random[0].startswith(toys.DRAWS[kind])
    assert f"random: {toys.DRAWS[kind]}" in str(report)
    assert everything(model) == before


def test_a_seed_that_forward_sets_is_reported() -> None:
    class Seeds(toys.Base):
        def forward(self, x: T) -> T:
            torch.manual_seed(1234)
            return self.linear(x) + torch.randn(4)

    model, before = Seeds(), torch.get_rng_state()
    report = utc.capture(model, x(), verify="shapes").report
    assert any("forward seeds" in r for r in report.random) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("number", [0, 1, 42, 1234])
@pytest.mark.parametrize("around", [contextlib.nullcontext, torch.random.fork_rng])
def test_numbers_that_forward_draws_from_its_own_seed_are_refused(number: int, around: Any) -> None:
    """The graph would draw from the caller's, so each call would differ."""

    class Seeds(toys.Base):
        def forward(self, x: T) -> T:
            with around():
                torch.manual_seed(number)
                return self.linear(x) + torch.randn(4)

    with pytest.raises(utc.UtcError, match="differs from the model's"):
        utc.capture(Seeds(), x())


def test_a_model_without_random_numbers_reports_none() -> None:
    report = utc.capture(toys.Counts(), x(), verify="shapes").report
    assert report.random == ()


class CachesAndMore(nn.Module):
    """A table that is a cache, next to state that is none; its guard refuses the size that is tried besides."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table, self.history, self.last, self.calls = kind, None, [], None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None or len(self.table) < x.shape[0]:
            self.table = torch.arange(x.shape[0]).float()
        h = torch.cat([p * i for i, p in enumerate(x.chunk(4, 1))], 1) + self.table[: x.shape[0]].mean()
        if self.kind == "list":
            self.history.append(x.mean())
            return h + sum(self.history)
        if self.kind == "tensor":
            self.last, before = x.mean(), self.last
            return h if before is None else h + before
        self.calls += 1
        return h * self.calls


@pytest.mark.parametrize("kind", ["list", "tensor", "counter"])
def test_state_next_to_a_cache_is_refused(kind: str) -> None:
    with pytest.raises(utc.UtcError, match="keeps state in Python from one call to the next"):
        utc.capture(CachesAndMore(kind), torch.randn(3, 8, 4), dynamic={"x": {0: "B", 1: "L"}})

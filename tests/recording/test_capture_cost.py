"""Capture takes shortcuts past torch and past itself: each gives what the long way gives, and nothing is done twice."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import utcompile as utc
from utcompile.graph.structure import structural_copy
from utcompile.recording import attempts
from utcompile.recording.fakes import Converter
from utcompile.recording.known_shapes import linear, product

T = torch.Tensor


def _as_seen(tensor: T) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_contiguous(), tensor.requires_grad


def _layouts() -> list[T]:
    """Six columns in many memory layouts."""
    rows = [torch.randn(3, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 4, 6), torch.randn(0, 6), torch.randn(1, 1, 6)]
    views = [torch.randn(2, 6, 3).mT, torch.randn(6, 3).t(), torch.randn(2, 1, 6).expand(2, 5, 6)]
    return [*rows, *views, torch.randn(4, 3, 2, 6).permute(2, 1, 0, 3), torch.randn(2, 3, 12)[..., ::2]]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_fakes_yields_what_torch_yields(bias: bool) -> None:
    with FakeTensorMode(), torch.no_grad():
        layer = nn.Linear(6, 10, bias=bias).requires_grad_(False)
        for x in _layouts():
            found = linear(layer, (x,), {})
            assert found is not None
            assert _as_seen(found) == _as_seen(layer(x))


def test_a_product_of_fakes_yields_what_torch_yields() -> None:
    with FakeTensorMode():
        pairs = [(x, torch.randn(*x.shape[:-2], 6, n)) for x in _layouts() if x.dim() > 2 for n in (1, 5)]
        pairs += [(y.mT, x.mT) for x, y in pairs] + [(x, x.mT) for x, _ in pairs]
        for left, right in pairs:
            found = product(torch.matmul, (left, right), {})
            assert found is not None
            assert _as_seen(found) == _as_seen(torch.matmul(left, right))


def test_what_is_more_than_a_product_is_left_to_torch() -> None:
    with FakeTensorMode():
        layer, x = nn.Linear(6, 10).requires_grad_(False), torch.randn(2, 3, 6)
        others = [x.double(), x.long(), x.clone().requires_grad_(), x[..., :5], x[0, 0], x.to("meta")]
        assert [linear(layer, (other,), {}) for other in others] == [None] * len(others)
        assert linear(nn.Linear(6, 10), (x,), {}) is None  # its gradient is recorded
        assert [product(torch.matmul, (x.mT, other), {}) for other in (x[0], x[:1], x.mT)] == [None] * 3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(layer, (x,), {}) is product(torch.matmul, (x.mT, x), {}) is None
    real = nn.Linear(6, 10).requires_grad_(False)
    assert linear(real, (torch.randn(2, 6),), {}) is None


def test_fakes_are_those_of_torch() -> None:
    weight = nn.Parameter(torch.randn(4, 6), requires_grad=False)
    shared = torch.randn(12)
    state = [
        weight,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        shared,
        shared.view(3, 4),
        shared[2:],
    ]
    ours, theirs = FakeTensorMode(), FakeTensorMode()
    convert = Converter(ours, None, None, torch.device("cpu"))
    convert.expect(state)
    made = [convert(t) for t in state]
    for fake, tensor in zip(made, state, strict=True):
        assert _as_seen(fake) == _as_seen(theirs.from_tensor(tensor))
        assert isinstance(fake, nn.Parameter) is isinstance(tensor, nn.Parameter)
    assert len({t.untyped_storage()._cdata for t in made[2:]}) == 1  # memory that is shared stays shared
    assert len({t.untyped_storage()._cdata for t in made}) == 3


class _Own(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> _Own:
        made = _Own()
        made.copied = True
        return made


@pytest.mark.parametrize("make", [nn.Identity, _Own], ids=["plain", "with its own __deepcopy__"])
def test_a_structural_copy_is_a_deep_copy(make: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), make())
    model.tied, model.notes, model.order = model[0].weight, [], OrderedDict(a=[1], b=(2, [3]))
    model[1].notes, model[2].table = model.notes, {"notes": model.notes, "owner": model, (1, 2): {}}
    copied, deep = structural_copy(model), copy.deepcopy(model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in deep.modules()]
    assert [sorted(vars(m)) for m in copied.modules()] == [sorted(vars(m)) for m in deep.modules()]
    assert copied.notes is copied[1].notes is not model.notes
    assert copied.order == model.order and copied.order["b"][1] is not model.order["b"][1]
    assert copied.tied is copied[0].weight
    assert copied[0].weight.data_ptr() == model[0].weight.data_ptr()
    if make is nn.Identity:
        assert copied[2].table["notes"] is copied.notes and copied[2].table["owner"] is copied
    else:
        assert copied[2].copied


class _Scan(nn.Module):
    """Runs another number of operations at another length, as a recurrence does."""

    def forward(self, ids: T) -> T:
        total = ids[:, 0].float()
        for i in range(1, ids.shape[1]):
            total = total * 0.5 + ids[:, i]
        return total


class _ByDtype(nn.Module):
    """Runs other operations in another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: T) -> T:
        x = self.linear(x)
        return x * 2 if x.dtype is torch.float32 else x.float() * 2 + 1


@pytest.mark.parametrize(
    ("model", "example", "pinned"),
    [(_Scan(), torch.ones(2, 5, dtype=torch.int64), "L"), (_ByDtype(), torch.randn(2, 4), "dtype")],
)
def test_no_call_is_recorded_twice(monkeypatch: pytest.MonkeyPatch, model: nn.Module, example: T, pinned: str) -> None:
    calls: Counter[tuple[Any, ...]] = Counter()
    record = attempts.record

    def counted(copied: nn.Module, inputs: Any, sample: Any, *rest: Any, **more: Any) -> Any:
        calls[inputs.shapes_at(sample.sizes), sample.dtype, sample.device, sample.training] += 1
        return record(copied, inputs, sample, *rest, **more)

    monkeypatch.setattr(attempts, "record", counted)
    captured = utc.capture(model, example)
    assert any(pinned in text for text in captured.report.pinned)
    assert set(calls.values()) == {1}


def test_capture_copies_no_weight() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).eval()
    captured = utc.capture(model, torch.randn(2, 64), verify="shapes")
    mine = {p.data_ptr() for p in captured.parameters()}
    assert mine == {p.data_ptr() for p in model.parameters()}

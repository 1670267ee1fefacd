"""Weights of a quantiser's class that refuses all but a few operations, as torchao's do: tuned, saved, loaded, folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tensor_classes import Scaled
from torch import nn

import utcompile as utc
from utcompile.rewrite.digests import digest_of, digests

RULES = """
version: 1
name: t
rules:
  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}
train: ['module:head']
"""
_KEPT = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.clone.default)


class Stiff(Scaled):
    """Numbers of eight bits and a scale for each row, of which a linear alone can be computed."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEPT:
            return cls(func(args[0].numbers), func(args[0].scale))
        if func is torch.ops.aten.dequantize.self:
            return args[0].numbers * args[0].scale
        if func is torch.ops.aten.t.default:
            return (args[0].numbers * args[0].scale).t()
        raise NotImplementedError(f"Stiff does not know {func}")


class Nested(Stiff):
    """Whose scales are of such a class themselves."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale", "more"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, meta: Any, size: Any, stride: Any) -> Any:
        return cls(inner["numbers"], inner["scale"])

    @property
    def more(self) -> torch.Tensor:
        return Stiff(self.numbers[:1], self.scale[:1])


def net(kind: type[Stiff], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    for layer in (model[0], model[2]):
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        numbers = (layer.weight.detach() / scale).round().to(torch.int8)
        layer.weight = nn.Parameter(kind(numbers, scale), requires_grad=False)
    model.add_module("head", nn.Linear(8, 2))
    return model.eval()


@pytest.mark.parametrize("kind", [Stiff, Nested])
def test_tuned_saved_loaded_and_folded(kind: type[Stiff], tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    model = net(kind)
    tuned = utc.compile(model, RULES, x)
    assert torch.equal(tuned(x), model(x)) and {s.how for s in tuned.sites} == {"branch"}
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        tuned(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(tuned(x), model(x))
    utc.save_tuners(tuned, tmp_path)
    again = utc.load_tuners(utc.compile(net(kind), RULES, x), tmp_path)
    assert torch.equal(again(x), tuned(x))
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"kept"} and "stays so" in report.sites[0].reason
    assert torch.equal(folded(x), tuned.eval()(x))
    folded, report = utc.fold(tuned, dequantize=True)
    assert {s.status for s in report.sites} == {"absorbed"} and max(s.max_error for s in report.sites) < 1e-12
    assert type(folded.get_parameter("0.weight")) is nn.Parameter
    z = torch.randn(9, 6)  # that no proof saw; float32 rounds each of two layers by some 1e-7
    assert (folded(z) - tuned(z)).abs().max() < 1e-5 * tuned(z).abs().max()
    assert type(tuned.get_parameter("0.weight")) is kind
    other = utc.compile(net(kind, seed=1), RULES, x)
    with pytest.raises(utc.UtcError, match="another base") as caught:
        utc.load_tuners(other, tmp_path)
    assert "0.weight" in str(caught.value.why) or "0.bias" in str(caught.value.why)


class Rounding(Stiff):
    """Whose product rounds what is multiplied too, as with activations of eight bits."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            args = ((args[0] * 16).round() / 16, *args[1:])
        return super().__torch_function__(func, types, args, kwargs or {})


class Mute(Stiff):
    """Which does not say the numbers that it stands for."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.dequantize.self:
            raise NotImplementedError(f"Mute does not know {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize(("kind", "reason"), [(Rounding, "rounds what it reads too"), (Mute, "says no numbers")])
def test_what_no_weight_of_floating_point_numbers_computes_is_kept(kind: type[Stiff], reason: str) -> None:
    x = torch.randn(4, 6)
    tuned = utc.compile(net(kind), RULES, x)
    nn.init.ones_(tuned.tuner("w/0/0").lora_B)
    folded, report = utc.fold(tuned, dequantize=True)
    assert {s.status for s in report.sites} == {"kept"} and all(reason in s.reason for s in report.sites)
    assert torch.equal(folded(x), tuned.eval()(x))


def test_one_number_more_or_less_is_another_content() -> None:
    stiff = net(Stiff)[0].weight
    before = digest_of("w", stiff, stiff.dtype)
    stiff.numbers[0, 0] += 1
    assert digest_of("w", stiff, stiff.dtype) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.int64, torch.bool])
def test_digests_of_several_dtypes_are_those_of_each(dtype: torch.dtype) -> None:
    value = torch.randn(3, 400_000).mul(1e3).to(dtype).mT[:, 1:]  # of several pieces, and not contiguous
    narrower = [dtype, torch.float16, torch.bfloat16] if dtype.is_floating_point else [dtype]
    assert digests("w", value, narrower) == [digest_of("w", value.to(t).contiguous(), t) for t in narrower]

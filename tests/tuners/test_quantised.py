"""LoRA and adapters beside quantised weights: a branch that needs no weight; folding keeps them, or dequantises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from support.tensor_classes import Scaled
from torch import nn

import utcompile as utc

RULES = """version: 1
name: t
rules:
  - {name: w, match: %s, except: head, insert: {%s, tuner: {kind: %s}}}
train: ['pattern:head']
"""
FLOAT8 = torch.float8_e4m3fn


class Quantised(nn.Module):
    """A linear whose weight is held as small numbers and a scale, as a parameter or a buffer."""

    def __init__(self, dtype: torch.dtype, buffer: bool) -> None:
        super().__init__()
        made = nn.Linear(16, 16)
        scale = made.weight.detach().abs().amax(1, keepdim=True) / 100
        numbers = made.weight.detach() / scale
        numbers = numbers.to(dtype) if dtype.is_floating_point else (numbers.round() + self.zero(dtype)).to(dtype)
        if buffer:
            self.register_buffer("weight", numbers)
            self.register_buffer("scale", scale)
        else:
            self.weight = nn.Parameter(numbers, requires_grad=False)
            self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(made.bias.detach())

    @staticmethod
    def zero(dtype: torch.dtype) -> int:
        return 128 if dtype == torch.uint8 else 0

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.weight.to(dtype) - self.zero(self.weight.dtype)) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantised(x.dtype), self.bias)


class Packed(Quantised):
    """Two numbers of four bits a byte, as bitsandbytes and GPTQ have them."""

    def __init__(self, dtype: torch.dtype, buffer: bool) -> None:
        super().__init__(torch.int8, buffer)
        low = (self.weight.to(torch.int16) // 16 + 8).clamp(0, 15).to(torch.uint8)
        self.weight = nn.Parameter(low[:, ::2] * 16 + low[:, 1::2], requires_grad=False)

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        both = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return (both.to(dtype) - 8) * 16 * self.scale


class Product(torch.autograd.Function):
    """A product with its own backward, as bitsandbytes writes it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return x @ (weight.to(x.dtype) * scale).t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return grad @ (weight.to(grad.dtype) * scale), None, None


class Linear8bit(Quantised):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Product.apply(x, self.weight, self.scale) + self.bias


class Subclass(Scaled):
    """A tensor that holds others, as torchao's do: `F.linear` reads what they stand for."""

    def dequantised(self) -> torch.Tensor:
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.clone.default):
            return cls(func(args[0].numbers), func(args[0].scale))
        plain = torch.utils._pytree.tree_map(
            lambda t: t.dequantised() if isinstance(t, cls) else t, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


class Copied(torch.Tensor):
    """A tensor with attributes of its own, which a fake would not have; torch leaves it to such a class to copy them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone().as_subclass(type(self))
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied


class Numbers(Copied, nn.Parameter):
    """As a parameter; bitsandbytes' four-bit weights are."""


class Buffered(Copied):
    """As a buffer."""


class OwnWeight(Quantised):
    """Its weight says how it is read."""

    def __init__(self, kind: type[torch.Tensor]) -> None:
        super().__init__(torch.int8, buffer=not issubclass(kind, nn.Parameter))
        own = self.weight.detach().as_subclass(kind)
        own.factors = {"scale": self.scale.detach().clone()}  # type: ignore[attr-defined]
        (self._buffers if "weight" in self._buffers else self._parameters)["weight"] = own  # type: ignore[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.as_subclass(torch.Tensor).to(x.dtype) * self.weight.factors["scale"]
        return F.linear(x, weight, self.bias)


class Net(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.a, self.b, self.head = make(), make(), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()))


FORMS = {
    "int8": lambda: Quantised(torch.int8, False),
    "int8 in a buffer": lambda: Quantised(torch.int8, True),
    "uint8": lambda: Quantised(torch.uint8, False),
    "float8": lambda: Quantised(FLOAT8, False),
    "float8 in a buffer": lambda: Quantised(FLOAT8, True),
    "four bits": lambda: Packed(torch.uint8, False),
}


def tune(model: nn.Module, match: str, insert: str, kind: str, x: torch.Tensor) -> utc.TunedModule:
    return utc.compile(model.eval(), RULES % (match, insert, kind), x)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def trains(tuned: utc.TunedModule, x: torch.Tensor) -> None:
    zoo.shake(tuned, 0.1)
    tuned(x).square().mean().backward()
    assert [n for n, p in tuned.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


QUICK = ("int8", "float8 in a buffer", "four bits")


@pytest.mark.parametrize("form", [f if f in QUICK else pytest.param(f, marks=pytest.mark.full) for f in FORMS])
def test_lora_stands_beside_a_quantised_weight(form: str) -> None:
    x = torch.randn(4, 16)
    model = Net(FORMS[form])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tuned = tune(model, "{op: linear}", "weight: h", "lora, r: 2", x)
    assert [s.how for s in tuned.sites] == ["branch"] * 2
    trains(tuned, x)
    assert all(torch.equal(v.view(torch.uint8), state[k].view(torch.uint8)) for k, v in model.state_dict().items())
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["kept"] * 2 and report.is_original is False
    assert all("quantised" in s.reason and "dequantize=True" in s.reason for s in report.sites)
    whole, report = utc.fold(tuned, dequantize=True)
    assert [s.status for s in report.sites] == ["absorbed"] * 2
    assert "a.weight_dequantized is new" in report.renamed and "a.weight is gone" in report.renamed
    y = torch.randn(3, 16)
    with torch.no_grad():
        expected = tuned(y)
        assert error(folded(y), expected) < 1e-5 and error(whole(y), expected) < 1e-5
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


@pytest.mark.parametrize(("match", "insert"), [("{class: Linear8bit}", "weight: y"), ("{module: a}", "weight: y")])
def test_lora_stands_beside_a_layer_with_its_own_backward(match: str, insert: str) -> None:
    x = torch.randn(4, 16)
    tuned = tune(Net(lambda: Linear8bit(torch.int8, False)), match, insert, "lora, r: 2", x)
    trains(tuned, x)
    tuned.eval()
    folded, report = utc.fold(tuned, dequantize=True)
    assert {s.status for s in report.sites} == {"kept"} and "reads it in its own form" in report.sites[0].reason
    with torch.no_grad():
        assert error(folded(x), tuned(x)) < 1e-6


def test_lora_stands_beside_a_tensor_subclass() -> None:
    def make() -> nn.Module:
        layer = nn.Linear(16, 16)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 100
        numbers = (layer.weight.detach() / scale).round().to(torch.int8)
        layer.weight = nn.Parameter(Subclass(numbers, scale), requires_grad=False)
        return layer

    x = torch.randn(4, 16)
    tuned = tune(Net(make), "{op: linear}", "weight: h", "lora, r: 2", x)
    trains(tuned, x)
    _, report = utc.fold(tuned.eval())
    assert {s.status for s in report.sites} == {"kept"} and "quantised" in report.sites[0].reason


@pytest.mark.parametrize("kind", [Numbers, Buffered])
def test_lora_stands_beside_a_weight_that_its_layer_alone_can_read(kind: type[torch.Tensor]) -> None:
    model, x = Net(lambda: OwnWeight(kind)).eval(), torch.randn(4, 16)
    before = [(m.weight.data_ptr(), vars(m.weight), m.weight.clone()) for m in (model.a, model.b)]
    captured = utc.capture(model, x)
    assert "a: its weight is a " + kind.__name__ in str(captured.report)
    tuned = tune(model, "{class: OwnWeight}", "weight: y", "lora, r: 2", x)
    assert [s.path for s in tuned.sites] == ["a", "b"]
    assert tuned.get_submodule("a").weight.data_ptr() == before[0][0]
    trains(tuned, x)
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"kept"} and "quantised" in report.sites[0].reason
    y = torch.randn(7, 16)
    with torch.no_grad():
        assert torch.equal(captured(y), model(y)) and error(folded(y), tuned(y)) < 1e-6
    for layer, (memory, attributes, values) in zip((model.a, model.b), before, strict=True):
        assert type(layer.weight) is kind and layer.weight.data_ptr() == memory and vars(layer.weight) is attributes
        assert torch.equal(layer.weight, values)


@pytest.mark.parametrize(
    ("insert", "kind"),
    [
        ("weight: h", "bias"),
        ("sequential: h", "ssf"),
        ("sequential: h", "adapter, dim: 2"),
        ("parallel: x -> h", "adapter, dim: 2"),
    ],
)
def test_tuners_that_need_no_weight_work_as_ever(insert: str, kind: str) -> None:
    x = torch.randn(4, 16)
    tuned = tune(Net(FORMS["int8"]), "{op: linear}", insert, kind, x)
    trains(tuned, x)
    folded, _ = utc.fold(tuned.eval())
    with torch.no_grad():
        assert error(folded(x), tuned(x)) < 1e-5


@pytest.mark.parametrize("form", ["int8", pytest.param("float8 in a buffer", marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["dora, r: 2", "ssf", "ia3", "lora, r: 2, how: reparametrised"])
def test_tuners_of_the_weight_are_refused_by_name(form: str, kind: str) -> None:
    with pytest.raises(utc.UtcError, match=r"a weight that is quantised: a\.weight is"):
        tune(Net(FORMS[form]), "{op: linear}", "weight: h", kind, torch.randn(4, 16))


def test_a_table_of_integers_and_one_of_halves() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = nn.Parameter(torch.randint(-100, 100, (20, 16), dtype=torch.int8), requires_grad=False)
            self.head = nn.Linear(16, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(F.embedding(ids, self.numbers.to(torch.float32) * 0.01).mean(1))

    ids = torch.randint(0, 20, (2, 5))
    tuned = tune(Table(), "{op: embedding}", "weight: h", "lora, r: 2", ids)
    zoo.shake(tuned, 0.2)
    folded, report = utc.fold(tuned.eval(), dequantize=True)
    assert report.sites[0].status == "absorbed"
    every = torch.arange(20)[None]
    with torch.no_grad():
        assert error(folded(every), tuned(every)) < 1e-5

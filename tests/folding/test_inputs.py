"""What proofs look at: the example's own integers and booleans, ids of the whole table, nan, real samples."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from support import models as zoo
from support.input_toys import IDS, MASK, Attend, Base, Boxes, Choose, Nested, Patches, Pool, Rate
from torch import nn

import utcompile as utc
from utcompile.folding import whole
from utcompile.folding.inputs import ProofInputs
from utcompile.folding.whole import _alone
from utcompile.graph import full_precision
from utcompile.graph.difference import relative_error

LORA = """version: 1
name: t
rules:
  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}
"""
ON_EMBEDDING = """version: 1
name: t
rules:
  - {name: w, match: {op: embedding}, insert: {weight: h, tuner: {kind: lora, r: 2}}}
"""


CASES: dict[str, tuple[type[Base], tuple[Any, ...]]] = {
    "a boolean mask": (Attend, (IDS, MASK)),
    "a mask of integers": (Attend, (IDS, MASK.long())),
    "a mean over a mask": (Pool, (IDS, MASK)),
    "lengths": (Rate, (IDS, torch.tensor([6, 4]))),
    "choices": (Choose, (torch.randn(2, 16), torch.tensor([True, False]))),
    "grid_thw": (Patches, (torch.randn(7, 16), torch.tensor([[1, 2, 2], [1, 1, 3]]))),
    "boxes with batch indices": (Boxes, (torch.randn(2, 16), torch.tensor([[0.0, 1, 2.5], [1, 0.5, 3], [1, 2, 2]]))),
    "nested": (Nested, ({"ids": IDS}, (torch.rand(2, 1), MASK.long()))),
}


def trained(model: nn.Module, rules: str, example: Any, std: float = 0.1) -> utc.TunedModule:
    tuned = utc.match(utc.capture(model.eval(), example), rules).apply()
    zoo.shake(tuned, std)
    return tuned.eval()


def differs(a: nn.Module, b: nn.Module, *inputs: Any) -> float:
    with torch.no_grad():
        found, expected = a(*inputs), b(*inputs)
    return ((found - expected).abs().max() / expected.abs().max()).item()


SLOWER = ("a mask of integers", "a mean over a mask", "nested")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.full) if c in SLOWER else c for c in CASES])
def test_a_model_with_such_inputs_folds(case: str) -> None:
    made, example = CASES[case]
    tuned = trained(made(), LORA, example)
    for one in (tuned, tuned.double()):
        _, report = utc.fold(one)
        assert {s.status for s in report.sites} == {"absorbed"} and report.max_error < 1e-5


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.full) for s in (1, 2))])
@pytest.mark.parametrize("of", ["leaf", "function", "bag"])
def test_a_renormalised_table_is_never_claimed_absorbed(of: str, seed: int) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.EmbeddingBag if of == "bag" else nn.Embedding
            self.e, self.o = kind(20, 8, max_norm=1.0), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            e = self.e
            return self.o(e(ids) if of != "function" else nn.functional.embedding(ids, e.weight, max_norm=1.0))

    torch.manual_seed(seed)
    model = Table()
    before = model.e.weight.clone()
    try:
        tuned = utc.match(utc.capture(model.eval(), torch.randint(1, 20, (2, 5))), ON_EMBEDDING).apply().eval()
    except utc.UtcError:
        return  # refused by name
    with torch.no_grad():  # row 0 has no update: padding, as training leaves it
        for name, parameter in tuned.named_parameters():
            if "lora" in name:
                parameter.normal_()
        next(p for n, p in tuned.named_parameters() if n.endswith("lora_B"))[0] = 0
    folded, report = utc.fold(tuned)
    assert torch.equal(model.e.weight, before)  # proofs leave no trace in the table
    every = torch.arange(20)[None]
    if report.sites[0].status == "absorbed":
        assert differs(folded, tuned, every) < 1e-5
    else:
        assert "max_norm" in report.sites[0].reason


def test_ids_are_drawn_from_the_whole_table() -> None:
    tuned = trained(Rate(), LORA, CASES["lengths"][1])
    inputs = ProofInputs(tuned)
    assert inputs.tables == {"ids": 30} and inputs.draws == 3
    seen = [inputs.call(i)[2] for i in range(3)]
    assert torch.equal(seen[0]["ids"], IDS) and torch.equal(seen[0]["n"], torch.tensor([6, 4]))
    assert all(set(call["n"].tolist()) <= {4, 6} for call in seen)
    assert seen[1]["ids"].max() < 30 and not set(seen[1]["ids"].flatten().tolist()) <= set(IDS.flatten().tolist())


def test_nan_on_one_side_is_named_and_nan_on_both_is_equal() -> None:
    nan, inf = float("nan"), float("inf")
    both = torch.tensor([1.0, nan, inf, -inf])
    assert relative_error(both, both.clone()) == 0.0
    assert relative_error(torch.tensor([2.0, nan]), torch.tensor([1.0, nan])) == 1.0
    assert relative_error(torch.tensor([1.0, nan]), torch.tensor([1.0, 1.0])) == inf
    assert relative_error(torch.tensor([1.0, inf]), torch.tensor([1.0, -inf])) == inf
    assert _alone(torch.tensor([1.0, nan]), torch.ones(2)) == "1 of its 2 numbers are nan in the folded model alone"
    assert "infinite in the tuned model alone" in _alone(torch.ones(1), torch.tensor([inf]))


def test_a_users_samples_are_compared_too() -> None:
    tuned = trained(Rate(), LORA, CASES["lengths"][1])
    sample = {"ids": torch.full((1, 4), 5), "n": torch.tensor([2])}
    _, report = utc.fold(tuned, check_inputs=sample)
    assert report.max_error < 1e-5
    utc.fold(tuned, check_inputs=[(IDS, torch.tensor([1, 1])), sample])
    with pytest.raises(utc.UtcError, match=r"does not run on check_inputs\[0\]"):
        utc.fold(tuned, check_inputs=[{"ids": torch.full((1, 4), 99), "n": torch.tensor([2])}])
    with pytest.raises(utc.UtcError, match=r"check_inputs\[0\] is a int"):
        utc.fold(tuned, check_inputs=[3])


def test_the_refusal_says_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that a model amplifies is found to be rounding; a wrong fold is found to be wrong."""

    class Amplify(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.h = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.h(torch.sin(y * 1e6))

    tuned = trained(Amplify(), LORA, torch.randn(4, 8))
    with pytest.raises(utc.UtcError) as rounded:
        utc.fold(tuned)
    assert "in float64 they differ by" in str(rounded.value) and "rounding of float32" in str(rounded.value)
    assert "utc.fold(tuned.double())" in str(rounded.value) and "output 0, on" in str(rounded.value)
    wrong = trained(Rate(), LORA, CASES["lengths"][1])
    module = sys.modules["utcompile.folding.fold_model"]  # `utcompile.folding.fold_model` is the function
    right = module._fold_sites

    def falsely(*args: Any) -> Any:
        folded, *rest = right(*args)
        with torch.no_grad():
            folded.get_parameter("v.weight").add_(0.1)
        return folded, *rest

    monkeypatch.setattr(module, "_fold_sites", falsely)
    with pytest.raises(utc.UtcError, match="a fold is wrong here"):
        utc.fold(wrong)


def test_products_are_exact_whatever_the_process_allows() -> None:
    """`high` and `medium` would compare products of 10 or 8 bits; the setting is as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision():
            assert torch.backends.mkldnn.matmul.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cudnn.rnn.fp32_precision == "ieee"
            assert torch.backends.cudnn.enabled
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


# --- found by random programs: guards that exclude a batch of two, outputs that cancel out, state in opaque modules ---

EVERY = "version: 1\nname: t\nrules: [{name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}]"


class Chosen(nn.Module):
    """Another computation for few samples than for many."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.a = least, nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return h * 2 if x.shape[0] >= self.least else h.cumsum(0)


@pytest.mark.parametrize(("least", "batch"), [(3, 4), (7, 9)])  # of nine rows four are kept, and repeated
def test_proofs_use_the_examples_batch_where_a_guard_excludes_two(least: int, batch: int) -> None:
    tuned = utc.compile(Chosen(least).eval(), EVERY, torch.randn(batch, 6))
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned.eval())
    y = torch.randn(batch + 2, 6)
    with torch.no_grad():
        assert report.sites[0].status == "absorbed" and torch.allclose(folded(y), tuned(y), atol=1e-5)


def test_what_else_reads_a_value_is_looked_at_in_the_examples_batch_too() -> None:
    class Parts(nn.Module):
        """A sum whose first operand is read elsewhere, in as many parts as there are samples."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            y = h + self.b(x)
            return y + torch.cat([p * i for i, p in enumerate(h.chunk(3, 0))], 0)

    rules = "version: 1\nname: t\nrules: [{name: r, match: {op: add}, insert: {sequential: h, tuner: {kind: ssf}}, select: {first: 1}}]"
    tuned = utc.compile(Parts().eval(), rules, torch.randn(6, 6))
    zoo.shake(tuned, 0.3)
    folded, _ = utc.fold(tuned.eval())
    y = torch.randn(6, 6)
    with torch.no_grad():
        assert torch.allclose(folded(y), tuned(y), atol=1e-5)


class Cancelling(nn.Module):
    """Its second output is zero but for rounding."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.norm = how, nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.norm(self.a(x))
        zero = {"mean": h.mean(), "softmax": h.softmax(-1).sum(-1) - 1, "product": (h - h.mean(-1, True)).sum(-1)}
        return h, zero[self.how]


@pytest.mark.parametrize("how", ["mean", "softmax", "product"])
def test_an_output_that_is_nothing_but_rounding_stops_no_fold(how: str) -> None:
    tuned = utc.compile(Cancelling(how).eval(), EVERY, torch.randn(4, 6))
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned.eval())
    assert report.max_error < 1e-3 and report.sites[0].status == "absorbed"
    # a wrong weight is as wrong in float64
    with torch.no_grad():
        folded.a.weight[0] *= 1.01
    found = whole.compare(tuned, folded, ProofInputs(tuned), as_rounding=True)
    assert not whole.is_proven(found, torch.float32)


class Counting(nn.Module):
    """Keeps a running value in a plain attribute, which a closed module may do."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        h = torch.stack([p * (i + 1) for i, p in enumerate(h.unbind(1))], 1)  # as many operations as there are rows
        self.mean += h.mean()
        return h - self.mean


def test_a_closed_module_that_keeps_a_value_is_compared_from_the_same_state() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.inner = nn.Linear(4, 4), Counting()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.a(x))

    model = Net().eval()
    tuned = utc.compile(model, EVERY, torch.randn(4, 8, 4), dynamic={"x": {0: "B", 1: "L"}})
    zoo.shake(tuned, 0.3)
    before = tuned.inner.mean.clone()
    folded, report = utc.fold(tuned.eval())
    assert report.sites[0].status == "absorbed"
    assert torch.equal(tuned.inner.mean, before) and torch.equal(model.inner.mean, torch.zeros(()))
    y = torch.randn(3, 5, 4)
    with torch.no_grad():
        assert torch.allclose(copy.deepcopy(folded)(y), copy.deepcopy(tuned)(y), atol=1e-5)

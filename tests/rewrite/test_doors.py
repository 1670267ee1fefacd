"""One contract for every door: `plan.apply()`, `utc.compile`, a second layer of tuners; what is promised is proven."""

from __future__ import annotations

import copy
import logging
import pickle
import sys

import pytest
import torch
from torch import nn

import utcompile as utc
from utcompile.recording.example import Drawn, Example
from utcompile.tuners import TunerSite, base

HEAD = "version: 1\nname: t\nrules:\n"
LORA = HEAD + "  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"
KEPT = HEAD + "  - {name: w, match: {op: relu}, insert: {sequential: h, tuner: {kind: adapter, dim: 2}}}\n"


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def shaken(tuned: utc.TunedModule) -> utc.TunedModule:
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.eval()
    return tuned


# --- identity at the start ----------------------------------------------------------------------------------------------


class _Config(base.TunerConfig):
    kind: str = "test_liar"


class _Liar(base.Tuner):
    """Says that it is the identity, and adds one."""

    config_class = _Config
    forms = ("sequential",)

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1))

    @classmethod
    def build(cls, config: base.TunerConfig, site: TunerSite) -> _Liar:
        return cls()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


@pytest.mark.parametrize("door", ["compile", "apply", "again", "pickled"])
def test_a_tuner_that_is_not_the_identity_it_says_to_be_is_found_at_every_door(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    utc.register_tuner("test_liar")(_Liar)
    text, x = (
        HEAD + "  - {name: w, match: {op: relu}, insert: {sequential: h, tuner: {kind: test_liar}}}\n",
        torch.randn(2, 6),
    )
    captured = utc.capture(mlp(), x)
    doors = {
        "compile": lambda: utc.compile(mlp(), text, x),
        "apply": lambda: utc.match(captured, text).apply(),
        "again": lambda: utc.compile(captured, text, x),
        "pickled": lambda: utc.match(pickle.loads(pickle.dumps(captured)), text).apply(),
    }
    with pytest.raises(utc.UtcError, match="differs at the start by") as caught:
        doors[door]()
    assert "identity_at_start" in str(caught.value.fix)


def test_the_result_says_what_was_proven_and_what_was_not() -> None:
    x = torch.randn(2, 6)
    assert utc.compile(mlp(), LORA, x).proven == "identity at the start, on the example inputs"
    assert utc.compile(mlp(), LORA, x, verify="shapes").proven == "unproven: it was captured with verify='shapes'"
    applied = utc.match(utc.capture(mlp(), x, verify="shapes"), LORA).apply()
    assert applied.proven.startswith("unproven") and copy.deepcopy(applied).proven == applied.proven
    other = (
        HEAD
        + "  - {name: w, match: {op: relu}, insert: {sequential: h, tuner: {kind: adapter, dim: 2, init: xavier}}}\n"
    )
    assert utc.compile(mlp(), other, x).proven == "unproven: adapter tuners are not the identity at the start"


def test_the_capture_keeps_its_example_and_nothing_that_happens_to_the_callers_reaches_it() -> None:
    x = torch.randn(2, 6)
    captured = utc.capture(mlp(), x)
    x.fill_(float("nan"))
    kept = captured.example_inputs.arguments(torch.float64, torch.device("cpu"))
    assert kept["input"].isfinite().all() and kept["input"].dtype == torch.float64
    utc.match(captured.double(), LORA).apply()  # compared in float64


def test_a_large_example_is_drawn_again_from_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Example.__module__], "_KEPT_BYTES", 8)
    given = {"x": torch.rand(4, 5) + 3, "more": (torch.tensor([[7, 9]]), "plain", torch.tensor([True, False]))}
    example = Example.of(given, compared=True, dtype=torch.float32)
    first, second = (example.arguments(torch.float32, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first["x"], second["x"]) and first["x"].shape == (4, 5)
    assert first["x"].min() >= 3 and first["x"].max() <= 4
    ids, plain, flags = first["more"]
    assert ids.dtype == torch.long and ids.min() >= 7 and ids.max() <= 9
    assert plain == "plain" and flags.dtype == torch.bool
    assert {Drawn.like(torch.tensor([2, 5])).values(torch.Generator().manual_seed(i))[0].item() for i in range(60)} == {
        2, 3, 4, 5,
    }  # fmt: skip


# --- compiling again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [LORA, KEPT], ids=["other rules", "the same rules"])
def test_a_folded_model_is_tuned_again_and_its_kept_tuners_stay(second: str, tmp_path: object) -> None:
    x = torch.randn(2, 6)
    folded, report = utc.fold(shaken(utc.compile(mlp(), KEPT, x)))
    assert len(report.kept) == 2
    tuned = utc.compile(folded, second, x)
    assert torch.equal(tuned.eval()(x), folded(x))
    earlier = {n for n in dict(folded.named_parameters()) if n.startswith("tuners.")}
    assert earlier and not any(dict(tuned.named_parameters())[n].requires_grad for n in earlier)
    shaken(tuned)
    assert not torch.allclose(tuned(x), folded(x))
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), folded(x))
    again = utc.load_tuners(utc.compile(folded, second, x), utc.save_tuners(tuned, str(tmp_path)))
    assert torch.equal(again.eval()(x), tuned(x))
    twice, _ = utc.fold(tuned)
    assert torch.allclose(twice(x), tuned(x), atol=1e-6)  # float32 sums in another order
    assert earlier <= dict(twice.named_parameters()).keys()


def test_a_third_layer_and_a_wrapper_of_a_tuned_model_compose_too() -> None:
    x = torch.randn(2, 6)
    model: nn.Module = mlp()
    for _ in range(3):
        tuned = utc.compile(model, KEPT, x)
        assert torch.equal(tuned.eval()(x), model(x))
        model, _ = utc.fold(shaken(tuned))
    wrapped = nn.Sequential(shaken(utc.compile(mlp(), KEPT, x)), nn.Softmax(-1)).eval()
    assert torch.equal(utc.compile(wrapped, LORA, x).eval()(x), wrapped(x))


def test_a_tuned_model_and_changed_sizes_are_refused() -> None:
    x = torch.randn(2, 6)
    captured, tuned = utc.capture(mlp(), x), utc.compile(mlp(), LORA, x)
    for again in (lambda: utc.compile(tuned, LORA, x), lambda: utc.match(tuned, LORA)):
        with pytest.raises(utc.UtcError, match="this is a TunedModule already") as caught:
            again()
        assert "fold first" in str(caught.value.fix)
    for more in ({"dynamic": {}}, {"base": "follow"}):
        with pytest.raises(utc.UtcError, match="was decided when it was captured"):
            utc.compile(captured, LORA, x, **more)  # type: ignore[arg-type]
    assert torch.equal(utc.compile(captured, LORA, x).eval()(x), captured(x))


# --- rules that find nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gelu", "conv", "softmax"])
def test_rules_that_find_nothing_are_an_error_at_every_door(kind: str) -> None:
    text, x = (
        HEAD
        + f"  - {{name: w, match: {{op: {kind}}}, insert: {{sequential: h, tuner: {{kind: ssf}}}}, expect: {{optional: true}}}}\n",
        torch.randn(2, 6),
    )
    captured = utc.capture(mlp(), x)
    for door in (
        lambda: utc.compile(mlp(), text, x),
        lambda: utc.match(captured, text).apply(),
        lambda: utc.compile(captured, text, x),
    ):
        with pytest.raises(utc.UtcError, match="none of the rules matches") as caught:
            door()
        assert f"the model has no {kind}" in str(caught.value.why)


# --- tuners on an input of the model --------------------------------------------------------------------------------------


class Joined(nn.Module):
    """Two inputs, of which the second is added, and an option that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, y: torch.Tensor, flag: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x) + y, y * 2


@pytest.mark.parametrize(
    ("insert", "kind"),
    [
        ("sequential: x", "ssf"),
        ("{sequential: x, for: n}".strip("{}"), "adapter"),
        ("sequential: y", "adapter"),
        ("parallel: x -> y", "adapter"),
    ],
)
def test_an_input_of_the_model_is_a_value_as_any_other(insert: str, kind: str) -> None:
    torch.manual_seed(0)
    text = f"{HEAD}  - name: one\n    match: |\n      n = linear(x)\n      z = add(n, y)\n    insert: {{{insert}, tuner: {{kind: {kind}}}}}\n"
    model, given = Joined().eval(), (torch.randn(2, 6), torch.randn(2, 6), True)
    tuned = utc.compile(model, text, given)
    assert all(torch.equal(a, b) for a, b in zip(tuned.eval()(*given), model(*given), strict=True))
    sum(out.square().sum() for out in tuned(*given)).backward()
    assert all(p.grad is not None for p in tuned.tuner("one//0").parameters())
    folded, _ = utc.fold(shaken(tuned))
    assert torch.allclose(folded(*given)[0], tuned(*given)[0], atol=1e-6)


def test_token_ids_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 2)).eval()
    text = HEAD + "  - {name: one, match: {op: embedding}, insert: {sequential: x, tuner: {kind: ssf}}}\n"
    with pytest.raises(utc.UtcError, match="rule 'one'"):
        utc.compile(model, text, torch.randint(0, 9, (2, 5)))


# --- the warning of no gradient -------------------------------------------------------------------------------------------


class Zeros(nn.Module):
    """Parameters that are zero throughout, at places where that stops no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slope, self.head = nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, 2)
        self.bias, self.floor = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.weight = nn.Parameter(torch.randn(6, 6))
        nn.init.zeros_(self.slope.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.bias, self.slope(self.a(x)), self.weight)
        return self.head(torch.maximum(y, self.floor) - self.floor)


def test_a_zero_that_stops_no_gradient_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    text, x = (
        HEAD + "  - {name: w, match: {module: a}, insert: {sequential: y, tuner: {kind: ssf}}}\n",
        torch.randn(4, 6),
    )
    with caplog.at_level(logging.WARNING, logger="utcompile"):
        tuned = utc.compile(Zeros().eval(), text, x)
    assert not caplog.records
    tuned(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.tuner("w/a/0").parameters())

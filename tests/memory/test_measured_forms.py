"""`how: measured`: the clock chooses, the plan and the checkpoint keep the choice, and no form changes a result."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from support.train import shake
from torch import Tensor, nn

import utcompile as utc
from utcompile.matching import WeightPlace
from utcompile.memory import clock
from utcompile.memory.planned import plan_graph
from utcompile.memory.site_steps import forms_of, site_step
from utcompile.tuners import LoraConfig
from utcompile.tuners.forms import TimedForm


def rules_of(options: str, *operations: str) -> str:
    """Rules that tune operations of some kinds; each is optional."""
    lines = ["version: 1", "name: measured", "vars: {r: 2}", "rules:"]
    for op in operations or ("linear", "conv", "conv_transpose2d", "embedding"):
        tuner = f"{{kind: lora, r: $r, {options}}}"
        lines.append(
            f"  - {{name: {op}, match: {{op: {op}}}, expect: {{optional: true}}, insert: {{weight: h, tuner: {tuner}}}}}"
        )
    return "\n".join([*lines, ""])


MEASURED = rules_of("how: measured")
LINEARS = rules_of("how: measured", "linear")
FORMS: tuple[TimedForm, ...] = ("branch", "reparametrised", "one")


class Net(nn.Module):
    """Convolutions with a stride, with groups and with reflected edges, one that writes its result, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.edges = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False)
        self.wider = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.edges(self.grouped(self.first(x).relu()).relu()).relu()
        return self.head(self.wider(x).mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(eq=False)
class Clock:
    """A clock with given times, which counts how often it was read."""

    fastest: str = "branch"
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, steps: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
        self.asked.append(tuple(steps))
        assert device.type == "cpu"
        return {name: 0.001 if name == self.fastest else 0.0015 for name in steps}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(clock, "least_seconds", found)
    return found


@pytest.fixture(scope="module")
def recorded() -> tuple[utc.CapturedModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 9, 9)
    return utc.capture(Net().eval(), x, verify="shapes"), x


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    result = module(x)
    return [
        result.detach(),
        *torch.autograd.grad(result.square().sum(), [p for p in module.parameters() if p.requires_grad]),
    ]


def joined(tuned: utc.TunedModule) -> list[str]:
    graph, _, _ = plan_graph(tuned.graph, tuned, tuned.follows_mode)
    return [n.name for n in graph.nodes if getattr(n.target, "__name__", "") == "tuned_call"]


@pytest.mark.parametrize("fastest", FORMS)
def test_the_fastest_form_is_taken(
    told: Clock, recorded: tuple[utc.CapturedModule, Tensor], fastest: TimedForm
) -> None:
    captured, x = recorded
    told.fastest = fastest
    plan = utc.match(captured, MEASURED)
    forms = {site.path: site.measured.form for site in plan.sites if site.measured}
    can_be_one = fastest if fastest != "one" else "branch"  # at these sizes, the count chooses it among the slower ones
    assert forms["first"] == forms["head"] == fastest and forms["grouped"] == "reparametrised"
    assert {forms[p] for p in ("edges", "wider")} <= {can_be_one, "reparametrised"}
    assert sorted(map(len, told.asked)) == [2, 2, 3, 3]  # the grouped one has no choice
    tuned = plan.apply()
    assert joined(tuned) == (["first", "head"] if fastest == "one" else [])
    # the forms are exact: the same numbers as with `how: auto`, whatever that takes
    shake(tuned)
    other = utc.match(captured, rules_of("how: auto")).apply()
    other.load_state_dict(tuned.state_dict())
    for a, b in zip(step(tuned.double(), x.double()), step(other.double(), x.double()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)  # sums in another order, in float64


@pytest.mark.parametrize("fastest", ["branch", "reparametrised"])
def test_the_graph_is_that_of_the_form_by_name(
    told: Clock, recorded: tuple[utc.CapturedModule, Tensor], fastest: str
) -> None:
    told.fastest = fastest
    named = rules_of(f"how: {fastest}", "linear")
    assert utc.match(recorded[0], LINEARS).apply().code == utc.match(recorded[0], named).apply().code


def test_within_the_noise_of_a_clock_the_count_decides(
    recorded: tuple[utc.CapturedModule, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly = {"branch": 1.0, "reparametrised": 1.04, "one": 1.02}
    found = []
    for times in (nearly, {name: 2.06 - seconds for name, seconds in nearly.items()}):
        monkeypatch.setattr(clock, "least_seconds", lambda steps, _, t=times: {name: t[name] for name in steps})
        found.append(utc.match(recorded[0], MEASURED))
    assert [s.measured and s.measured.form for s in found[0].sites] == [
        s.measured and s.measured.form for s in found[1].sites
    ]
    assert found[0].apply().code == found[1].apply().code


def test_a_checkpoint_has_the_choice(
    told: Clock, recorded: tuple[utc.CapturedModule, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, x = recorded
    told.fastest = "one"
    tuned = utc.match(captured, MEASURED).apply()
    shake(tuned)
    utc.save_tuners(tuned, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    said = manifest["rules"]["measured"]["conv/first/0"]
    assert said["form"] == "one" and said["at"] == "[3, 3, 9, 9] float32 on cpu" and len(said["seconds"]) == 3
    assert {s["config"]["how"] for s in manifest["sites"]} <= {"branch", "reparametrised"}
    monkeypatch.setattr(clock, "least_seconds", None)  # who calls it fails
    again = utc.match(captured, utc.RuleSet.load(tmp_path)).apply()
    assert again.code == tuned.code and joined(again) == joined(tuned) == ["first", "head"]
    assert again.ruleset.measured == tuned.ruleset.measured
    utc.load_tuners(again, tmp_path)
    assert all(map(torch.equal, step(again, x), step(tuned, x)))
    by_value = utc.match(captured, tuned.ruleset).apply()
    assert by_value.code == tuned.code


def _said(tuned: nn.Module, folder: Path) -> str:
    """The one warning of a checkpoint that is loaded."""
    with pytest.warns(UserWarning) as caught:
        utc.load_tuners(tuned, folder)
    (warning,) = caught
    return str(warning.message)


@pytest.mark.parametrize(("first", "then"), [("one", "branch"), ("branch", "reparametrised")])
def test_rules_that_are_measured_again_load_with_a_warning_that_says_how_to_get_the_same_graph(
    told: Clock,
    recorded: tuple[utc.CapturedModule, Tensor],
    tmp_path: Path,
    first: str,
    then: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured, x = recorded
    told.fastest = first
    trained = utc.match(captured, MEASURED).apply()
    shake(trained)
    utc.save_tuners(trained, tmp_path)
    monkeypatch.setattr("utcompile.measured_forms._known", {})  # as another process
    told.fastest = then
    other = utc.match(captured, MEASURED).apply()
    before = other.code
    count = sum(m.form != other.ruleset.measured[k].form for k, m in trained.ruleset.measured.items())
    site = next(k for k, m in other.ruleset.measured.items() if m.form != trained.ruleset.measured[k].form)
    mine, theirs = other.ruleset.measured[site].form, trained.ruleset.measured[site].form
    assert _said(other, tmp_path) == (
        f"{tmp_path}: {count} site{'s' * (count > 1)} of `how: measured` with another form here than in training "
        f"({site}: {mine} here, {theirs} there): the results are equal up to rounding; "
        f"for the same graph, compile with utc.RuleSet.load({str(tmp_path)!r})"
    )
    assert other.code == before  # a checkpoint has numbers, and changes no graph
    for a, b in zip(step(other, x), step(trained, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # float32, sums in another order
    same = utc.compile(Net().eval(), str(tmp_path), (x,), verify="shapes")  # a folder is rules too
    assert same.code == trained.code and joined(same) == joined(trained)


def test_other_values_of_variables_are_measured_anew(
    told: Clock, recorded: tuple[utc.CapturedModule, Tensor], tmp_path: Path
) -> None:
    tuned = utc.match(recorded[0], MEASURED).apply()
    utc.save_tuners(tuned, tmp_path)
    assert utc.RuleSet.load(tmp_path).measured and not utc.RuleSet.load(tmp_path, vars={"r": 3}).measured
    assert not utc.RuleSet.load(tuned.ruleset, vars={"r": 3}).measured


def test_a_plan_says_it_and_pickles(told: Clock, recorded: tuple[utc.CapturedModule, Tensor]) -> None:
    told.fastest = "reparametrised"
    plan = utc.match(recorded[0], MEASURED)
    line = (
        "measured: head: reparametrised, 1.00 ms (branch 1.50 times as long, one operation 1.50 times as long), "
        "at [3, 4] float32 on cpu"
    )
    assert line in plan.summary() and line in str(plan)
    assert "measured: grouped: reparametrised, which alone is possible" in plan.summary()
    site = next(s for s in plan.to_dict()["sites"] if s["id"] == "linear/head/0")  # type: ignore[attr-defined]
    assert site["measured"]["seconds"] == {"branch": 0.0015, "reparametrised": 0.001, "one": 0.0015}
    count = len(told.asked)
    copied = pickle.loads(pickle.dumps(plan))
    assert [s.measured for s in copied.sites] == [s.measured for s in plan.sites]
    assert copied.apply().code == plan.apply().code
    utc.match(copy.deepcopy(recorded[0]), MEASURED)  # in one process, sites of one kind are timed once
    assert len(told.asked) == count


def test_where_a_branch_is_not_possible_none_is_timed(told: Clock) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y[:, 0] = 0
            return y

    x = torch.randn(3, 4)
    tuned = utc.compile(Writes().eval(), LINEARS, (x,))
    assert [s.how for s in tuned.sites] == ["reparametrised"] and not told.asked
    dropped = utc.compile(nn.Sequential(nn.Linear(4, 4)), rules_of("how: measured, dropout: 0.1"), (x,))
    assert [s.how for s in dropped.sites] == ["branch"] and not told.asked


def test_parts_of_a_model(told: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in (4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))  # type: ignore[no-any-return]

    model, x = Two().eval(), torch.randn(3, 6)
    told.fastest = "reparametrised"
    tuned = utc.compile(model, LINEARS, (x,), within=["a", "b"])
    utc.save_tuners(tuned, tmp_path)
    known = utc.RuleSet.load(tmp_path)
    assert sorted(known.measured) == [f"linear/{p}.{i}/0" for p in "ab" for i in (0, 2)]
    monkeypatch.setattr(clock, "least_seconds", None)
    again = utc.compile(model, known, (x,), within=["a", "b"])
    assert [again.get_submodule(p).code == tuned.get_submodule(p).code for p in "ab"] == [True, True]


def test_parts_with_other_forms_load_with_the_warning(
    told: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(4, 6))).eval()
    told.fastest = "reparametrised"
    utc.save_tuners(utc.compile(model, LINEARS, (torch.randn(3, 6),), within=["0", "1"]), tmp_path)
    monkeypatch.setattr("utcompile.measured_forms._known", {})
    told.fastest = "branch"
    again = utc.compile(model, LINEARS, (torch.randn(3, 6),), within=["0", "1"])
    said = _said(again, tmp_path)
    assert "2 sites of" in said and "(linear/0.0/0: branch here, reparametrised there)" in said


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "is a mapping from the ids"),
        ({"linear/head/0": "branch"}, "what was measured at 'linear/head/0'"),
        ({"linear/head/0": {"form": "fast", "seconds": {}, "at": ""}}, "what was measured at"),
        ({"linear/head/0": {"form": "branch", "seconds": {"branch": -1}, "at": ""}}, "what was measured at"),
        ({"linear/head/0": {"form": "branch", "seconds": {"one": 1.0}, "at": ""}}, "what was measured at"),
    ],
)
def test_damaged_data(data: object, why: str) -> None:
    with pytest.raises(utc.UtcError, match=why):
        utc.RuleSet.load(MEASURED, measured=data)  # type: ignore[arg-type]


def test_a_form_that_a_site_cannot_have(told: Clock, recorded: tuple[utc.CapturedModule, Tensor]) -> None:
    known = {"conv/edges/0": {"form": "one", "seconds": {}, "at": ""}}
    with pytest.raises(utc.UtcError, match="cannot be computed as 'one'") as caught:
        utc.match(recorded[0], utc.RuleSet.load(MEASURED, measured=known))
    assert caught.value.where == "site conv/edges/0"


OPERATIONS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 8)),
    "same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 6, 6)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 6, 6)),
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=1), None),
    "linear": (lambda: nn.Linear(3, 4), (2, 6, 3)),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_each_form_of_a_site_computes_the_same(kind: str) -> None:
    make, shape = OPERATIONS[kind]
    torch.manual_seed(0)
    x = torch.randn(shape) if shape is not None else torch.randint(7, (2, 5))
    rules = rules_of("how: auto")
    (site,) = utc.match(utc.capture(nn.Sequential(make()).eval(), (x,), verify="shapes"), rules).sites
    assert isinstance(site.place, WeightPlace) and isinstance(site.config, LoraConfig)
    forms = forms_of(site.config, site.place.site)
    assert len(forms) == (3 if kind in ("conv1d", "linear") else 2)
    first, *others = (list(site_step(site.config, site.place.site, form, 2)()) for form in forms)  # type: ignore[call-overload]
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_clock_itself() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(3, 3, 1)).eval()
    plan = utc.match(utc.capture(net, torch.randn(2, 3, 4), verify="shapes"), MEASURED)
    for site in plan.sites:
        assert site.measured is not None and all(0 < s < 10 for s in site.measured.seconds.values())
        assert site.measured.form in site.measured.seconds

"""Folds and bottlenecks that no file of the package knows: registered, tried, proven, and refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.folding import Added, Argument, Fold, Patch, Remove, Replace, Unfoldable, base, registered_folds
from utcompile.graph import origin_of, readers
from utcompile.tuners import Bottleneck, Tuner, TunerConfig
from utcompile.tuners import base as tuners

RULE = """
version: 1
name: t
rules:
  - {name: t, match: %s, insert: {%s, tuner: {kind: %s}}}
"""


class Named(TunerConfig):
    kind: Literal["threshold", "waist", "answer"] = "threshold"


class Threshold(Tuner):
    """`relu(x − t)`, behind a ReLU: no linear map."""

    config_class, forms = Named, ("sequential",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.zeros(channels))

    @classmethod
    def build(cls, config: Any, site: Any) -> Threshold:
        return cls(site.source.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x - self.t)


class Waist(Tuner):
    """A bottleneck of another author: weights as plain parameters, a scale, no bias behind."""

    config_class, forms = Named, ("parallel",)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.shift = nn.Parameter(0.3 * torch.randn(2, inputs)), nn.Parameter(torch.zeros(2))
        self.b, self.act = nn.Parameter(torch.zeros(outputs, 2)), nn.GELU()

    @classmethod
    def build(cls, config: Any, site: Any) -> Waist:
        return cls(site.source.channels, site.target.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * F.linear(self.act(F.linear(x, self.a, self.shift)), self.b)

    def bottleneck(self) -> Bottleneck:
        return Bottleneck(self.a, self.act, 2 * self.b, down_bias=self.shift)


class Answer(Tuner):
    """Keys and values that depend on the queries' sum: they are not the same for every sample."""

    config_class, forms = Named, ("tokens",)
    length = 1

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(()))

    @classmethod
    def build(cls, config: Any, site: Any) -> Answer:
        return cls()

    identity_at_start = False

    def forward(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.p * k.mean(-2, keepdim=True), self.p * v.mean(-2, keepdim=True)


class FoldThreshold(Fold):
    """`relu(relu(W x + b) − t) = relu(W x + (b − t))`, t ≥ 0; docs/extending.md has the same with all its checks."""

    status = "absorbed"

    def requires(self, site: Any, model: Any) -> bool:
        return isinstance(site.tuner, Threshold)

    def plan(self, site: Any, model: Any) -> Patch:
        relu, t = site.source, site.tuner.t.detach().cpu().double()
        layer = relu.args[0]
        if (t < 0).any():
            raise Unfoldable("its threshold is negative")
        bias = f"{layer.target}.bias"
        model.check_read_once(layer, bias)
        if readers(layer) != [relu]:
            raise Unfoldable(f"{layer.name} is read by something else too")
        values, edits = {bias: model.state(bias) - t}, (Replace(site.call, by=relu),)
        return Patch((layer.args[0],), (site.call,), values, edits=edits)


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(tuners, "_REGISTRY", dict(tuners._REGISTRY))
    for name, kind in (("threshold", Threshold), ("waist", Waist), ("answer", Answer)):
        utc.register_tuner(name)(kind)
    yield


def mlp(act: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 4)).eval(), torch.randn(3, 4)


def thresholded(t: float) -> utc.TunedModule:
    model, x = mlp(nn.ReLU())
    tuned = utc.compile(model, RULE % ("{op: relu}", "sequential: h", "threshold"), x)
    nn.init.constant_(tuned.tuner("t/1/0").t, t)  # type: ignore[arg-type]
    return tuned.double().eval()


def differs(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return ((a(x) - b(x)).abs().max() / b(x).abs().max()).item()


def test_a_registered_fold_is_tried_after_the_shipped_ones() -> None:
    tuned = thresholded(0.2)
    assert utc.fold(tuned)[1].sites[0].reason == "no exact fold is known for a sequential threshold"
    utc.register_fold("threshold")(FoldThreshold)
    assert registered_folds()[-1].name == "threshold"
    folded, report = utc.fold(tuned, strict=True)
    assert report.sites[0].status == "absorbed" and report.sites[0].max_error < 1e-12 and report.is_original
    assert differs(folded, tuned, torch.randn(9, 4).double()) < 1e-12  # inputs that no proof saw


def test_a_negative_threshold_is_kept() -> None:
    utc.register_fold("threshold")(FoldThreshold)
    _, report = utc.fold(thresholded(-1.0))
    assert (report.sites[0].status, report.sites[0].reason) == ("kept", "its threshold is negative")


def test_without_the_condition_the_proof_finds_it_out() -> None:
    class Careless(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            layer, t = site.source.args[0], site.tuner.t.detach().double()
            values = {f"{layer.target}.bias": model.state(f"{layer.target}.bias") - t}
            return Patch((layer.args[0],), (site.call,), values, edits=(Replace(site.call, by=site.source),))

    utc.register_fold("threshold")(Careless)
    tuned = thresholded(-1.0)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept" and "differs by" in report.sites[0].reason
    assert torch.equal(folded.get_parameter("0.bias"), tuned.get_parameter("0.bias"))


def test_a_plan_that_changes_the_model_is_an_error() -> None:
    class Hasty(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            site.call.replace_all_uses_with(site.source)
            raise Unfoldable("too late")

    utc.register_fold("threshold")(Hasty)
    with pytest.raises(utc.UtcError, match="the fold 'threshold' changed the model while it planned"):
        utc.fold(thresholded(0.2))


def test_a_fold_that_breaks_its_promise_is_taken_back() -> None:
    class Idle(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            return Patch((site.source,), (site.call,))

    class Adding(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            bias = site.tuner.t.detach().double()
            read = Added("get_attr", "threshold", (), site.call, origin_of(site.call), state=True)
            less = Added("call_function", torch.sub, (site.source, read), site.call)
            relu = Added("call_function", torch.relu, (less,), site.call)
            edits = (read, less, relu, Replace(site.call, by=relu))
            return Patch((site.source,), (site.call,), {"threshold": bias}, edits=edits)

    tuned = thresholded(0.2)
    for kind, expected in ((Idle, "of the tuner is still there"), (Adding, "it adds the operation")):
        base._REGISTRY.pop("threshold", None)
        utc.register_fold("threshold")(kind)
        folded, report = utc.fold(tuned)
        assert report.sites[0].status == "kept" and expected in report.sites[0].reason
        assert str(folded.graph) == str(tuned.graph) and "threshold" not in dict(folded.named_parameters())


BROKEN = {
    "a bias of another size": (lambda site, bias: Patch((site.source,), (site.call,), {bias: torch.ones(3)}, edits=(Replace(site.call, by=site.source),)), "folded, the site does not run"),
    "a node that is read": (lambda site, bias: Patch((site.source,), (site.call,), {bias: torch.ones(8)}, edits=(Remove(site.source),)), "its patch cannot be applied: _1 cannot go: t_1_0_tuner reads it"),
    "an argument that the call has not": (lambda site, bias: Patch((site.source,), (site.call,), {bias: torch.ones(8)}, edits=(Argument(site.call, "no", 1),)), "has no argument 'no'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_patch_that_makes_no_sense_is_taken_back(name: str) -> None:
    make, expected = BROKEN[name]

    class Broken(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            layer = site.source.args[0]
            patch = make(site, f"{layer.target}.bias")
            return replace(patch, sources=(layer.args[0],))

    utc.register_fold("threshold")(Broken)
    tuned = thresholded(0.2)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept" and expected in report.sites[0].reason
    assert str(folded.graph) == str(tuned.graph)
    assert torch.equal(folded.get_parameter("0.bias"), tuned.get_parameter("0.bias"))


def _refuses_by_mistake(site: Any, model: Any) -> Patch:
    raise KeyError("threshold")


def _names_no_module(site: Any, model: Any) -> Patch:
    return Patch((site.source,), (site.call,), {"none.bias": torch.ones(3)})


class _Forgets:
    """An edit that has no way to be made."""


FAULTS = {
    "a KeyError in plan": ({"plan": lambda self, site, model: _refuses_by_mistake(site, model)}, "KeyError: 'threshold'"),
    "a KeyError in requires": ({"requires": lambda self, site, model: _refuses_by_mistake(site, model)}, "KeyError: 'threshold'"),
    "a KeyError in ensures": ({"ensures": lambda self, site, model, patch: _refuses_by_mistake(site, model)}, "KeyError: 'threshold'"),
    "a patch with the name of no module": ({"plan": lambda self, site, model: _names_no_module(site, model)}, "AttributeError"),
    "a patch with an edit that is none": ({"plan": lambda self, site, model: Patch((site.source,), (site.call,), edits=(_Forgets(),))}, "AttributeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_in_a_fold_is_one_error_that_names_the_fold_and_the_site(name: str) -> None:
    members, said = FAULTS[name]
    utc.register_fold("threshold")(type("Faulty", (FoldThreshold,), members))
    tuned, x = thresholded(0.2), torch.randn(3, 4).double()
    before, text = tuned(x), str(tuned.graph)
    with pytest.raises(utc.UtcError) as caught:
        utc.fold(tuned)
    error = caught.value
    assert error.what == "the fold 'threshold' has failed" and error.where == "site t/1/0"
    assert said in str(error.why) and "Faulty" in str(error.why) and "Unfoldable" in str(error.fix)
    assert isinstance(error.__cause__, (KeyError, AttributeError))
    assert str(tuned.graph) == text and torch.equal(tuned(x), before)


def test_a_utc_error_of_a_fold_is_a_refusal() -> None:
    class Asking(FoldThreshold):
        def plan(self, site: Any, model: Any) -> Patch:
            raise utc.UtcError("the threshold is of another kind", fix="do not")

    utc.register_fold("threshold")(Asking)
    _, report = utc.fold(thresholded(0.2))
    assert (report.sites[0].status, report.sites[0].reason) == ("kept", "the threshold is of another kind")


def test_what_cannot_be_registered() -> None:
    utc.register_fold("threshold")(FoldThreshold)
    with pytest.raises(utc.UtcError, match="a fold 'threshold' is registered already"):
        utc.register_fold("threshold")(type("Other", (FoldThreshold,), {}))
    with pytest.raises(utc.UtcError, match="is no Fold"):
        utc.register_fold("another")(int)  # type: ignore[arg-type]
    with pytest.raises(utc.UtcError, match="does not say what becomes of a tuner"):
        utc.register_fold("another")(type("Kept", (FoldThreshold,), {"status": "kept"}))


def test_a_bottleneck_of_another_author_widens() -> None:
    model, x = mlp(nn.GELU())
    tuned = _waisted(model, x)
    folded, report = utc.fold(tuned, strict=True)
    assert [s.status for s in report.sites] == ["widened"] and report.sites[0].max_error < 1e-12
    assert folded.get_submodule("block.0").out_features == 8 + 2
    assert differs(folded, tuned, torch.randn(9, 4).double()) < 1e-12  # inputs that no proof saw


def test_a_bottleneck_that_is_not_what_the_tuner_computes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Waist.bottleneck
    monkeypatch.setattr(Waist, "bottleneck", lambda self: replace(honest(self), up=self.b))  # without its factor of 2
    model, x = mlp(nn.GELU())
    tuned = _waisted(model, x)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept" and "differs by" in report.sites[0].reason
    assert folded.get_submodule("block.0").out_features == 8 and differs(folded, tuned, x.double()) == 0


def _waisted(block: nn.Module, x: torch.Tensor) -> utc.TunedModule:
    model = zoo.Layers(lambda m, x: torch.tanh(m.block(m.stem(x))), {"stem": nn.Linear(4, 4), "block": block}).eval()
    tuned = utc.compile(model, RULE % ("{module: block}", "parallel: x -> y", "waist"), x)
    zoo.shake(tuned, 0.3)
    return tuned.double().eval()


def test_tokens_that_depend_on_the_input_are_kept() -> None:
    _, tuned, x = zoo.compiled("vit", RULE % ("attention", "tokens: [k, v]", "answer"))
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"kept"} and all("differs by" in s.reason for s in report.sites)
    assert differs(folded, tuned, x) == 0

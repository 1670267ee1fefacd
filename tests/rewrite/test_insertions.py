"""Side networks, parameters as values, and tuners that would be computed and never seen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.tuners import TunerSite, base


def rules(*entries: tuple[str, str], train: str = "") -> str:
    lines = "".join(f"  - name: r{i}\n    match: {m}\n    insert: {insert}\n" for i, (m, insert) in enumerate(entries))
    return f"version: 1\nname: t\nrules:\n{lines}{train}"


def adapter(form: str) -> str:
    return f"{{{form}, tuner: {{kind: adapter, dim: 2}}}}"


BYPASS = "{chain: y -> y, from: x, tuner: {kind: bypass, dim: 2}}"


# --- side networks ------------------------------------------------------------------------------------------------------


def test_a_side_network_survives_copies_pickles_and_compilation() -> None:
    model, x = zoo.make("vit")
    tuned = utc.compile(model, rules(("block", BYPASS)), x).eval()
    for other in (
        copy.deepcopy(tuned),
        pickle.loads(pickle.dumps(tuned)),
        torch.compile(tuned, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(other(x), tuned(x))
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), model(x))
    assert tuned(torch.cat((x, x, x))).shape == (6, zoo.CLASSES)


def test_the_plan_says_what_bypasses_the_backbone() -> None:
    model, x = zoo.make("vit")
    plan = utc.match(utc.capture(model, x), rules(("block", BYPASS)))
    assert len(plan.sites) == 6 and plan.sites[0].form == "chain" and plan.sites[2].id == "r0/blocks.2/0"
    assert "a side network of 6 stages reads the backbone detached, and no gradient enters it" in str(plan)
    assert "its result replaces 'y' [B, 17, 64] at" in str(plan)
    joined = rules(("block", BYPASS.replace("dim: 2", "dim: 2, join: add")))
    assert "its result joins 'y'" in str(utc.match(utc.capture(model, x), joined))


def test_a_joining_side_network_adds_to_what_it_joins() -> None:
    model, x = zoo.make("vit")
    text = rules(("block", BYPASS.replace("dim: 2", "dim: 2, join: add")))
    tuned = utc.compile(model, text, x).eval()
    seen = []
    last = tuned.get_submodule(tuned.sites[-1].name)
    last.register_forward_hook(lambda module, given, out: seen.append(out))
    found = tuned(x)
    h = model.forward_features(x)  # type: ignore[operator]
    before = []
    model.norm.register_forward_hook(lambda module, given, out: before.append(given[0]))  # type: ignore[union-attr,operator]
    model(x)
    expected = model.forward_head(F.layer_norm(before[0] + seen[0], (64,), *_affine(model.norm)))  # type: ignore[operator]
    assert h.shape == seen[0].shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _affine(norm: object) -> tuple[torch.Tensor, torch.Tensor, float]:
    assert isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    return norm.weight, norm.bias, norm.eps


def test_a_side_network_reads_the_backbone_as_other_rules_change_it() -> None:
    """A parallel tuner after the chain's end, in file order; and one before it whose gradient nothing else carries."""
    model, x = zoo.make("vit")
    after = utc.compile(model, rules(("block", BYPASS), ("head", adapter("sequential: x"))), x)
    assert len(after.sites) == 7
    with pytest.raises(utc.UtcError, match=r"no gradient reaches site r0/blocks\.0/0") as caught:
        utc.compile(model, rules(("ffn", adapter("parallel: x -> y")), ("block", BYPASS)), x)
    assert "it detaches what it reads" in str(caught.value)
    joined = rules(("ffn", adapter("parallel: x -> y")), ("block", BYPASS.replace("dim: 2", "dim: 2, join: add")))
    tuned = utc.compile(model, joined, x)
    zoo.shake(tuned, 0.1)
    seen: dict[str, torch.Tensor] = {}
    for site in tuned.sites:
        tuned.get_submodule(site.name).register_forward_hook(
            lambda module, given, out, i=site.id: seen.update({f"in {i}": given[0], f"out {i}": out})
        )
    tuned(x)
    # what the second stage reads is what the next ffn's tuner sees less its attention: the stream as it was changed
    torch.testing.assert_close(
        seen["in r1/blocks.0/0"] + _attention(model, 1, seen["in r1/blocks.0/0"]), seen["in r0/blocks.1/0"]
    )


def _attention(model: nn.Module, block: int, h: torch.Tensor) -> torch.Tensor:
    found = model.blocks[block]  # type: ignore[index]
    return found.ls1(found.attn(found.norm1(h)))  # type: ignore[no-any-return]


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.fc:
            x = torch.relu(layer(x))
        return x


def test_a_side_network_must_not_read_what_it_changes() -> None:
    wanted = "{chain: y -> h, tuner: {kind: bypass, dim: 2}}"
    text = rules(("|\n      h = linear(x)\n      y = relu(h)", wanted))
    with pytest.raises(utc.UtcError, match=r"'y' at .* is computed from 'h'"):
        utc.compile(Loop(), text, torch.randn(2, 4))
    with pytest.raises(utc.UtcError, match="a adapter tuner cannot be inserted as 'chain'"):
        utc.compile(Loop(), text.replace("kind: bypass", "kind: adapter"), torch.randn(2, 4))


# --- parameters as values -----------------------------------------------------------------------------------------------


class Positions(nn.Module):
    """Reads one parameter that no layer owns twice, and a buffer of a like name."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.register_buffer("other_pos_embed", torch.randn(1, 5, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x + self.pos_embed.expand(x.shape[0], -1, -1))
        return x + self.pos_embed + self.other_pos_embed


POS = '{parameter: "*pos_embed"}'


def test_a_parameter_is_a_value_and_its_reads_share_a_tuner(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Positions().eval(), torch.randn(2, 5, 8)
    tuned = utc.compile(model, rules((POS, adapter("sequential: h"))), x)
    assert [s.id for s in tuned.sites] == ["r0//0"]  # the buffer is no parameter, and two reads are one place
    zoo.shake(tuned, 0.5)
    changed = tuned.tuner("r0//0")(model.pos_embed)
    expected = model.fc(x + changed) + changed + model.other_pos_embed
    torch.testing.assert_close(tuned(x), expected)
    tuned(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tuned.tuner("r0//0").parameters())
    assert tuned.get_parameter("pos_embed").grad is None
    folded, report = utc.fold(tuned)
    assert len(report.sites) == 1
    torch.testing.assert_close(folded(x), tuned(x))
    assert utc.export_onnx(folded, tmp_path / "m.onnx", x).max_error < 1e-4
    utc.save_tuners(tuned, tmp_path / "run")
    other = utc.load_tuners(utc.compile(model, rules((POS, adapter("sequential: h"))), x), tmp_path / "run")
    assert torch.equal(other(x), tuned(x))


@pytest.mark.parametrize("name", ["pos_embed", "cls_token"])
def test_parameters_of_a_vision_transformer(name: str) -> None:
    model, tuned, x = zoo.compiled("vit", rules((f'{{parameter: "**.{name}"}}', adapter("sequential: h"))))
    zoo.shake(tuned, 0.5)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        value = getattr(model, name)
        getattr(changed, name).copy_(tuned.tuner("r0//0")(value))
    torch.testing.assert_close(tuned.eval()(x), changed(x), rtol=1e-4, atol=1e-5)


def test_a_parameter_may_be_trained_itself() -> None:
    model, x = zoo.make("vit")
    text = rules(("head", adapter("sequential: x")), train='train: ["parameter:**.pos_embed"]\n')
    tuned = utc.compile(model, text, x)
    assert tuned.trained == ("pos_embed",)
    tuned(x).sum().backward()
    grad = tuned.get_parameter("pos_embed").grad
    assert grad is not None and grad.abs().max() > 0 and model.pos_embed.grad is None  # type: ignore[union-attr]


def test_a_parameter_that_is_nowhere_is_missed_aloud() -> None:
    with pytest.raises(utc.UtcError, match="rule 'r0' matched 0 places"):
        utc.compile(Positions(), rules(('{parameter: "**.positions"}', adapter("sequential: h"))), torch.randn(2, 5, 8))


# --- reach --------------------------------------------------------------------------------------------------------------


class Unseen(nn.Module):
    """Of three branches, one is never read, one is read without a gradient, and one only as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.dead, self.still, self.index = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.relu(self.dead(x))
        with torch.no_grad():
            still = torch.sigmoid(self.still(x))
        return self.seen(x) + still + self.index(x).argmax(-1, keepdim=True)


@pytest.mark.parametrize(
    ("path", "message", "why"),
    [
        ("dead", "site r0/dead/0 reaches no output of the model", "its way ends at relu"),
        ("still", "no gradient reaches site r0/still/0", "it is in a no_grad region"),
        ("index", "no gradient reaches site r0/index/0", "it yields int64"),
    ],
)
def test_a_tuner_that_nothing_sees_is_refused(path: str, message: str, why: str) -> None:
    text = rules((f'{{module: "{path}"}}', adapter("sequential: y")))
    with pytest.raises(utc.UtcError) as caught:
        utc.compile(Unseen(), text, torch.randn(2, 4))
    assert message in str(caught.value) and why in str(caught.value)


def test_a_tuner_that_another_rule_replaces_is_refused_by_name() -> None:
    model, x = Loop(), torch.randn(2, 4)
    match = "|\n      h = linear(x)\n      y = relu(h)"
    chain = "{chain: h -> y, tuner: {kind: bypass, dim: 2}}"
    with pytest.raises(utc.UtcError, match="no gradient reaches site r0"):
        utc.compile(model, rules((match, adapter("sequential: h")), (match, chain)), x)
    last = rules((match, adapter("sequential: y")), (match, chain)).replace(
        "    insert: {sequential", "    select: {last: 1}\n    insert: {sequential"
    )
    with pytest.raises(utc.UtcError) as caught:
        utc.compile(model, last, x)
    assert "reaches no output of the model" in str(caught.value) and "which site r1" in str(caught.value)


# --- zero weights -------------------------------------------------------------------------------------------------------


class Branched(nn.Module):
    """A residual branch that ends in a LayerScale or a norm, and a head."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.gamma = nn.Parameter(torch.ones(4)) if end == "gamma" else None
        nn.init.zeros_(self.norm.weight if end == "norm" else self.gamma if end == "gamma" else self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.fc(x))
        return self.head(x + (y if self.gamma is None else self.gamma * y))


@pytest.mark.parametrize(
    ("end", "parameter", "mute"), [("norm", "norm.weight", 1), ("gamma", "gamma", 1), ("head", "head.weight", 2)]
)
@pytest.mark.parametrize("fixed", [False, True])
def test_zero_weights_that_stop_every_gradient_are_named(
    end: str, parameter: str, mute: int, fixed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """And rightly: the gradients of just these are zero."""
    model, x = Branched(end).eval(), torch.randn(3, 4)
    more = f'train: ["parameter:{parameter}"]\n' if fixed else ""
    text = rules(
        ('{module: "fc"}', adapter("sequential: y")), ('{module: "head"}', adapter("sequential: x")), train=more
    )
    tuned = utc.compile(model, text, x)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    if fixed:  # trained, it is zero at the first step alone
        assert warned == []
        return
    assert len(warned) == 1 and f"{mute} of 2 sites get no gradient (r0/fc/0" in warned[0]
    assert f"{parameter} is frozen and zero throughout" in warned[0]
    zoo.shake(tuned)
    tuned(x).square().sum().backward()
    still = [s.id for s in tuned.sites if not any(p.grad.any() for p in tuned.tuner(s.id).parameters())]  # type: ignore[union-attr]
    assert still == ["r0/fc/0", "r1/head/0"][:mute]


# --- parameters that cannot learn -----------------------------------------------------------------------------------------


def test_a_parameter_of_a_tuner_that_gets_no_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    class Config(base.TunerConfig):
        kind: str = "test_dead"
        fault: str

    @utc.register_tuner("test_dead")
    class Dead(base.Tuner):
        config_class = Config
        forms = ("parallel", "weight")

        def __init__(self, fault: str, shape: tuple[int, int], form: str) -> None:
            super().__init__()
            self.fault, self.form = fault, form
            self.a = nn.Parameter(torch.zeros(2, shape[1]) if fault == "zeros" else torch.randn(2, shape[1]))
            self.b = nn.Parameter(torch.zeros(shape[0], 2))
            self.extra = nn.Parameter(torch.ones(3)) if fault == "forgotten" else None

        @classmethod
        def build(cls, config: Config, site: TunerSite) -> Dead:
            shape = site.weight_shape or (site.target.channels, site.source.channels)
            return cls(config.fault, shape, site.form)

        def update(self) -> torch.Tensor:
            b = self.b.sign() * self.b.abs().sqrt() if self.fault == "root" else self.b
            return (b.detach() if self.fault == "detached" else b) @ self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if self.form == "weight" else x @ self.update().mT

        def changed(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.update()

    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
    for fault, message in (
        ("zeros", "no gradient reaches 'a', 'b' in a test_dead tuner"),
        ("forgotten", "no gradient reaches 'extra' in a test_dead tuner"),
        ("detached", "no gradient reaches 'a', 'b' in a test_dead tuner"),
        ("root", "the gradient of 'b' in a test_dead tuner is not finite"),
    ):
        for insert in ("parallel: x -> h", "weight: h"):
            text = rules(("|\n      h = linear(x)", f"{{{insert}, tuner: {{kind: test_dead, fault: {fault}}}}}"))
            with pytest.raises(utc.UtcError) as caught:
                utc.compile(model, text, x)
            assert message in str(caught.value) and "site r0/" in str(caught.value), (fault, insert)
            utc.compile(model, text, x, verify="shapes")


def test_looking_for_gradients_leaves_the_tuners_and_the_random_state_alone() -> None:
    model, x = zoo.make("vit")
    made: list[list[torch.Tensor]] = []
    for verify in ("values", "shapes"):
        torch.manual_seed(3)
        tuned = utc.compile(model, "u_tuning/tri", x, verify=verify)  # type: ignore[arg-type]
        made.append([*(p.detach() for p in tuned.parameters() if p.requires_grad), torch.rand(1)])
        assert all(p.grad is None for p in tuned.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_looking_for_gradients_does_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4)), torch.randn(2, 4)
        for text in (
            rules(("{op: linear}", "{weight: h, tuner: {kind: dora}}")),
            rules(("{op: linear}", adapter("sequential: h"))),
        ):
            tuned = utc.compile(model, text, x, tuner_dtype="base")
            assert {p.dtype for p in tuned.parameters()} == {dtype}
    finally:
        torch.set_default_dtype(torch.float32)

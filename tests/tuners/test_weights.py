"""Weight tuners on real models and in odd places: slices, forms, memory, several rules on one operation, PEFT's failures."""

from __future__ import annotations

import weakref

import pytest
import timm
import torch
from support import models as zoo
from support.saved import saved_bytes
from support.weight_toys import TOYS, Attention, Functional
from torch import nn

import utcompile as utc
from utcompile.graph import Operation
from utcompile.tuners import Lora, outputs_of, recomputed
from utcompile.tuners.branches import Branch


def rules(match: str, tuner: str, insert: str = "weight: h", more: str = "") -> str:
    return f"version: 1\nname: t\nrules:\n  - name: w\n    match: {match}\n    {more}insert: {{{insert}, tuner: {{{tuner}}}}}\n"


def shake(tuned: nn.Module, std: float = 0.3) -> utc.TunedModule:
    zoo.shake(tuned, std)
    assert isinstance(tuned, utc.TunedModule)
    return tuned


def folds(tuned: utc.TunedModule, x: torch.Tensor, statuses: set[str] | None = None) -> utc.FoldReport:
    tuned = tuned.double().eval()
    folded, report = utc.fold(tuned)
    with torch.no_grad():
        expected = tuned(x.double())
        assert ((folded(x.double()) - expected).abs().max() / expected.abs().max()).item() < 1e-12
    assert {s.status for s in report.sites} == (statuses or {"absorbed"}), report
    return report


@pytest.mark.parametrize("rules", ["bitfit/norms", "lora/all_linear"])
def test_the_weights_of_a_language_model(rules: str) -> None:
    """Llama's RMSNorms are spelled out; their weights are tuned as those of any norm."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=50, use_cache=False,
    )  # fmt: skip
    model, given = transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.arange(14).reshape(2, 7)}
    tuned = shake(utc.compile(model, rules, given))
    if rules == "bitfit/norms":
        assert [s.tunes["weight"] for s in tuned.sites][:2] == [
            "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight",
        ] and len(tuned.sites) == 5  # fmt: skip
    folded, report = utc.fold(tuned.double().eval())
    assert {s.status for s in report.sites} == {"absorbed"}
    expected = tuned(**given).logits
    torch.testing.assert_close(folded(**given).logits, expected)
    assert (model.double()(**given).logits - expected).abs().max() > 1e-3


# --- slices ----------------------------------------------------------------------------------------------------------


def test_lora_on_q_and_v_of_a_packed_projection() -> None:
    model, tuned, x = zoo.compiled("vit", (PACKED % ("lora", "[q, v]")).replace("r: 1", "r: 2"))
    shake(tuned)
    width = model.blocks[0].attn.qkv.in_features
    for site in tuned.sites:
        tuner = tuned.tuner(site.id)
        assert isinstance(tuner, Lora) and tuner.lora_A.shape == (4, width) and tuner.lora_B.shape == (2 * width, 2)
        delta = tuner.delta()
        assert delta[width : 2 * width].abs().max() == 0 and delta[:width].abs().min(1).values.max() > 0
        assert torch.linalg.matrix_rank(delta[:width]) == torch.linalg.matrix_rank(delta[2 * width :]) == 2
    folds(tuned, x)


PACKED = """
version: 1
name: t
patterns:
  packed: |
    t = linear(x)
    q, k, v = split(t)
    y = sdpa(q, k, v)
rules:
  - {name: w, match: packed, insert: {weight: t, tuner: {kind: %s, r: 1, slices: %s}}}
"""


class Interleaved(nn.Module):
    """q, k and v of each head beside one another, as GPT-NeoX packs them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (2, 3, 4)).unbind(-2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("kind", "branch"), [("lora", "how: branch"), ("lora", "how: reparametrised"), ("dora", "how: auto")]
)
def test_slices_follow_the_model_through_interleaved_heads(kind: str, branch: str) -> None:
    model, x = Interleaved().eval(), torch.randn(2, 5, 8)
    tuned = utc.compile(model, PACKED % (kind, f"[q, v], {branch}"), x)
    shake(tuned)
    moved = tuned.tuner(tuned.sites[0].id).changed(model.qkv.weight) - model.qkv.weight  # type: ignore[operator]
    rows = moved.abs().sum(1) > 0
    assert rows.tolist() == [(i // 4) % 3 != 1 for i in range(24)]
    folds(tuned, x)


@pytest.mark.parametrize("kind", ["ia3", "ssf"])
def test_keys_and_values_of_a_packed_projection_are_scaled(kind: str) -> None:
    """Just their rows of weight and bias, wherever the model packs them; the rest keeps its bits."""
    model, x = Interleaved().eval(), torch.randn(2, 5, 8)
    tuned = utc.compile(model, PACKED.replace("r: 1, ", "") % (kind, "[v, k]"), x)
    count, (site,) = 16, tuned.sites
    assert tuned.trainable_parameters()[0] == count * (2 if kind == "ssf" else 1)
    shake(tuned)
    tuner, keys_and_values = tuned.tuner(site.id), torch.tensor([(i // 4) % 3 != 0 for i in range(24)])
    weight, bias = tuner.changed(model.qkv.weight, model.qkv.bias)  # type: ignore[operator]
    for new, old in ((weight, model.qkv.weight), (bias, model.qkv.bias)):
        assert torch.equal(new[~keys_and_values], old[~keys_and_values])
    gamma = torch.ones(24)  # in the order of the slices: v first
    gamma[[8, 9, 10, 11, 20, 21, 22, 23, 4, 5, 6, 7, 16, 17, 18, 19]] = tuner.gamma.detach()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(weight, gamma[:, None] * model.qkv.weight)
    folds(tuned, x)


def test_slices_are_rows_of_a_weight() -> None:
    text = rules("{op: linear}", "kind: ia3, slices: [1/2]", "sequential: h")
    with pytest.raises(utc.UtcError, match="`slices:` needs a weight"):
        utc.compile(nn.Sequential(nn.Linear(4, 4)), text, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("equation", "shape", "axes"),
    [
        ("bnc,cd->bnd", (4, 6), (1,)),
        ("bnc, ecd -> bend", (3, 4, 6), (0, 2)),
        ("bnc,hdc->bhnd", (2, 3, 4), (0, 1)),
        ("bnc,c->bnc", (4,), (0,)),
        ("bnc,cd", (4, 6), ()),  # nothing says what the result has
        ("bnc,...c->bn...", (6, 4), ()),
        ("bnc,cc->bn", (4, 4), ()),
    ],
)
def test_the_output_channels_of_an_einsum(equation: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """A factor on them is a factor on the result."""
    op = Operation("einsum", (), {"equation": equation, "weight_at": 1})
    if not axes:
        with pytest.raises(utc.UtcError, match=r"the output channels of einsum with a weight .* are unknown"):
            outputs_of(op, shape)
        return
    outputs = outputs_of(op, shape)
    assert outputs.axes == axes
    x, weight, factor = torch.randn(2, 5, 4), torch.randn(shape), torch.randn(outputs.count)
    letters = "".join(equation.replace(" ", "").split(",")[1].split("->")[0][a] for a in axes)
    result = equation.replace(" ", "").split("->")[1]
    expected = torch.einsum(
        f"{result},{letters}->{result}", torch.einsum(equation, x, weight), factor.reshape([shape[a] for a in axes])
    )
    torch.testing.assert_close(torch.einsum(equation, x, outputs.scaled(weight, factor)), expected)


@pytest.mark.parametrize("form", ["parallel: x -> h", "sequential: h"])
@pytest.mark.parametrize("toy", ["linear", "conv2d pointwise", "conv2d strided"])
def test_an_adapter_without_an_activation_is_absorbed(form: str, toy: str) -> None:
    """`s·Up(Down(x))` is one linear map."""
    model, x = TOYS[toy].make().eval(), TOYS[toy].given()
    tuner = "kind: adapter, dim: 3, activation: identity, scale: channel, factor: 0.5"
    tuned = shake(utc.compile(model, rules(TOYS[toy].match, tuner, form), x))
    strided = toy == "conv2d strided" and form.startswith("parallel")
    folds(tuned, x, {"kept"} if strided else None)
    gated = shake(utc.compile(model, rules(TOYS[toy].match, tuner.replace("channel", "input"), form), x))
    assert folds(gated, x, {"kept"}).sites[0].reason


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ("[w]", "the match offers no capture 'w' for `slices`"),
        ("[4/3]", "slice '4/3' is not a whole part of 24 rows"),
        ("[q, q]", "overlap"),
        ("[x]", "is not made of"),
        ("[y]", "computes between"),
    ],
)
def test_slices_that_are_none(slices: str, message: str) -> None:
    with pytest.raises(utc.UtcError, match=message):
        utc.compile(Interleaved(), PACKED % ("lora", slices), torch.randn(2, 5, 8))


def test_equal_parts_are_stated() -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 8)
    tuned = utc.compile(
        model, rules("{op: linear}", "kind: lora, r: 2, slices: [1/3, 3/3]", more="where: [h.channels == 24]\n    "), x
    )
    (site,) = shake(tuned).sites
    assert site.tunes == {"weight": "mha.in_proj_weight"}
    moved = tuned.tuner(site.id).delta().abs().sum(1) > 0  # type: ignore[operator]
    assert moved.tolist() == [True] * 8 + [False] * 8 + [True] * 8
    folds(tuned, x)


# --- forms -----------------------------------------------------------------------------------------------------------


def test_the_form_is_chosen_by_cost_and_shown_in_the_plan() -> None:
    model = timm.create_model("resnet50", num_classes=3)
    plan = utc.match(utc.capture(model, torch.randn(2, 3, 224, 224), verify="shapes"), "lora/all_conv")
    how = {s.path: s.how for s in plan.sites}
    assert how["layer1.0.conv2"] == "reparametrised" and how["layer4.0.conv2"] == "branch"
    assert "weight lora reparametrised" in str(plan)
    assert {s["how"] for s in plan.to_dict()["sites"]} == {"branch", "reparametrised"}


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    tuned = utc.compile(
        nn.Sequential(nn.Linear(4, 4)),
        rules("{op: linear}", "kind: lora, r: 4, alpha: 6, rslora: true"),
        torch.randn(2, 4),
    )
    assert tuned.tuner("w/0/0").scaling == 3


@pytest.mark.parametrize("tuner", ["kind: lora, how: reparametrised", "kind: dora"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_reparametrised_operation_saves_no_second_weight(tuner: str, autocast: bool) -> None:
    model, x = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1)), torch.randn(2, 8, 6, 6)
    tuned = utc.compile(model, rules("{op: conv}", tuner), x)
    made: list[weakref.ref[torch.Tensor]] = []
    tuned.tuner("w/0/0").register_forward_hook(lambda module, given, weight: made.append(weakref.ref(weight)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = tuned(x).sum()
    assert len(made) == 1 and made[0]() is None  # freed, though backward is still to come
    loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_a_step_before_backward_is_caught() -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3)), torch.randn(2, 4, 6, 6, requires_grad=True)
    tuned = utc.compile(model, rules("{op: conv}", "kind: lora, how: reparametrised"), x.detach())
    loss = tuned(x).sum()
    with torch.no_grad():
        tuned.tuner("w/0/0").lora_B.add_(1)  # type: ignore[operator,union-attr]
    with pytest.raises(RuntimeError, match="modified in place between forward and backward"):
        loss.backward()


@pytest.mark.parametrize(
    ("name", "attributes", "x", "w"),
    [
        ("linear", {}, (2, 3, 5), (4, 5)),
        ("conv2d", {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}, (2, 3, 6, 6), (4, 3, 3, 2)),
        ("conv1d", {"stride": 2, "padding": 1, "dilation": 2}, (2, 3, 9), (4, 3, 3)),
        ("conv_transpose2d", {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "output_padding": (1, 1)}, (2, 3, 3, 3), (3, 4, 3, 3)),
        ("matmul", {}, (2, 3, 5), (5, 4)),
    ],
)  # fmt: skip
def test_a_branch_has_the_gradients_of_its_formula_twice_over(
    name: str, attributes: dict[str, object], x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    given = torch.randn(x, dtype=torch.double, requires_grad=True)
    weight = torch.randn(w, dtype=torch.double)
    a = torch.randn(2, *w[1:], dtype=torch.double, requires_grad=True)
    b = torch.randn(w[0], 2, dtype=torch.double, requires_grad=True)
    call = torch.matmul if name == "matmul" else getattr(nn.functional, name)

    def tuned(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return Branch(name, attributes)(x, call(x, weight, **attributes), a, b, 0.5)

    expected = call(given, weight + 0.5 * (b @ a.flatten(1)).reshape(w), **attributes)
    torch.testing.assert_close(tuned(given, a, b), expected)
    assert torch.autograd.gradcheck(tuned, (given, a, b)) and torch.autograd.gradgradcheck(tuned, (given, a, b))


def test_autocast_keeps_the_base_frozen_and_trains() -> None:
    model, x = zoo.make("resnet")
    tuned = shake(utc.compile(model, "lora/all_conv", x), 0.02)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        tuned(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tuned.parameters() if p.requires_grad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- frozen batch norms ----------------------------------------------------------------------------------------------


def test_a_frozen_batch_norm_saves_nothing_and_stays_frozen() -> None:
    model, tuned, x = zoo.compiled("resnet", "lora/all_conv")
    grads = []
    for module in (tuned, model.requires_grad_(False)):
        leaf = x.clone().requires_grad_()
        module(leaf).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)  # another order of the same float32 products
    norm = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).eval()
    given = torch.randn(2, 4, 72, 72)  # a small one is torch's own, which is faster
    probe = utc.compile(norm, rules("{op: conv}", "kind: lora, r: 1"), given)
    leaf = given.clone().requires_grad_()
    plain = norm.requires_grad_(False)
    assert saved_bytes(plain, lambda: plain(leaf).sum()) >= 4 * given.numel()
    assert (
        saved_bytes(probe, lambda: probe(leaf).sum()) < 4 * given.numel() * 1.5
    )  # the convolution's input, and its image under A
    folded, _ = utc.fold(probe)
    assert type(folded.get_submodule("0")) is nn.BatchNorm2d


def test_a_batch_norm_that_is_tuned_or_trained_still_gets_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    text = rules("{op: conv}", "kind: lora, r: 1") + 'train: ["parameter:1.*"]\n'
    tuned = utc.compile(model, text, x)
    tuned(x).square().sum().backward()
    assert all(tuned.get_parameter(f"1.{n}").grad.abs().sum() > 0 for n in ("weight", "bias"))  # type: ignore[union-attr]


# --- several rules, and values -----------------------------------------------------------------------------------------

BOTH = """
version: 1
name: t
rules:
  - {name: l, match: {op: conv}, insert: {weight: h, tuner: {kind: lora, r: 2, how: %s}}}
  - {name: b, match: {op: conv}, insert: {weight: h, tuner: {kind: bias, add: true}}}
  - {name: s, match: {op: conv}, insert: {sequential: h, tuner: {kind: ssf}}}
"""


@pytest.mark.parametrize("how", ["branch", "reparametrised"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_two_tuners_on_one_operation_and_a_third_behind_it(how: str, order: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    head, body = (BOTH % how).split("rules:\n")
    lines = body.splitlines()
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU()).eval(), torch.randn(2, 3, 6, 6)
    tuned = shake(utc.compile(model, head + "rules:\n" + "\n".join(lines[i] for i in order) + "\n", x))
    low, b, s = (tuned.tuner(f"{r}/0/0") for r in "lbs")
    expected = nn.functional.conv2d(x, low.changed(model[0].weight), b.changed(None))
    expected = torch.relu(expected * s.gamma.reshape(-1, 1, 1) + s.beta.reshape(-1, 1, 1))  # type: ignore[union-attr,operator]
    torch.testing.assert_close(tuned(x), expected, rtol=1e-4, atol=1e-5)
    folds(tuned, x)


def test_two_rules_may_not_tune_one_parameter() -> None:
    text = (BOTH % "auto").replace("kind: bias, add: true", "kind: ssf")
    with pytest.raises(utc.UtcError, match=r"rules 'l' and 'b' both tune the weight 0\.weight"):
        utc.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), text, torch.randn(2, 3, 6, 6))


class Before(nn.Module):
    """A value that one or two layers read."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.norm(x)))


AFTER = "match: |\n      n = relu(x)\n      h = %s(n)\n    insert: {sequential: n, for: h, tuner: {%s}}"


@pytest.mark.parametrize(
    ("layer", "op", "shape", "tuner", "reason"),
    [
        (nn.Linear(4, 6, bias=False), "linear", (2, 5, 4), "kind: rep_adapter, dim: 2", ""),
        (nn.Linear(4, 6), "linear", (2, 5, 4), "kind: ssf", ""),
        (nn.Conv2d(4, 6, 3), "conv", (2, 4, 6, 6), "kind: rep_adapter, dim: 2", ""),
        (nn.Conv2d(4, 6, 3, padding=1), "conv", (2, 4, 6, 6), "kind: rep_adapter, dim: 2", "pads its input with zeros"),
        (nn.Conv2d(4, 6, 3, padding=1), "conv", (2, 4, 6, 6), "kind: ia3", ""),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), "conv", (2, 4, 6, 6), "kind: rep_adapter, dim: 2", ""),
        (nn.Conv2d(4, 6, 3, groups=2), "conv", (2, 4, 6, 6), "kind: ssf", ""),
        (nn.Conv2d(4, 6, 3, groups=2), "conv", (2, 4, 6, 6), "kind: rep_adapter, dim: 2", "is grouped"),
    ],
)
def test_a_linear_tuner_before_a_layer(
    layer: nn.Module, op: str, shape: tuple[int, ...], tuner: str, reason: str
) -> None:
    model, x = Before(layer, nn.Identity()).eval(), torch.randn(shape)
    text = "version: 1\nname: t\nrules:\n  - name: w\n    " + AFTER % (op, tuner) + "\n"
    tuned = shake(utc.compile(model, text, x))
    report = folds(tuned, x, {"kept"} if reason else None)
    assert reason in report.sites[0].reason


@pytest.mark.parametrize("tuner", ["kind: ssf", "kind: ia3", "kind: rep_adapter, dim: 2"])
@pytest.mark.parametrize(
    "toy", ["linear", "conv2d strided", "grouped", "transposed", "batch norm", "layer norm", "F.conv2d"]
)
def test_a_linear_tuner_after_a_layer(tuner: str, toy: str) -> None:
    torch.manual_seed(0)
    model, x = TOYS[toy].make().eval(), TOYS[toy].given()
    tuned = shake(utc.compile(model, rules(TOYS[toy].match, tuner, "sequential: h"), x))
    full = "rep_adapter" in tuner and toy in ("grouped", "transposed", "batch norm", "layer norm")
    folds(tuned, x, {"kept"} if full else None)


@pytest.mark.parametrize(
    ("toy", "kept"),
    [("linear", ""), ("conv2d pointwise", ""), ("conv2d 3x3", ""), ("batch norm", "is read in 2 places")],
)
def test_a_rep_adapter_beside_a_layer(toy: str, kept: str) -> None:
    if toy == "conv2d 3x3":  # it goes into the middle of the kernel
        model, x, match = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).eval(), torch.randn(2, 4, 6, 6), "{op: conv}"
    else:
        model, x, match = TOYS[toy].make().eval(), TOYS[toy].given(), TOYS[toy].match
    tuned = shake(utc.compile(model, rules(match, "kind: rep_adapter, dim: 4", "parallel: x -> h"), x))
    assert kept in folds(tuned, x, {"kept"} if kept else None).sites[0].reason


def test_a_value_that_others_read_too_is_folded_into_its_readers_or_kept() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.b(h) + torch.tanh(h)

    one = "version: 1\nname: t\nrules:\n  - name: w\n    match: |\n      n = linear(x)\n      h = linear(n)\n    insert: {sequential: n, for: h, tuner: {kind: ssf}}\n"
    x = torch.randn(2, 4)
    folds(shake(utc.compile(Twice().eval(), one, x)), x)  # `a` keeps its weight for tanh, `b` takes the tuner


# --- biases, and functions ---------------------------------------------------------------------------------------------


def test_where_may_ask_for_a_bias() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)), torch.randn(2, 4)
    tuned = utc.compile(model, rules("{op: linear}", "kind: bias", more="where: [h.op.bias != None]\n    "), x)
    assert [s.path for s in tuned.sites] == ["0"]
    with pytest.raises(utc.UtcError, match="this linear has no bias"):
        utc.compile(model, rules("{op: linear}", "kind: bias"), x)


def test_a_functional_weight_and_its_bias_fold_back() -> None:
    model, x = Functional(True).eval(), torch.randn(2, 4, 5, 5)
    tuned = shake(utc.compile(model, rules("{op: conv}", "kind: ssf"), x))
    folds(tuned, x)
    assert recomputed("linear", torch.ones(1, 2), torch.ones(3, 2)).shape == (1, 3)


def test_a_fixed_transform_is_no_weight() -> None:
    class Transform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("dct", torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(nn.functional.linear(x, self.dct))

    with pytest.raises(
        utc.UtcError,
        match=r"its weight dct is a buffer and not a parameter\n  why: the model has it as a fixed transform",
    ):
        utc.compile(Transform(), rules("{op: linear}", "kind: lora, r: 2"), torch.randn(2, 4))

"""What people report of adapter libraries, each a test that passes here: a toy and a real model a case.

The reports are peft's failures that were reproduced with 0.21.2, and the complaints in its threads (#2556 and so on).
Every case: the identity at the start bit for bit, an optimiser step that moves the output, a frozen base, and a fold
that equals the unfolded model, in float64. Elsewhere: packed weights in
`tuners/test_weights.py::test_slices_follow_the_model_through_interleaved_heads`, saved memory in its
`test_a_reparametrised_operation_saves_no_second_weight`, what rounding eats in
`folding/test_fold.py::test_half_precision_keeps_what_rounding_would_eat`, names in ONNX in
`deploy/test_export.py::test_names_and_structure`, half-loaded checkpoints in
`rewrite/test_rewrite.py::test_another_base_other_rules_other_shapes`, near misses in `matching/test_explain.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import nn
from torchvision.models import VisionTransformer
from transformers import AlbertConfig, AlbertModel, LlamaConfig, LlamaModel

import utcompile as utc


@pytest.fixture(autouse=True)
def _no_fast_path() -> Iterator[None]:
    """torch's fast path for attention in eval is another kernel, and skips what is inserted: equality is against this."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@dataclass(frozen=True)
class Case:
    """A model, its input, and what is tuned.

    Attributes:
        make: builds the model.
        x: its input's shape, or the input.
        match: of the rule.
        sites: how many it must find.
        tuner: of the rule.
        form: of the insertion.
        more: lines of the rule.
        status: of every site when folded.
        identity: whether the tuner is the identity at the start.
    """

    make: Callable[[], nn.Module]
    x: tuple[int, ...] | torch.Tensor
    match: str
    sites: int
    tuner: str = "kind: lora, r: 3"
    form: str = "weight: h"
    more: str = ""
    status: str = "absorbed"
    identity: bool = True

    @property
    def rules(self) -> str:
        """The rule file."""
        more = f"    {self.more}\n" if self.more else ""
        insert = f"    insert: {{{self.form}, tuner: {{{self.tuner}}}}}\n"
        return f"version: 1\nname: t\nrules:\n  - name: w\n    match: {self.match}\n{more}{insert}"


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """In float64, and frozen: torch takes another kernel where a weight wants a gradient, and the last bit differs."""
    model = make().double().eval().requires_grad_(False)
    for parameter in model.parameters():  # zeros and LayerScales of 1e-5 would hide what is behind them
        if parameter.abs().max() < 1e-2:
            nn.init.normal_(parameter, std=0.3)
    return model


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def given(x: tuple[int, ...] | torch.Tensor) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.randn(x, dtype=torch.float64)


def step(tuned: utc.TunedModule, x: torch.Tensor) -> None:
    """One step of SGD in train mode, of a length that shows; every tuner has a gradient."""
    tuned.train()
    output(tuned, x).square().sum().backward()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    for site in tuned.sites:
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in tuned.tuner(site.id).parameters()), site.id
    with torch.no_grad():
        for p in trainable:
            if p.grad is not None:
                p.sub_(0.1 * p.grad / p.grad.abs().max().clamp_min(1e-30))
    tuned.eval()


def check(
    model: nn.Module, tuned: utc.TunedModule, x: torch.Tensor, status: str = "absorbed", identity: bool = True
) -> nn.Module:
    """A whole life: start, a step, the frozen base, the fold; returns the folded model."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        base = output(model, x)
        assert torch.equal(output(tuned.eval(), x), base) == identity
    step(tuned, x)
    with torch.no_grad():
        moved = output(tuned, x)
        assert error(moved, base) > 1e-6
        with utc.disable_tuners(tuned):
            assert torch.equal(output(tuned, x), base)
        folded, report = utc.fold(tuned)
        assert {s.status for s in report.sites} == {status}
        assert error(output(folded, x), moved) < 1e-12
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return folded


class Reads(nn.Module):
    """The weight of a layer, read without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.l.weight)


class Attends(nn.Module):
    """`nn.MultiheadAttention` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).tanh())


class Gated(nn.Module):
    """A gain that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(4, 6), nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.gain


class Tagger(nn.Module):
    """Words to tags through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.words(ids))[0])


class Normed(nn.Module):
    """One of each norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.bn, self.gn, self.ln, self.rms = nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(6), nn.RMSNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gn(self.bn(self.conv(x)).relu())
        return self.fc(self.rms(self.ln(y.flatten(2).mT).relu()))


class Block(nn.Module):
    """Pre-norm attention with packed projections, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def conv(**kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(4, 8, 3, **kwargs), nn.ReLU())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def beit() -> nn.Module:
    return Beit(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3)


def torchvision_vit() -> nn.Module:
    return VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)


def tiny(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **kwargs)


def albert() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "embedding_size": 8, "max_position_embeddings": 32}
    return AlbertModel(AlbertConfig(vocab_size=40, num_hidden_layers=3, num_attention_heads=2, **sizes))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaModel(LlamaConfig(vocab_size=40, num_hidden_layers=2, max_position_embeddings=32, **sizes))


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
IMAGE, SMALL = (2, 3, 64, 64), (2, 3, 32, 32)
CASES = {
    # a weight read directly is tuned, and not passed over in silence (#2556, #2200)
    "F.linear of a layer's weight": Case(Reads, (2, 4), "{op: linear}", 1),
    "F.linear of a layer's weight, BEiT": Case(beit, SMALL, "{op: linear}", 4, more='inside: {module: "blocks.*.attn"}'),
    # both projections of nn.MultiheadAttention, whose out_proj is never called (#761, #1705)
    "MultiheadAttention": Case(Attends, (2, 5, 8), "{op: linear}", 2),
    "MultiheadAttention, torchvision's ViT": Case(torchvision_vit, SMALL, "{op: linear}", 4, more="inside: {class: MultiheadAttention}"),
    # in eval torch would take a fast path around the tuners (#2556)
    "TransformerEncoder in eval": Case(encoder, (2, 5, 8), "{op: linear}", 8),
    # convolutions of every make (#3697, #2549, #2567, #2202)
    "conv, dilation 2": Case(conv(dilation=2, padding=2), (2, 4, 7, 7), "{op: conv}", 1),
    "conv, dilated ResNet": Case(tiny("test_resnet", output_stride=8), SMALL, "{op: conv2d(dilation=2) | conv2d(dilation=4)}", 2),
    "conv, reflected border": Case(conv(padding=1, padding_mode="reflect"), (2, 4, 7, 7), "{op: conv}", 1),
    "conv, groups": Case(conv(groups=2), (2, 4, 7, 7), "{op: conv}", 1),
    "conv, groups, RegNet": Case(tiny("regnetx_002"), SMALL, "{op: conv}", 13, more="where: [h.op.groups > 1]"),
    "conv, depthwise, rank no multiple of the groups": Case(conv(groups=4), (2, 4, 7, 7), "{op: depthwise_conv}", 1),
    "conv, depthwise, MobileNetV3": Case(tiny("mobilenetv3_small_050"), SMALL, "{op: depthwise_conv}", 11),
    # what has no adapter there (#244, #2527)
    "ConvTranspose": Case(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1)), (2, 3, 8, 8), "{op: conv_transpose}", 1),
    "LSTM": Case(Tagger, IDS, "{op: lstm}", 1),
    "norms": Case(Normed, (2, 3, 6, 6), "{op: norm}", 4, tuner="kind: norm_affine"),
    "norms, ViT": Case(tiny("test_vit", img_size=32), SMALL, "{op: norm}", 13, tuner="kind: norm_affine"),
    "a 1-D parameter": Case(Gated, (2, 4), "{parameter: gain}", 1, tuner="kind: ia3"),
    "1-D parameters, ConvNeXt": Case(tiny("test_convnext"), SMALL, '{parameter: "**.gamma"}', 9, tuner="kind: ia3", form="sequential: h", status="kept"),
    # prompts and prefixes on a plain module, which needs no config of a known kind
    "prefix": Case(Block, (2, 5, 8), "attention", 1, tuner="kind: prefix, length: 3", form="tokens: [k, v]", status="constant", identity=False),
    "prefix, ViT": Case(tiny("test_vit", img_size=32), SMALL, "attention", 6, tuner="kind: prefix, length: 3", form="tokens: [k, v]", status="constant", identity=False),
    "prompt": Case(Block, (2, 5, 8), "attention", 1, tuner="kind: prompt, length: 3", form="tokens: [k, v]", status="constant", identity=False),
    "prompt, ViT": Case(tiny("test_vit", img_size=32), SMALL, "attention", 6, tuner="kind: prompt, length: 3", form="tokens: [k, v]", status="constant", identity=False),
    # a layer under two names, and layers that are called again: one tuner, in effect at every call
    "two names": Case(Twice, (2, 6), "{op: linear}", 1),
    "called again, ALBERT": Case(albert, IDS, "{op: linear}", 6, more="inside: {class: AlbertLayer}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_tuner_is_in_effect_and_folds(name: str) -> None:
    case = CASES[name]
    model, x = built(case.make), given(case.x)
    tuned = utc.compile(model, case.rules, (x,))
    assert len(tuned.sites) == case.sites
    check(model, tuned, x, case.status, case.identity)


def test_both_calls_of_a_layer_under_two_names_are_tuned() -> None:
    """PEFT wraps the first name alone: here the folded layer, called twice, is the whole effect."""
    model, x = built(Twice), given((2, 6))
    tuned = utc.compile(model, CASES["two names"].rules, (x,))
    step(tuned, x)
    weight = model.a.weight + tuned.tuner(tuned.sites[0].id).delta()
    expected = F.linear(F.linear(x, weight, model.a.bias).tanh(), weight, model.a.bias)
    assert error(tuned(x), expected) < 1e-12


PACKED = Case(
    Block, (2, 5, 8), "{op: linear}", 1, tuner="kind: lora, r: 3, slices: [1/3, 3/3]", more="where: [h.path == 'qkv']"
)


@pytest.mark.parametrize(
    ("make", "x", "rules"),
    [(Block, PACKED.x, PACKED.rules), (tiny("test_vit", img_size=32), SMALL, "lora/qv")],
    ids=["toy", "ViT"],
)
def test_q_and_v_of_a_packed_projection_and_never_k(
    make: Callable[[], nn.Module], x: tuple[int, ...], rules: str
) -> None:
    """#761, #691: to PEFT the packed weight is one."""
    model, images = built(make), given(x)
    folded = check(model, utc.compile(model, rules, (images,)), images)
    packed = [name for name, _ in model.named_parameters() if name.endswith("qkv.weight")]
    for name in packed:
        (q, k, v), (new_q, new_k, new_v) = (m.get_parameter(name).chunk(3) for m in (model, folded))
        assert torch.equal(k, new_k) and not torch.equal(q, new_q) and not torch.equal(v, new_v)
    assert packed


def test_q_and_v_where_heads_share_keys() -> None:
    """Grouped-query attention: k and v have fewer rows than q."""
    model, x = built(llama), IDS
    rules = utc.RuleSet.load("lora/qv").text.replace('train: ["pattern:head"]', "")  # it has no head
    tuned = utc.compile(model, rules, {"input_ids": x}, vars={"r": 3})
    assert [s.rule for s in tuned.sites] == ["query", "query", "value", "value"]
    folded = check(model, tuned, x)
    for name, old in model.named_parameters():
        assert torch.equal(old, folded.get_parameter(name)) != name.endswith(("q_proj.weight", "v_proj.weight"))


def normed_conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize("make", [normed_conv, tiny("test_resnet")], ids=["toy", "ResNet"])
def test_a_frozen_batch_norm_does_not_drift(make: Callable[[], nn.Module]) -> None:
    """#1732: statistics moved in train mode, and were not saved."""
    model, x = built(make), given(SMALL)
    tuned = utc.compile(model, Case(make, SMALL, "{op: conv}", 1).rules, (x,))
    for _ in range(3):
        step(tuned, 5 * x + 3)
    buffers = dict(model.named_buffers())
    assert buffers and all(torch.equal(tuned.get_buffer(name), buffer) for name, buffer in buffers.items())


@pytest.mark.parametrize("name", ["MultiheadAttention", "conv, reflected border", "F.linear of a layer's weight, BEiT"])
def test_a_tuned_model_compiles_whole_and_exports(name: str) -> None:
    """#1199, #1419: no dynamic wrapper, so there is nothing to break the graph at."""
    case = CASES[name]
    model, x = built(case.make), given(case.x)
    tuned = utc.compile(model, case.rules, (x,))
    step(tuned, x)
    with torch.no_grad():
        expected = tuned(x)
        compiled = torch.compile(copy.deepcopy(tuned), backend="aot_eager", fullgraph=True)
        assert error(compiled(x), expected) < 1e-12
        exported = torch.export.export(tuned, (x,))
        assert error(exported.module()(x), expected) < 1e-12
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("match", "fix"),
    [
        ("{module: 'blocks.*.attn.qvk'}", "write module: 'blocks.*.attn.qkv'"),
        ("{op: linaer}", "did you mean 'linear'?"),
        ("{op: linear}\n    inside: {module: 'layers.*'}", "blocks"),
        ("{op: linear}\n    where: [\"h.path in ('blocks.0.mlp.fc1', 'blocks.9.mlp.fc1')\"]\n    expect: {exactly: 2}", "'blocks' has: 0, 1"),
    ],
)  # fmt: skip
def test_a_wrong_target_is_an_error_that_says_what_is_meant(match: str, fix: str) -> None:
    """#1959, #1206, #3582, #3610: targets that are not there were passed over."""
    model, x = tiny("test_vit", img_size=32)().eval(), torch.randn(SMALL)
    with pytest.raises(utc.UtcError) as refused:
        utc.compile(
            model, Case(Block, (1,), match, 1, form="weight: y" if "module:" in match[:9] else "weight: h").rules, (x,)
        )
    assert fix in str(refused.value)


def test_a_checkpoint_does_not_load_onto_another_base(tmp_path: Path) -> None:
    """#2275, #2340: same names and shapes, other weights."""
    x, rules, make = given(SMALL), "lora/all_linear", tiny("test_vit", img_size=32)
    utc.save_tuners(utc.compile(built(make), rules, (x,)), tmp_path)
    other = utc.compile(built(make), rules, (x,))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(utc.UtcError, match="trained on another base"):
        utc.load_tuners(other, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_trained_head_that_reads_a_view_is_still_the_identity() -> None:
    """torch multiplies by a weight that wants a gradient with another kernel, which differs in the last bit."""

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.conv, self.head = nn.Linear(4, 4), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(self.fc(x).mT).mT)

    rules = Case(Viewed, (1,), "{op: linear}", 1, more="where: [h.path == 'fc']").rules + "train: ['module:head']\n"
    for seed in range(4):
        torch.manual_seed(seed)
        utc.compile(Viewed().double().eval(), rules, (torch.randn(2, 5, 4, dtype=torch.float64),))

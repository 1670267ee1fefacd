"""The named patterns in models of every kind: how many sites each finds, and, by the dots, what it must not match."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.pattern_models import MODELS, captured, found
from torch import nn

import utcompile as utc
from utcompile.rules import library_patterns

NAMES = (
    "attention ffn gated_ffn token_mixer squeeze_excite inverted_residual bottleneck_block residual_block stem "
    "downsample head block"
).split()
# a dot is nought; the columns are those of NAMES
FOUND = """
    resnet           .   .   .   .   .   .   1   4   1   4   1   4
    convnext         .   9   .   .   .   .   .   9   1   3   1   9
    efficientnet     .   .   .   .   .   9   .   9   1   4   1   9
    mixer            .   2   .   2   .   .   .   .   1   .   1   2
    vit              6   6   .   .   .   .   .   .   1   .   1   6
    swin             5   5   .   .   .   .   .   .   1   3   1   5
    gmixer           .   .   3   3   .   .   .   .   1   .   1   3
    convmixer        .   .   .   4   .   .   .   4   1   .   1   4
    vit_swiglu       2   .   2   .   .   .   .   .   1   .   1   2
    llama            2   .   2   .   .   .   .   .   1   .   1   2
    bert             2   2   .   .   .   .   .   .   1   .   1   2
    gpt2             2   2   .   .   .   .   .   .   1   .   1   2
    t5               6   4   .   .   .   .   .   .   2   .   1   4
    perceiver        3   3   .   .   .   .   .   .   .   .   .   3
"""
MORE = """
    vgg              .   .   .   .   .   .   .   .   1   4   1   .
    densenet         .   .   .   .   .   .   .   .   1   3   1   .
    resnet18         .   .   .   .   .   .   .   8   1   3   1   8
    resnet50         .   .   .   .   .   .  16  16   1   3   1  16
    regnety          .   .   .   .  13   .  13  13   1   4   1  13
    mobilenetv3      .   .   .   .   9   7   .   7   1   4   1   7
    efficientnet_b0  .   .   .   .  16   9   .   9   1   4   1   9
    poolformer       .  12   .  12   .   .   .  12   1   3   1  12
    resmlp           .   3   .   3   .   .   .   .   1   .   1   .
    gmlp             .   .   .   3   .   .   .   .   1   .   1   3
    levit           11  11   .   .   .   .   .   .   1   3   1   9
    swinv2           5   5   .   .   .   .   .   .   1   3   1   5
    pvt              8   8   .   .   .   .   .   .   1   3   1   8
    clip             2   2   .   .   .   .   .   .   1   .   1   2
    llama_eager      2   .   2   .   .   .   .   .   1   .   1   2
    gemma2           2   .   2   .   .   .   .   .   1   .   .   2
    phi3             2   .   2   .   .   .   .   .   1   .   1   2
    neox             2   2   .   .   .   .   .   .   1   .   1   2
    falcon           2   2   .   .   .   .   .   .   1   .   1   2
    jamba            1   .   2   1   .   .   .   .   1   .   1   2
    mamba            .   .   .   2   .   .   .   .   1   .   1   2
    mamba2           .   .   .   2   .   .   .   .   1   .   1   2
    bart             6   4   .   .   .   .   .   .   2   .   1   4
"""


def rows(table: str) -> list[tuple[str, dict[str, int]]]:
    lines = [line.split() for line in table.strip().splitlines() if line.strip()]
    return [
        (kind, dict(zip(NAMES, (int(c.replace(".", "0")) for c in counts), strict=True))) for kind, *counts in lines
    ]


def test_the_table_has_every_pattern_and_model() -> None:
    table = rows(FOUND + MORE)
    assert set(NAMES) == library_patterns().keys() and sorted(kind for kind, _ in table) == sorted(MODELS)
    for name in NAMES:
        assert len([row for _, row in table if row[name]]) >= 3, name


@pytest.mark.parametrize(("kind", "wanted"), rows(FOUND), ids=[kind for kind, _ in rows(FOUND)])
def test_sites(kind: str, wanted: dict[str, int]) -> None:
    assert {name: len(found(kind, name)) for name in NAMES} == wanted


@pytest.mark.full
@pytest.mark.parametrize(("kind", "wanted"), rows(MORE), ids=[kind for kind, _ in rows(MORE)])
def test_more_sites(kind: str, wanted: dict[str, int]) -> None:
    assert {name: len(found(kind, name)) for name in NAMES} == wanted


# --- what the names stand for -------------------------------------------------------------------------------------------


def test_llamas_attention_reads_the_stream_before_its_spelled_out_norm() -> None:
    first = found("llama", "attention")[0]
    assert first["x"] == "model_embed_tokens"
    assert [first[n] for n in "nqkvc"] == [
        "model_layers_0_input_layernorm_mul_1",
        *(f"model_layers_0_self_attn_{n}_proj" for n in "qkvo"),
    ]


def test_berts_stream_is_what_its_norms_yield() -> None:
    attention, ffn = found("bert", "attention")[1], found("bert", "ffn")[0]
    assert attention["x"] == attention["n"] == "bert_encoder_layer_0_output_LayerNorm"
    assert ffn["x"] == ffn["n"] == "bert_encoder_layer_0_attention_output_LayerNorm"


def test_cross_attention_reads_queries_from_the_decoder_and_keys_from_the_encoder() -> None:
    matches = {m["q"]: m for m in found("t5", "attention")}
    cross = matches["decoder_block_0_layer_1_EncDecAttention_q"]
    assert cross["k"].endswith("EncDecAttention_k") and cross["n"] == "decoder_block_0_layer_1_layer_norm_mul_1"
    own = matches["decoder_block_0_layer_0_SelfAttention_q"]
    assert own["n"] == "decoder_block_0_layer_0_layer_norm_mul_1"


def test_the_stem_ends_where_the_first_block_reads_it() -> None:
    ends = {kind: [m["y"] for m in found(kind, "stem")] for kind in ("vit", "bert", "convnext", "t5")}
    assert ends["bert"] == ["bert_embeddings_dropout"] and ends["t5"] == ["encoder_dropout", "decoder_dropout"]
    assert len(ends["vit"]) == len(ends["convnext"]) == 1


# --- the five that must be writable -------------------------------------------------------------------------------------

WRITTEN = {
    ("windowed attention", "swin", 5): """
        q, k, v = split(linear(norm(x)))
        o = sdpa(path(q, through=mul, min=0, max=1), k, v)
        y = branch_tail(linear(o))
    """,
    ("attention with packed qkv", "vit", 6): """
        q, k, v = split(linear(norm(x)))
        c = linear(sdpa((norm | skip)(q), (norm | skip)(k), v))
        y = branch_tail(c)
    """,
    ("grouped queries with rotary embedding", "llama", 2): """
        n = rms_norm(x)
        q = linear(n)
        r = add(mul(q, c), mul(cat(neg(q), q), d))
        k = linear(n)
        s = add(mul(k, c), mul(cat(neg(k), k), d))
        v = linear(n)
        o = linear(sdpa(r, s, v))
        y = branch_tail(o)
    """,
    ("ConvNeXt's block", "convnext", 9): """
        d = depthwise_conv(x)
        h = pointwise(layer_norm(d))
        c = pointwise((dropout | skip)(gelu(h)))
        b = branch_tail(c)
        y = add(b, x)
    """,
    ("MBConv with squeeze-excite", "efficientnet_b0", 9): """
        d = depthwise_conv(silu(batch_norm(pointwise(x))))
        s = squeeze_excite(silu(batch_norm(d)))
        p = batch_norm(pointwise(s))
        b = branch_tail(p)
        y = add(b, x)
    """,
}


@pytest.mark.parametrize(("what", "kind", "sites"), WRITTEN, ids=[what for what, _, _ in WRITTEN])
def test_written_patterns(what: str, kind: str, sites: int) -> None:
    lines = [line.strip() for line in WRITTEN[what, kind, sites].strip().splitlines()]
    text = "version: 1\nname: t\nrules:\n  - name: r\n    match: |\n" + "".join(f"      {n}\n" for n in lines)
    text += "    insert: {sequential: y, tuner: {kind: adapter, dim: 1}}\n"
    assert len(utc.match(captured(kind), text).sites) == sites


# --- what they must not match -------------------------------------------------------------------------------------------


class Gate(nn.Module):
    """`c(a · b) + x` with a and b as told."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.kind = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.silu(self.a(x)) if self.kind != "bilinear" else self.a(x)
        b = self.b(x.roll(1, 1) * 2) if self.kind == "two inputs" else self.b(x)
        y = self.c(a * b)
        return y if self.kind == "no residual" else x + y


def count(model: nn.Module, pattern: str, x: torch.Tensor) -> int:
    text = f"version: 1\nname: t\nrules:\n  - name: r\n    match: {pattern}\n    expect: {{optional: true}}\n"
    text += "    insert: {sequential: y, tuner: {kind: adapter, dim: 1}}\n"
    return len(utc.match(utc.capture(model.eval(), x), text).sites)


@pytest.mark.parametrize(("kind", "sites"), [("gated", 1), ("bilinear", 0), ("two inputs", 0), ("no residual", 0)])
def test_a_gated_ffn_gates_an_activation_of_one_input_and_is_added(kind: str, sites: int) -> None:
    assert count(Gate(kind), "gated_ffn", torch.randn(2, 5, 8)) == sites
    assert count(Gate(kind), "ffn", torch.randn(2, 5, 8)) == 0


class Strided(nn.Module):
    """A strided convolution, in a branch or on the stream."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.pool, self.branch = nn.MaxPool2d(2), branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        if self.branch:
            return self.pool(x) + self.b(self.a(x).relu())
        x = self.a(x)
        return x + self.b(x).relu()


@pytest.mark.parametrize(("branch", "sites"), [(True, 0), (False, 1)])
def test_a_strided_convolution_in_a_branch_is_no_downsampling_of_the_stream(branch: bool, sites: int) -> None:
    assert count(Strided(branch), "downsample", torch.randn(2, 3, 8, 8)) == sites

"""`tokens: [k, v]`: equal to attention written by hand with the learned keys and values in it, masks and all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.graph import fused_arguments, is_fused_attention

PREFIX = """
version: 1
name: t
rules:
  - name: a
    match: o = sdpa(q, k, v)
    insert: {tokens: [k, v], tuner: {kind: prefix, length: 3, init: normal}}
"""
PROMPT = PREFIX.replace("kind: prefix, length: 3, init: normal", "kind: prompt, length: 3")
MASKS = ["none", "causal", "boolean", "additive", "row", "state"]


def mask_of(kind: str, x: torch.Tensor) -> torch.Tensor | None:
    if kind == "boolean":
        return (x @ x.mT > 0)[:, None]  # its diagonal is true
    if kind == "additive":
        return (x @ x.mT)[:, None]
    if kind == "row":  # one entry for all keys of a query: broadcast along the keys
        return x.mean(-1, keepdim=True)[:, None]
    return None


class Attention(nn.Module):
    """Self-attention that masks as `mask` says, fused or spelled out, with `groups` heads of keys."""

    def __init__(self, mask: str, fused: bool, groups: str = "no", tokens: int = 6) -> None:
        super().__init__()
        self.mask, self.fused, self.groups = mask, fused, groups
        self.kv_heads = 4 if groups == "no" else 2
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 2 * 4 * self.kv_heads)
        self.out = nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(1, 4, tokens, tokens))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, 4, 4).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.kv_heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        given: dict[str, Any] = {}
        if self.groups == "repeated":
            k, v = (t[:, :, None].expand(b, 2, 2, n, 4).reshape(b, 4, n, 4) for t in (k, v))
        elif self.groups == "native":
            given["enable_gqa"] = True
        mask = self.bias if self.mask == "state" else mask_of(self.mask, x)
        if not self.fused:
            scores = q @ k.transpose(-2, -1) * 0.5
            if self.mask == "causal":
                scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool, device=x.device).tril(), float("-inf"))
            elif mask is not None:
                scores = scores + mask if mask.dtype != torch.bool else scores.masked_fill(~mask, float("-inf"))
            o = F.dropout(scores.softmax(dim=-1), 0.1, self.training) @ v
        else:
            o = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.mask == "causal", **given)
        return self.out(o.transpose(1, 2).reshape(b, n, 16))

    def expected(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The same by hand: every query sees all of the prefix, and what the mask lets it see."""
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, 4, 4).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.kv_heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = (torch.cat((p.expand(b, -1, -1, -1), t), 2) for p, t in ((keys, k), (values, v)))
        k, v = (t.repeat_interleave(4 // self.kv_heads, 1) for t in (k, v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 2
        mask = self.bias if self.mask == "state" else mask_of(self.mask, x)
        if self.mask == "causal":
            mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
            scores[..., keys.shape[1] :] += mask
        o = scores.softmax(-1) @ v
        return self.out(o.transpose(1, 2).reshape(b, n, 16))


CASES = [
    *itertools.product(MASKS, [True, False], ["no"]),
    ("none", True, "native"),
    ("causal", True, "native"),
    ("boolean", True, "repeated"),
    ("boolean", True, "native"),
    ("causal", True, "repeated"),
    ("none", True, "repeated"),
    ("causal", False, "repeated"),
]


@pytest.mark.parametrize(("mask", "fused", "groups"), CASES)
def test_a_prefix_is_exact(mask: str, fused: bool, groups: str) -> None:
    torch.manual_seed(0)
    model, x = Attention(mask, fused, groups).eval(), torch.randn(2, 6, 16)
    tuned = utc.compile(model, PREFIX, x).eval()
    zoo.shake(tuned, 1.0)
    tuner = tuned.tuner("a//0")
    keys, values = tuner.keys, tuner.values
    assert isinstance(keys, nn.Parameter) and isinstance(values, nn.Parameter)
    assert keys.shape == (model.kv_heads, 3, 4)  # heads that share keys share the prefix
    for batch in (2, 5):
        x = torch.randn(batch, 6, 16)
        torch.testing.assert_close(tuned(x), model.expected(x, keys, values), rtol=1e-4, atol=1e-5)
        with utc.disable_tuners(tuned):
            torch.testing.assert_close(tuned(x), model(x))
    loss = tuned(x).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in tuner.parameters())


def test_two_prefixes_on_one_attention_are_one_longer_one() -> None:
    second = PREFIX.split("rules:\n")[1].replace("name: a", "name: b").replace("length: 3", "length: 2")
    for mask, fused in itertools.product(["causal", "additive"], [True, False]):
        model, x = Attention(mask, fused).eval(), torch.randn(2, 6, 16)
        tuned = utc.compile(model, PREFIX + second, x).eval()
        zoo.shake(tuned, 1.0)
        tuners = [tuned.tuner(i) for i in ("b//0", "a//0")]
        keys, values = (torch.cat([getattr(t, n) for t in tuners], 1) for n in ("keys", "values"))
        torch.testing.assert_close(tuned(x), model.expected(x, keys, values), rtol=1e-4, atol=1e-5)


class Merged(nn.Module):
    """Attention in `(B·heads, S, d)`, by batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).reshape(b, n, 4, 4).transpose(1, 2).reshape(b * 4, n, 4) for f in (self.q, self.k, self.v))
        o = torch.bmm(torch.softmax(torch.bmm(q / 2, k.transpose(1, 2)), -1), v)
        return o.reshape(b, 4, n, 4).transpose(1, 2).flatten(2)


def test_the_batch_may_stand_before_the_heads() -> None:
    torch.manual_seed(0)
    model, x = Merged().eval(), torch.randn(2, 6, 16)
    tuned = utc.compile(model, PREFIX, x).eval()
    zoo.shake(tuned, 1.0)
    tuner, x = tuned.tuner("a//0"), torch.randn(3, 6, 16)
    q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (model.q, model.k, model.v))
    keys, values = (p.expand(3, -1, -1, -1) for p in (tuner.keys, tuner.values))  # type: ignore[operator,union-attr]
    o = F.scaled_dot_product_attention(q, torch.cat((keys, k), 2), torch.cat((values, v), 2))
    torch.testing.assert_close(tuned(x), o.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)


def test_windows_with_masks_and_biases() -> None:
    """Swin spelled out reshapes its scores to add a mask a window; fused, it gives one mask. One prefix, one result."""
    outputs = []
    for fused in (True, False):
        model, x = zoo.make("swin")
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        tuned = utc.compile(model, PREFIX.replace("o = sdpa(q, k, v)", "attention"), x).eval()
        assert len(tuned.sites) == 5
        zoo.shake(tuned, 1.0)
        outputs.append(tuned(x))
        with utc.disable_tuners(tuned):
            assert not torch.allclose(outputs[-1], tuned(x), atol=1e-3)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_prompt_is_vpt_deep(fused: bool) -> None:
    """Prompts in front of every block's tokens, dropped behind it: exact in a ViT that reads its class token."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=7).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    x = torch.randn(2, 3, 64, 64)
    rules = PROMPT.replace("match: o = sdpa(q, k, v)", "match: attention")
    tuned = utc.compile(model, rules, x).eval()
    zoo.shake(tuned, 0.5)
    h = model._pos_embed(model.patch_embed(x))
    for i, block in enumerate(model.blocks):
        prompts = tuned.tuner(f"a/blocks.{i}/0").tokens
        assert isinstance(prompts, nn.Parameter) and prompts.shape == (3, 192)
        h = block(torch.cat((h[:, :1], prompts.expand(2, -1, -1), h[:, 1:]), 1))
        h = torch.cat((h[:, :1], h[:, 4:]), 1)
    expected = model.forward_head(model.norm(h))
    torch.testing.assert_close(tuned(x), expected, rtol=1e-4, atol=1e-5)
    assert tuned(torch.randn(5, 3, 64, 64)).shape == (5, 7)


SPOILT = {
    "the weights are reshaped before they meet the values": "w = (q @ k.mT).reshape(b, 4, n, n).flatten(0, 1).softmax(-1).reshape(b, 4, n, n)",
    "a factor that differs from key to key": "w = (q @ k.mT * self.scale).softmax(-1)",
    "softmax is not over the last axis": "w = (q @ k.mT).softmax(-2)",
}


@pytest.mark.parametrize("why", SPOILT)
def test_where_tokens_have_no_place_a_message_says_why(why: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.scale = nn.Linear(16, 48), nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            space = {"q": q, "k": k, "b": b, "n": n, "self": self}
            exec(SPOILT[why], space)
            return space["w"] @ v  # type: ignore[no-any-return]

    with pytest.raises(utc.UtcError, match=why):
        utc.compile(Model(), PREFIX, torch.randn(2, 6, 16))


def test_captures_that_no_attention_reads() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    rules = PREFIX.replace("o = sdpa(q, k, v)", "v = relu(k)")
    with pytest.raises(utc.UtcError, match="no attention reads 'k' as its keys and 'v' as its values"):
        utc.compile(model, rules, x)
    with pytest.raises(utc.UtcError, match="a prefix of tokens has no scale"):
        utc.compile(Attention("none", True), PREFIX.replace("length: 3", "scale: scalar"), torch.randn(2, 6, 16))
    with pytest.raises(utc.UtcError, match="a adapter tuner cannot be inserted as 'tokens'"):
        text = PREFIX.replace("kind: prefix, length: 3, init: normal", "kind: adapter")
        utc.compile(Attention("none", True), text, torch.randn(2, 6, 16))


def language_models() -> dict[str, tuple[Any, Any]]:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    llama = transformers.LlamaConfig(**small, intermediate_size=48, num_key_value_heads=2, use_cache=False)
    gpt2 = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, use_cache=False)
    bert = transformers.BertConfig(**small, intermediate_size=48)
    return {
        "llama": (transformers.LlamaForCausalLM, llama),
        "gpt2": (transformers.GPT2LMHeadModel, gpt2),
        "bert": (transformers.BertForSequenceClassification, bert),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_fused_and_spelled_out_language_models_agree(kind: str) -> None:
    """Causal masks, padding masks, rotary embeddings and grouped heads: two ways to write one model."""
    cls, config = language_models()[kind]
    ids = torch.arange(14).reshape(2, 7) % 50
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :2] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    outputs = []
    for way in ("sdpa", "eager"):
        torch.manual_seed(0)
        config._attn_implementation = way
        tuned = utc.compile(cls(config).eval(), PREFIX, given, verify="shapes").eval()
        assert len(tuned.sites) == 2
        zoo.shake(tuned, 1.0)
        outputs.append(tuned(**given).logits)
        with utc.disable_tuners(tuned):
            assert not torch.allclose(outputs[-1], tuned(**given).logits, atol=1e-5)
    torch.testing.assert_close(outputs[0][:, -1:], outputs[1][:, -1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_prefix_joins_attention_that_says_is_causal(kind: str) -> None:
    """Without padding the fused models pass no mask; with a prefix in front, `is_causal` would mean another one."""
    cls, config = language_models()[kind]
    tuned = {}
    for way in ("sdpa", "eager"):
        torch.manual_seed(0)
        config._attn_implementation = way
        tuned[way] = utc.compile(cls(config).eval(), PREFIX, {"input_ids": torch.arange(14).reshape(2, 7)}).eval()
        zoo.shake(tuned[way], 1.0)
    for batch, length in [(2, 7), (1, 2), (1, 12), (5, 30)]:
        ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(length))
        # two ways to add up one softmax, in float32
        torch.testing.assert_close(*(t(input_ids=ids).logits for t in tuned.values()), rtol=1e-3, atol=1e-4)
    fused = [fused_arguments(n) for n in tuned["sdpa"].graph.nodes if is_fused_attention(n)]
    assert not any(given["is_causal"] for given in fused)
    assert not any(given["enable_gqa"] and given["attn_mask"] is not None for given in fused)  # as transformers has it


def test_every_attention_of_an_encoder_and_decoder() -> None:
    """T5 adds positions to unscaled scores, and its decoder attends to the encoder."""
    import transformers

    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=50, use_cache=False, decoder_start_token_id=0
    )
    model, ids = transformers.T5ForConditionalGeneration(config).eval(), torch.arange(14).reshape(2, 7)
    given = {"input_ids": ids, "attention_mask": (ids % 7 > 1).long(), "decoder_input_ids": ids[:, :5]}
    tuned = utc.compile(model, PREFIX, given, verify="shapes").eval()
    assert [s.path.split(".")[0] for s in tuned.sites] == ["encoder"] * 2 + ["decoder"] * 4
    tuned(**given).logits.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for s in tuned.sites for p in tuned.tuner(s.id).parameters()
    )
    with utc.disable_tuners(tuned):
        torch.testing.assert_close(tuned(**given).logits, model(**given).logits)


@pytest.mark.parametrize(
    ("mask", "fused"),
    [
        ("causal", True),
        ("boolean", False),
        pytest.param("causal", False, marks=pytest.mark.full),
        pytest.param("boolean", True, marks=pytest.mark.full),
    ],
)
def test_a_prefix_exports_and_stays_exact(mask: str, fused: bool, tmp_path: Any) -> None:
    model, x = Attention(mask, fused).eval(), torch.randn(2, 6, 16)
    tuned = utc.compile(model, PREFIX, x)
    zoo.shake(tuned, 1.0)
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["constant"]
    result = utc.export_onnx(folded, tmp_path / "m.onnx", x)  # proven in ONNX Runtime
    assert result.max_error < 1e-4

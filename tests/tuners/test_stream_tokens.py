"""`stream_tokens: x`: learned tokens that live in the stream, and the models that have no place for them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc

RULES = """
version: 1
name: shallow
rules:
  - name: stream
    match: {class: Stream}
    insert: {stream_tokens: y, tuner: {kind: prompt, length: 3}}
"""
MORE = """
  - name: ffn
    match: {class: Ffn}
    insert: {parallel: x -> y, tuner: {kind: adapter, dim: 2, activation: identity}}
"""
Read = Callable[["Vit", torch.Tensor], torch.Tensor]


class Stream(nn.Module):
    """Where the stream begins."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(F.gelu(self.up(x)))
        return y


class Vit(nn.Module):
    """A Vision Transformer of one block over 16 patches, which ends as `read` says.

    Args:
        read: from the block's result to what the head reads.
        fused: whether attention is one operation.
        extra: tokens in front of the patches.
        between: what happens to the stream before attention.
    """

    def __init__(
        self,
        read: Read | None = None,
        fused: bool = True,
        extra: int = 1,
        between: Read | None = None,
        after: int = 0,
    ) -> None:
        super().__init__()
        self.read, self.fused, self.between = read, fused, between
        self.patch, self.stream, self.ffn = nn.Conv2d(3, 8, 4, 4), Stream(), Ffn()
        self.cls = nn.Parameter(torch.randn(1, extra, 8))
        self.position = nn.Parameter(torch.randn(1, 16 + extra, 8))
        self.again = nn.Parameter(torch.randn(16 + extra, 1))
        self.mixer, self.query = nn.Linear(16 + extra, 16 + extra), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.qkv, self.out, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, extra = x.shape[0], self.cls.shape[1]
        x = self.stream(torch.cat([self.cls.expand(b, -1, -1), x], 1) + self.position)
        if prompts is not None:  # the method, by hand
            x = torch.cat([x[:, :extra], prompts.expand(b, -1, -1), x[:, extra:]], 1)
        if self.between is not None:
            x = self.between(self, x)
        n = x.shape[1]
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, 8))
        x = x + self.ffn(x)
        y = x[:, 0] if self.read is None else self.read(self, x)
        head: torch.Tensor = self.head(y)
        return head


IMAGES = torch.randn(2, 3, 16, 16)


def compiled(model: nn.Module, rules: str = RULES, x: torch.Tensor = IMAGES) -> utc.TunedModule:
    return utc.compile(model.eval(), rules, x).eval()


def prompts_of(tuned: utc.TunedModule) -> torch.Tensor:
    return next(tuned.tuner(s.id).tokens for s in tuned.sites if s.form == "stream_tokens")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("extra", [1, 2])
def test_the_tokens_live_in_the_stream_as_the_paper_says(fused: bool, extra: int) -> None:
    read = (lambda m, x: x[:, 0] + x[:, 1]) if extra == 2 else None  # as a distilled model reads
    model = Vit(read, fused, extra)
    tuned = compiled(model)
    (site,) = tuned.sites
    assert (site.form, site.tuner) == ("stream_tokens", "prompt")
    for batch in (1, 3):
        x = torch.randn(batch, 3, 16, 16)
        torch.testing.assert_close(tuned(x), model(x, prompts_of(tuned)))
        assert not torch.allclose(tuned(x), model(x))
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), model(x))
    tuned(x).square().sum().backward()
    assert prompts_of(tuned).grad is not None and (prompts_of(tuned).grad != 0).any(1).all()  # each of them


def test_without_a_grid_they_stand_at_the_end_and_their_number_may_vary() -> None:
    """Attention knows no place, so the same tokens give the same result behind the others."""

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stream, self.qkv, self.head = Stream(), nn.Linear(8, 24), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stream(x)
            b, n, _ = x.shape
            q, k, v = self.qkv(x).view(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8)
            head: torch.Tensor = self.head(y[:, 0])
            return head

    model = Text().eval()
    for dynamic in (None, {"x": {0: "batch", 1: "tokens"}}):
        tuned = utc.compile(model, RULES, torch.randn(2, 5, 8), dynamic=dynamic).eval()
        for tokens in (5,) if dynamic is None else (5, 9):
            x = torch.randn(3, tokens, 8)
            model.stream.register_forward_hook(lambda m, a, y: torch.cat([y, prompts_of(tuned).expand(3, -1, -1)], 1))  # noqa: B023
            torch.testing.assert_close(tuned(x), model(x))
            model.stream._forward_hooks.clear()


def pooled(model: Vit, x: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(model.query @ x.transpose(1, 2), -1)
    return (weights @ x)[:, 0]


def attended(model: Vit, x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(model.query.expand(x.shape[0], -1, -1), x, x)[:, 0]


def written(model: Vit, x: torch.Tensor) -> torch.Tensor:
    x = x * 1
    x[:, 1] = 0
    return x[:, 0]


REFUSED: dict[str, tuple[dict[str, Read], str]] = {
    "mean": ({"read": lambda m, x: x.mean(1)}, "it pools the tokens"),
    "max": ({"read": lambda m, x: x.amax(1)}, "it pools the tokens"),
    "adaptive pool": ({"read": lambda m, x: F.adaptive_avg_pool1d(x.mT, 1)[..., 0]}, "pool is not known to treat"),
    "patches": ({"read": lambda m, x: x[:, 1:].sum(1)}, "it reads tokens by their place, 1:"),
    "last": ({"read": lambda m, x: x[:, -1]}, "it reads tokens by their place, -1"),
    "one patch": ({"read": lambda m, x: x[:, 5]}, "it reads tokens by their place, 5"),
    "gathered": ({"read": lambda m, x: x[:, torch.tensor([0, 3])].sum(1)}, "by a computed index"),
    "pooling by weights": ({"read": pooled}, "one of its factors is a parameter"),
    "pooling by attention": ({"read": attended}, "it attends to the tokens for something that is no token"),
    "all tokens": ({"read": lambda m, x: x}, "an output of the model has an entry for each token"),
    "flat": ({"read": lambda m, x: x.flatten(1)[:, :8]}, "the number of tokens is pinned"),
    "map": (
        {"between": lambda m, x: x + F.pad(x[:, 1:].mT.unflatten(2, (4, 4)).flatten(2).mT, (0, 0, 1, 0))},
        "it reads tokens by their place, 1:",
    ),
    "windows": (
        {"between": lambda m, x: x.reshape(x.shape[0], 34, 4).reshape(x.shape[0], 17, 8)},
        "the number of tokens is pinned",
    ),
    "a second position": ({"between": lambda m, x: x + m.position}, "which has an entry for each token"),
    "a gain per token": ({"between": lambda m, x: x * m.again}, "which has an entry for each token"),
    "mixed tokens": ({"between": lambda m, x: m.mixer(x.mT).mT}, "it mixes tokens, one weight for each"),
    "further tokens": (
        {"between": lambda m, x: torch.cat([x, m.query.expand(x.shape[0], -1, -1)], 1)},
        "further tokens",
    ),
    "shifted": ({"between": lambda m, x: x + x.roll(1, 1)}, "roll is not known to treat all tokens alike"),
    "turned": ({"between": lambda m, x: x.flip(1)}, "flip is not known to treat all tokens alike"),
    "a slope per token": ({"between": lambda m, x: F.prelu(x, m.again[:, 0])}, "an entry for each token"),
    "summed up": ({"between": lambda m, x: x.cumsum(1)}, "cumsum is not known to treat all tokens alike"),
    "norm over tokens": ({"between": lambda m, x: F.normalize(x, dim=1)}, "it normalises over the tokens"),
    "written into": ({"read": written}, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pins_the_tokens_or_reads_them_is_refused_by_name(name: str) -> None:
    options, why = REFUSED[name]
    model = Vit(**options).eval()  # type: ignore[arg-type]
    captured = utc.capture(model, IMAGES, verify="shapes")
    with pytest.raises(
        utc.UtcError, match=r"learned tokens cannot live in this stream|overwritten in place"
    ) as refused:
        utc.match(captured, RULES)
    assert why in str(refused.value) and "rule 'stream' at" in str(refused.value)
    assert "test_stream_tokens.py" in str(refused.value)  # the line of the model that is in the way


def test_a_mask_over_the_tokens_is_refused() -> None:
    class Masked(nn.Module):
        def __init__(self, mask: str) -> None:
            super().__init__()
            self.embed, self.stream, self.mask = nn.Linear(8, 8), Stream(), mask

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stream(self.embed(x))
            if self.mask == "causal":
                return F.scaled_dot_product_attention(x, x, x, is_causal=True)[:, 0]
            if self.mask == "given":
                return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril())[
                    :, 0
                ]
            return (torch.softmax(x @ x.mT + torch.ones(5, 5).triu(1) * -9.0, -1) @ x)[:, 0]

    for mask in ("causal", "given", "added"):
        with pytest.raises(utc.UtcError, match="has an entry for each token"):
            utc.match(utc.capture(Masked(mask).eval(), torch.randn(2, 5, 8), verify="shapes"), RULES)


@pytest.mark.parametrize("kind", ["swin", "resnet", "convnext", "mixer"])
def test_models_without_a_place_are_refused(kind: str) -> None:
    why = "it mixes tokens" if kind == "mixer" else "is no row of tokens"
    with pytest.raises(utc.UtcError, match=why) as refused:
        utc.match(zoo.captured(kind), "prompt/vpt_shallow")
    assert "vpt_shallow.yaml:" in str(refused.value)


def test_other_tuners_live_with_them_and_are_folded_beside_them(tmp_path: Path) -> None:
    model = Vit()
    for rules in (RULES + MORE, RULES.replace("rules:\n", f"rules:{MORE}")):
        tuned = compiled(model, rules)
        zoo.shake(tuned, 0.1)
        folded, report = utc.fold(tuned)
        assert {s.id.partition("/")[0]: s.status for s in report.sites} == {"stream": "kept", "ffn": "widened"}
        torch.testing.assert_close(folded(IMAGES), tuned(IMAGES), rtol=1e-4, atol=1e-5)  # sums of 18 in another order
    assert utc.export_onnx(folded, tmp_path / "m.onnx", IMAGES).max_error < 1e-4  # in float32, against torch


def test_two_sets_of_tokens_add_up() -> None:
    again = RULES.replace("rules:\n", "rules:\n" + RULES.partition("rules:\n")[2].replace("name: stream", "name: more"))
    model = Vit()
    tuned = compiled(model, again)
    both = torch.cat([tuned.tuner(s.id).tokens for s in tuned.sites])
    torch.testing.assert_close(tuned(IMAGES), model(IMAGES, both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plans_and_checkpoints_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    x = IMAGES.to(dtype)
    plan = utc.match(utc.capture(Vit().eval().to(dtype), x), RULES)
    first = plan.apply().eval()
    assert prompts_of(first).dtype == torch.float32 and first(x).dtype == dtype
    utc.save_tuners(first, tmp_path)
    second = pickle.loads(pickle.dumps(plan)).apply().eval()
    assert not torch.equal(second(x), first(x))
    utc.load_tuners(second, tmp_path)
    assert torch.equal(second(x), first(x))


def test_a_tuner_of_another_kind_or_with_a_scale_does_not_fit() -> None:
    captured = utc.capture(Vit().eval(), IMAGES, verify="shapes")
    with pytest.raises(utc.UtcError, match="cannot be inserted as 'stream_tokens'"):
        utc.match(captured, RULES.replace("kind: prompt", "kind: prefix"))
    with pytest.raises(utc.UtcError, match="has no scale"):
        utc.match(captured, RULES.replace("length: 3", "scale: scalar"))

"""Which attentions learned tokens may join: those whose softmax is over tokens, however they are spelled out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import utcompile as utc


class Spelled(nn.Module):
    """A residual block with an attention that is spelled out, over tokens or over channels.

    Args:
        over: `tokens`; `channels`, as XCiT and EdgeNeXt have it; or `channels, packed` without normalisation.
        keys_first: whether keys are made as `(B, heads, d, N)`, as in LeViT, and not transposed for the product.
    """

    def __init__(self, over: str, keys_first: bool = False) -> None:
        super().__init__()
        self.over, self.keys_first = over, keys_first
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, 8).unbind(2)
        if self.over == "tokens":
            q, v = q.transpose(1, 2), v.transpose(1, 2)
            k = k.permute(0, 2, 3, 1) if self.keys_first else k.transpose(1, 2).transpose(2, 3)
            o = ((q @ k) * 8**-0.5).softmax(-1) @ v
            return x + self.proj(o.transpose(1, 2).reshape(b, n, c))
        q, k, v = (t.permute(0, 2, 3, 1) for t in (q, k, v))  # (B, heads, d, N)
        if self.over == "channels":
            q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        o = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1) @ v
        return x + self.proj(o.permute(0, 3, 1, 2).reshape(b, n, c))


def captured(model: nn.Module) -> utc.CapturedModule:
    return utc.capture(model.eval(), (torch.randn(2, 5, 16),), verify="shapes")


@pytest.mark.parametrize("keys_first", [False, True])
@pytest.mark.parametrize("rules", ["prefix/prefix", "prompt/vpt_deep", "u_tuning/single_mha_prefix"])
def test_attention_over_tokens_takes_learned_tokens(rules: str, keys_first: bool) -> None:
    plan = utc.match(captured(Spelled("tokens", keys_first)), rules)
    assert len(plan.sites) == 1


@pytest.mark.parametrize("over", ["channels", "channels, packed"])
@pytest.mark.parametrize("rules", ["prefix/prefix", "prompt/vpt_deep", "u_tuning/single_mha_prefix"])
def test_attention_over_channels_has_no_tokens(rules: str, over: str) -> None:
    """A learned key there would be one more channel, and its length the number of the tokens."""
    with pytest.raises(utc.UtcError, match="over channels") as caught:
        utc.match(captured(Spelled(over)), rules)
    assert caught.value.fix


@pytest.mark.parametrize("over", ["channels", "channels, packed"])
def test_its_projections_and_its_branch_are_tuned_as_elsewhere(over: str) -> None:
    model = captured(Spelled(over))
    assert len(utc.match(model, "lora/all_linear").sites) == 2
    assert len(utc.match(model, "u_tuning/single_mha").sites) == 1


class Windows(nn.Module):
    """Attention within windows of four tokens, whose axis is where `order` says: `B`, `heads`, `windows`, `S`, `d`."""

    def __init__(self, heads: int, heads_first: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.heads_first, self.fused = heads, heads_first, fused
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        split = self.qkv(self.norm(x)).reshape(
            b, n // 4, 4, 3, self.heads, c // self.heads
        )  # (B, windows, S, 3, heads, d)
        q, k, v = split.permute((3, 0, 4, 1, 2, 5) if self.heads_first else (3, 0, 1, 4, 2, 5)).unbind(0)
        if self.fused:
            o = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            o = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return x + self.proj(o.permute((0, 2, 3, 1, 4) if self.heads_first else (0, 1, 3, 2, 4)).reshape(b, n, c))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_windows_between_heads_and_tokens_are_no_heads(heads: int, fused: bool) -> None:
    """As in Hiera and NesT: learned keys would belong to a window, and their number follow the size of the input."""
    x = torch.randn(2, 12, 16)
    model = utc.capture(Windows(heads, True, fused).eval(), (x,), verify="shapes")
    for rules in ("prefix/prefix", "u_tuning/single_mha_prefix"):
        with pytest.raises(utc.UtcError, match="within windows"):
            utc.match(model, rules)
    assert len(utc.match(model, "u_tuning/single_mha").sites) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_heads_between_windows_and_tokens_are_heads(fused: bool) -> None:
    """As in Twins: one prefix per head, for all windows."""
    x = torch.randn(2, 12, 16)
    plan = utc.match(utc.capture(Windows(2, False, fused).eval(), (x,), verify="shapes"), "prefix/prefix")
    (site,) = plan.sites
    assert site.parameters == 2 * 10 * 16  # keys and values of ten tokens, whatever the number of windows


class Packed(nn.Module):
    """A packed projection that slices divide, and not a split, with fewer heads of keys, as in Phi-3; or a cache."""

    def __init__(self, separate: bool, cached: bool) -> None:
        super().__init__()
        self.separate, self.cached = separate, cached
        self.norm, self.proj, self.qkv = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 32)
        self.q, self.k, self.v = (nn.Linear(16, n) for n in (16, 8, 8))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t = self.norm(x), x[:, :0, :8].unflatten(-1, (1, 8)).transpose(1, 2)  # an empty cache
        p = None if self.separate else self.qkv(n)
        q, k, v = (self.q(n), self.k(n), self.v(n)) if p is None else (p[..., :16], p[..., 16:24], p[..., 24:])
        q, k, v = (z.unflatten(-1, (-1, 8)).transpose(1, 2) for z in (q, k, v))
        if self.cached:
            k, v = torch.cat((t, k), 2), torch.cat((t, v), 2)
        o = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        y = x + self.proj(o.transpose(1, 2).flatten(2))
        return y + self.down(nn.functional.silu(self.up(y)))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("rules", "packed", "separate"),
    [
        ("lora/qv", ["packed"], ["query", "value"]),
        ("ia3/keys_values_ffn", ["packed", "hidden"], ["key", "value", "hidden"]),
    ],
)
def test_rules_of_projections_find_each_once(rules: str, packed: list[str], separate: list[str], cached: bool) -> None:
    """The rule for separate projections leaves a packed one alone, and a cache hides neither keys nor values."""
    for one, expected in ((False, packed), (True, separate)):
        model = utc.capture(Packed(one, cached).eval(), (torch.randn(2, 5, 16),), verify="shapes")
        assert [site.rule for site in utc.match(model, rules).sites] == expected

"""Attention stays the attention that was written: which masks amount to `is_causal` or to none, and which do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

import utcompile as utc
from utcompile.graph import fused_arguments, info, is_fused_attention

T = torch.Tensor
X = torch.randn(2, 6, 16)
LENGTHS = {"x": {0: "B", 1: "L"}}


class Attend(nn.Module):
    """Self-attention with the mask that a function of the module, its input and its length yields."""

    def __init__(self, mask: Callable[[Attend, T, int], T | None], heads: int = 4) -> None:
        super().__init__()
        self.mask, self.heads = mask, heads
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)
        self.bias = nn.Parameter(torch.zeros(6, 6))
        self.register_buffer("table", torch.ones(64, 64, dtype=torch.bool).tril())

    def forward(self, x: T) -> T:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(self, x, n))
        return o.transpose(1, 2).reshape(b, n, 16)


def calls(captured: nn.Module) -> list[dict[str, Any]]:
    """What each attention of a graph is given, queries, keys and values aside."""
    found = [fused_arguments(n) for n in captured.graph.nodes if is_fused_attention(n)]
    return [{k: v for k, v in given.items() if k in ("attn_mask", "is_causal", "enable_gqa")} for given in found]


def at(n: int) -> tuple[T, T]:
    """The positions of queries and of keys."""
    positions = torch.arange(n)
    return positions[:, None], positions[None, :]


def low(x: T) -> float:
    return torch.finfo(x.dtype).min


INF = float("inf")
CAUSAL: dict[str, Callable[[Attend, T, int], T]] = {
    "a lower triangle": lambda m, x, n: torch.ones(n, n, dtype=torch.bool, device=x.device).tril(),
    "no upper triangle": lambda m, x, n: ~torch.ones(n, n, dtype=torch.bool).triu(1),
    "like scores": lambda m, x, n: torch.ones_like(x @ x.mT).tril().bool()[:, None],
    "new from the input": lambda m, x, n: x.new_ones((n, n)).tril().bool(),
    "positions": lambda m, x, n: at(n)[0] >= at(n)[1],
    "positions as floats": lambda m, x, n: torch.arange(n).float()[:, None] >= torch.arange(n).float(),
    "counted": lambda m, x, n: torch.ones(n, n).cumsum(-1) <= torch.arange(n)[:, None] + 1,
    "filled": lambda m, x, n: torch.zeros(n, n).masked_fill(torch.tril(torch.ones(n, n)) == 0, -INF),
    "chosen": lambda m, x, n: torch.where(at(n)[0] >= at(n)[1], 0.0, low(x)).to(x.dtype),
    "inverted": lambda m, x, n: (1.0 - torch.tril(torch.ones(n, n, dtype=x.dtype))) * low(x),
    "as large as one writes it": lambda m, x, n: torch.full((n, n), -1e9).triu(1),
    "nn.Transformer's": lambda m, x, n: nn.Transformer.generate_square_subsequent_mask(n),
    "one per sample": lambda m, x, n: (at(n)[0] >= at(n)[1]).expand(len(x), 1, n, n),
    "joined": lambda m, x, n: torch.stack([at(n)[0] >= i for i in [torch.arange(n)]])[0] & (at(n)[1] >= 0),
}
NONE: dict[str, Callable[[Attend, T, int], T]] = {
    "all true": lambda m, x, n: torch.ones(len(x), 1, n, n, dtype=torch.bool),
    "no query is negative": lambda m, x, n: (at(n)[0] >= 0).expand(len(x), 1, n, n),
    "zeros": lambda m, x, n: torch.zeros(1, 1, n, n, dtype=x.dtype),
    "ones, inverted": lambda m, x, n: (1.0 - torch.ones(len(x), 1, 1, n, dtype=x.dtype)) * low(x),
    "no entry is hidden": lambda m, x, n: torch.zeros(n, n).masked_fill(torch.ones(n, n) == 0, -INF),
}


def windowed(width: int) -> Callable[[Attend, T, int], T]:
    return lambda m, x, n: (at(n)[0] >= at(n)[1]) & (at(n)[0] - at(n)[1] < width)


def blocks(n: int) -> T:
    return torch.arange(n)[:, None].expand(-1, 8).reshape(-1)[:n]


def written_into(m: Attend, x: T, n: int) -> T:
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[:, 0] = x[0, 0, 0] > 100
    mask[0, 0] = True
    return mask


LEFT: dict[str, Callable[[Attend, T, int], T]] = {
    "a window below the example's length": windowed(3),
    "a window beyond the example's length": windowed(10),
    "a window beyond all small lengths": windowed(100),
    "a window on both sides": lambda m, x, n: (at(n)[0] - at(n)[1]).abs() < 50,
    "blocks": lambda m, x, n: at(n)[0] // 8 == at(n)[1] // 8,
    "causal blocks": lambda m, x, n: (at(n)[0] // 8 == at(n)[1] // 8) & (at(n)[0] >= at(n)[1]),
    "blocks by repeating": lambda m, x, n: blocks(n)[:, None] >= blocks(n)[None],
    "blocks by expanding": lambda m, x, n: (at(n)[0] >= at(n)[1]) | (blocks(n)[None] >= 20),
    "a prefix that all see": lambda m, x, n: (at(n)[1] < 3) | (at(n)[0] >= at(n)[1]),
    "a prefix as long as the example": lambda m, x, n: (at(n)[1] < 6) | (at(n)[0] >= at(n)[1]),
    "a prefix that begins far away": lambda m, x, n: (at(n)[1] >= 60) | (at(n)[0] >= at(n)[1]),
    "an offset": lambda m, x, n: torch.ones(n, n, dtype=torch.bool).tril(1),
    "an offset that is 0 at the example": lambda m, x, n: torch.ones(n, n, dtype=torch.bool).tril(n - 6),
    "what hides nothing at the example": lambda m, x, n: at(n)[1].expand(n, n) < 6,
    "a bias that falls with distance": lambda m, x, n: torch.where(
        at(n)[0] >= at(n)[1], -0.5 * (at(n)[0] - at(n)[1]), -INF
    ),
    "a bias everywhere": lambda m, x, n: torch.ones(n, n),
    "soft": lambda m, x, n: torch.full((n, n), -50.0).triu(1),
    "positions that do not count exactly": lambda m, x, n: (
        torch.arange(n, dtype=x.dtype)[:, None] >= torch.arange(n, dtype=x.dtype)
    ),
    "positions in 8 bits": lambda m, x, n: (
        torch.arange(n).to(torch.int8)[:, None] >= torch.arange(n).to(torch.int8)[None]
    ),
    "values of the input": lambda m, x, n: (at(n)[0] >= at(n)[1]) & (x[:, None, None, :, 0] < 100),
    "a buffer": lambda m, x, n: m.table[:n, :n],
    "causal plus a parameter": lambda m, x, n: torch.full((n, n), -INF).triu(1) + m.bias.sum(),
    "another one per sample": lambda m, x, n: (at(n)[0] >= at(n)[1]) | (torch.arange(len(x)) > 40)[:, None, None, None],
    "an offset by a remainder": lambda m, x, n: torch.ones(n, n).tril((n + 2) % 8).bool(),
    "an offset by a quotient": lambda m, x, n: torch.ones(n, n).tril(n // 100).bool(),
    "an offset that begins far away": lambda m, x, n: torch.ones(n, n).tril(max(n - 50, 0)).bool(),
    "a prefix from a smallest size on": lambda m, x, n: (at(n)[0] >= at(n)[1]) | (at(n)[1] >= min(n, 60)),
    "written into": written_into,
    "random": lambda m, x, n: torch.rand(n, n) >= 0,
}
SIZES = [(1, 1), (7, 2), (3, 9), (2, 70), (1, 300)]


def equal_beyond(model: nn.Module, captured: nn.Module, largest: int = 300) -> None:
    """A captured model computes what the model computes, bit for bit, at sizes that were not recorded."""
    for batch, length in SIZES:
        if length <= largest:
            x = torch.randn(batch, length, 16)
            with torch.no_grad():  # a mask with a gradient takes another kernel
                assert torch.equal(model(x), captured(x)), (batch, length)


@pytest.mark.parametrize("what", CAUSAL)
def test_a_mask_that_is_the_causal_one_at_every_size(what: str) -> None:
    model = Attend(CAUSAL[what]).eval()
    captured = utc.capture(model, X, LENGTHS)
    assert calls(captured) == [{"attn_mask": None, "is_causal": True, "enable_gqa": False}]
    assert not [n for n in captured.graph.nodes if str(n.target) in ("tril", "triu", "ge", "arange")]
    equal_beyond(model, captured)


@pytest.mark.parametrize("what", NONE)
def test_a_mask_that_hides_nothing_at_any_size(what: str) -> None:
    model = Attend(NONE[what]).eval()
    captured = utc.capture(model, X, LENGTHS)
    assert calls(captured) == [{"attn_mask": None, "is_causal": False, "enable_gqa": False}]
    equal_beyond(model, captured)


@pytest.mark.parametrize("what", LEFT)
def test_a_mask_that_says_more_stays(what: str) -> None:
    model = Attend(LEFT[what]).eval()
    captured = utc.capture(model, X, LENGTHS)
    (given,) = calls(captured)
    assert given["attn_mask"] is not None and not given["is_causal"]
    equal_beyond(model, captured, 64 if what == "a buffer" else 300)


def test_a_mask_that_is_given_stays() -> None:
    class Given(Attend):
        def forward(self, x: T, mask: T) -> T:
            self.mask = lambda m, x, n: mask
            return super().forward(x)

    captured = utc.capture(Given(lambda m, x, n: None), (X, torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()))
    assert [str(c["attn_mask"]) for c in calls(captured)] == ["mask"]


def test_what_pinned_sizes_make_causal_is_causal() -> None:
    """At fixed sizes a mask is one tensor: a window beyond it hides nothing more."""
    model = Attend(windowed(10)).eval()
    captured = utc.capture(model, X, dynamic={})
    assert calls(captured) == [{"attn_mask": None, "is_causal": True, "enable_gqa": False}]
    captured = utc.capture(model, X, {"x": {0: "B"}})
    assert calls(captured) == [{"attn_mask": None, "is_causal": True, "enable_gqa": False}]
    x = torch.randn(9, 6, 16)
    assert torch.equal(model(x), captured(x))


def test_an_example_of_any_length_will_do() -> None:
    """The masks that are looked at are small, whatever the example's is."""
    for length in (1, 3000):
        captured = utc.capture(Attend(CAUSAL["positions"], 1), torch.randn(1, length, 16), LENGTHS, verify="shapes")
        assert calls(captured) == [{"attn_mask": None, "is_causal": True, "enable_gqa": False}]


def test_layers_with_a_mask_each_and_one_that_differs() -> None:
    model = nn.Sequential(
        *(Attend(CAUSAL[w]) for w in ("positions", "filled", "positions")), Attend(windowed(9))
    ).eval()
    captured = utc.capture(model, X, {"input": LENGTHS["x"]})
    assert [c["is_causal"] for c in calls(captured)] == [True, True, True, False]
    equal_beyond(model, captured)


def test_a_mask_that_something_else_reads_stays_for_it() -> None:
    class Shows(Attend):
        def forward(self, x: T) -> tuple[T, T]:
            return super().forward(x), self.mask(self, x, x.shape[1])

    class Twice(Attend):
        def forward(self, x: T) -> tuple[T, T]:
            return super().forward(x), self.mask(self, x, x.shape[1]).float().sum(-1)

    for model in (Shows(CAUSAL["positions"]).eval(), Twice(CAUSAL["positions"]).eval()):
        captured = utc.capture(model, X, LENGTHS, verify="shapes")
        assert calls(captured)[0]["is_causal"] and captured(torch.randn(3, 9, 16))[1].shape[-1] == 9


def test_in_half_precision_a_mask_of_the_inputs_dtype_is_still_the_causal_one() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = Attend(CAUSAL["inverted"]).to(dtype).eval()
        captured = utc.capture(model, X.to(dtype), LENGTHS)
        assert calls(captured) == [{"attn_mask": None, "is_causal": True, "enable_gqa": False}]
        x = torch.randn(3, 40, 16, dtype=dtype)
        assert torch.equal(model(x), captured(x))


def test_a_module_that_makes_the_mask() -> None:
    """A rule may name it; what it made is gone where nothing reads it, and no call of it is left in the middle."""

    class Mask(nn.Module):
        def forward(self, positions: T) -> T:
            return positions[:, None] >= positions

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.attend = Mask(), Attend(lambda m, x, n: m.made)

        def forward(self, x: T) -> T:
            self.attend.made = self.make(torch.arange(x.shape[1]))
            return self.attend(x)

    captured = utc.capture(Model().eval(), X, LENGTHS, verify="shapes")
    assert calls(captured)[0]["is_causal"]
    left = {*captured.graph.nodes}
    assert left.issuperset(r for n in left for r in info(n).ends_from)
    assert "make" not in str(captured.graph)


# --- queries and keys of different lengths ------------------------------------------------------------------------------


class Cross(nn.Module):
    """Attention from one sequence to another."""

    def __init__(self, mask: Callable[[int, int], T]) -> None:
        super().__init__()
        self.mask, self.linear = mask, nn.Linear(16, 16)

    def forward(self, x: T, y: T) -> T:
        q, k = (self.linear(t).unflatten(-1, (4, 4)).transpose(1, 2) for t in (x, y))
        return F.scaled_dot_product_attention(q, k, k, self.mask(x.shape[1], y.shape[1]))


@pytest.mark.parametrize(
    ("mask", "is_causal", "stays"),
    [
        (lambda n, s: torch.arange(n)[:, None] >= torch.arange(s), True, False),  # aligned at the upper left
        (lambda n, s: torch.arange(n)[:, None] + s - n >= torch.arange(s), False, True),  # at the lower right
        (lambda n, s: torch.ones(n, s, dtype=torch.bool), False, False),
        (lambda n, s: torch.ones(s, s, dtype=torch.bool).tril()[-1:], False, False),
    ],
)
def test_between_two_lengths_the_alignment_counts(mask: Callable[[int, int], T], is_causal: bool, stays: bool) -> None:
    model, given = Cross(mask).eval(), (torch.randn(2, 6, 16), torch.randn(2, 6, 16))
    captured = utc.capture(model, given, {"x": {0: "B", 1: "N"}, "y": {0: "B", 1: "S"}})
    (call,) = calls(captured)
    assert (call["attn_mask"] is not None, call["is_causal"]) == (stays, is_causal)
    for n, s in [(3, 5), (5, 3), (1, 4), (40, 2), (70, 71)]:
        given = torch.randn(3, n, 16), torch.randn(3, s, 16)
        # a query that sees no key has no value
        assert torch.equal(model(*given).nan_to_num(), captured(*given).nan_to_num())


# --- grouped queries ----------------------------------------------------------------------------------------------------


def repeat(t: T) -> T:
    b, g, n, d = t.shape
    return t[:, :, None].expand(b, g, 2, n, d).reshape(b, 2 * g, n, d)


def heads_first(t: T) -> T:
    return t.transpose(1, 2)


GROUPED: dict[str, Callable[[T], T]] = {
    "expanded": lambda t: repeat(heads_first(t)),
    "unsqueezed": lambda t: heads_first(t).unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "repeated one by one": lambda t: heads_first(t).repeat_interleave(2, dim=1),
    "repeated before heads come first": lambda t: heads_first(torch.repeat_interleave(t, 2, dim=2)),
    "expanded before heads come first": lambda t: heads_first(
        t[:, :, :, None, :].expand(*t.shape[:3], 2, t.shape[3]).reshape(*t.shape[:2], -1, t.shape[3])
    ).contiguous(),
    "stacked copies": lambda t: heads_first(t).unsqueeze(2).repeat(1, 1, 2, 1, 1).reshape(len(t), 4, -1, t.shape[-1]),
}
UNGROUPED: dict[str, Callable[[T], T]] = {
    "tiled": lambda t: heads_first(t)[:, None].expand(-1, 2, -1, -1, -1).flatten(1, 2),
    "tiled by repeat": lambda t: heads_first(t).repeat(1, 2, 1, 1),
    "computed": lambda t: repeat(heads_first(t)) * 2,
    "changed in place": lambda t: changed(repeat(heads_first(t))),
    "not copied": lambda t: heads_first(t)[:, :1].expand(-1, 4, -1, -1),
}


def changed(t: T) -> T:
    t[:, 0] = t[:, 1]
    return t


class Grouped(nn.Module):
    """Two heads of keys for four of queries."""

    def __init__(self, repeated: Callable[[T], T], causal: bool = True, width: int = 4, values: int = 4) -> None:
        super().__init__()
        self.repeated, self.causal = repeated, causal
        self.q, self.k, self.v = nn.Linear(16, 4 * width), nn.Linear(16, 2 * width), nn.Linear(16, 2 * values)

    def forward(self, x: T) -> T:
        q = self.q(x).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (self.repeated(layer(x).unflatten(-1, (2, -1))) for layer in (self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("what", GROUPED)
def test_keys_that_are_repeated_per_head_are_shared(what: str, causal: bool) -> None:
    model = Grouped(GROUPED[what], causal).eval()
    captured = utc.capture(model, X, LENGTHS, verify="full")
    assert calls(captured) == [{"attn_mask": None, "is_causal": causal, "enable_gqa": True}]
    assert not [n for n in captured.graph.nodes if str(n.target) in ("expand", "repeat_interleave", "repeat")]
    equal_beyond(model, captured)


@pytest.mark.parametrize("what", UNGROUPED)
def test_keys_that_are_repeated_otherwise_stay(what: str) -> None:
    model = Grouped(UNGROUPED[what]).eval()
    captured = utc.capture(model, X, LENGTHS)
    assert [c["enable_gqa"] for c in calls(captured)] == [False]
    equal_beyond(model, captured)


def test_heads_that_no_fused_kernel_shares_stay_repeated() -> None:
    """As transformers has it: a mask, heads wider than 256, keys and values of different widths."""

    def masked(q: T, k: T, v: T) -> T:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(x_of(q) > 0))

    def x_of(q: T) -> T:
        return q @ q.mT

    class Masked(Grouped):
        def forward(self, x: T) -> T:
            q = self.q(x).unflatten(-1, (4, -1)).transpose(1, 2)
            return masked(q, *(self.repeated(layer(x).unflatten(-1, (2, -1))) for layer in (self.k, self.v)))

    for model in (Masked(GROUPED["expanded"]), Grouped(GROUPED["expanded"], width=264, values=264),
                  Grouped(GROUPED["expanded"], values=8)):  # fmt: skip
        assert [c["enable_gqa"] for c in calls(utc.capture(model.eval(), X, LENGTHS))] == [False]


# --- real models --------------------------------------------------------------------------------------------------------


class Calls(TorchFunctionMode):
    """Writes down what attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask, key = kwargs.get("attn_mask"), args[1]
            shape = None if mask is None else tuple(mask.shape)
            self.seen.append((shape, kwargs.get("is_causal"), kwargs.get("enable_gqa", False), tuple(key.shape)))
        return func(*args, **kwargs)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
DECODER = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "use_cache": False}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1}
OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48, "use_cache": False}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "ForCausalLM", DECODER),
    "llama with a cache": ("Llama", "ForCausalLM", {**DECODER, "use_cache": True}),
    "mistral": ("Mistral", "ForCausalLM", {**DECODER, "sliding_window": None}),
    "qwen2": ("Qwen2", "ForCausalLM", DECODER),
    "gpt2": ("GPT2", "LMHeadModel", {**GPT2, "use_cache": False}),
    "bert": ("Bert", "ForSequenceClassification", {**SMALL, "intermediate_size": 48}),
    "opt": ("OPT", "ForCausalLM", {**SMALL, **OPT}),
}


def made(kind: str, **more: Any) -> nn.Module:
    name, head, config = MODELS[kind]
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**{**config, **more}))
    return made.eval()


def ids(batch: int, length: int) -> dict[str, T]:
    return {"input_ids": torch.randint(2, 50, (batch, length), generator=torch.Generator().manual_seed(length))}


@pytest.mark.parametrize("kind", MODELS)
def test_language_models_call_attention_as_they_do_eagerly(kind: str) -> None:
    model = made(kind)
    captured = utc.capture(model, ids(2, 12))
    for batch, length in [(2, 12), (1, 7), (7, 31), (3, 40)]:
        seen = []
        for m in (model, captured):
            with Calls() as mode, torch.no_grad():
                seen.append((m(**ids(batch, length)).logits, mode.seen))
        assert torch.equal(seen[0][0], seen[1][0]) and seen[0][1] == seen[1][1] and len(seen[0][1]) == 2
    try:  # one token is equal too, or a guard says that Python decides by it
        found = captured(**ids(1, 1)).logits
    except utc.UtcError as refused:
        assert "L=1" in refused.what
    else:
        assert torch.equal(model(**ids(1, 1)).logits, found)


def test_masks_and_repeated_keys_leave_nothing_behind() -> None:
    """34 nodes made Llama's mask, and 6 in each layer repeated its keys and values."""
    captured = utc.capture(made("llama"), ids(2, 12), verify="shapes")
    left = [str(n.target) for n in captured.graph.nodes if n.op == "call_method" or n.op == "call_function"]
    assert not {"expand", "cumsum", "new_ones", "le", "ne"} & {*left}
    assert sum("arange" in name for name in left) == 1  # the positions


@pytest.mark.parametrize("window", [8, 4096])
def test_a_sliding_window_stays_a_mask(window: int) -> None:
    """Mistral's window hides nothing up to its width, and something beyond it."""
    model = made("mistral", sliding_window=window)
    captured = utc.capture(model, ids(2, 6))
    assert all(c["attn_mask"] is not None and not c["enable_gqa"] for c in calls(captured))
    with torch.no_grad():
        for batch, length in [(1, 2), (1, 7), (3, 40)]:
            assert torch.equal(model(**ids(batch, length)).logits, captured(**ids(batch, length)).logits)
    pinned = utc.capture(model, ids(2, 6), dynamic={})
    assert [c["is_causal"] for c in calls(pinned)] == [True, True]


def test_a_padding_mask_stays() -> None:
    for kind in ("bert", "llama"):
        model, given = made(kind), {**ids(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
        given["attention_mask"][1, 9:] = 0
        captured = utc.capture(model, given)
        assert all(c["attn_mask"] is not None and not c["is_causal"] for c in calls(captured))
        with torch.no_grad():
            longer = {**ids(3, 20), "attention_mask": torch.ones(3, 20, dtype=torch.long)}
            assert torch.equal(model(**longer).logits, captured(**longer).logits)

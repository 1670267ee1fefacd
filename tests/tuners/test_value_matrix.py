"""Every family on values, in every layout: the start, the gradients, a falling loss, a checkpoint, the fold, ONNX.

What is refused stands in `REFUSED` with its reason, so a new refusal is a failure. A slice of the matrix runs always,
all of it in `make test-full`. `test_tokens.py` has the learned tokens, `test_weight_matrix.py` the weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.layout_toys import LAYOUTS
from torch import nn

import utcompile as utc

# what is inserted, the tuner, and what folding makes of it where a plain layer stands beside it
FAMILIES = {
    "adapter": ("parallel: x -> y", "kind: adapter, dim: 3, scale: channel", "kept"),
    "adapter in sequence": ("sequential: y", "kind: adapter, dim: 3, scale: input", "kept"),
    "convpass": ("parallel: x -> y", "kind: conv_adapter, dim: 4", "kept"),
    "mona": ("sequential: y", "kind: conv_adapter, dim: 4, layers: [mix_norm, down, mona, gelu, up]", "kept"),
    "prefix": ("parallel: x -> y", "kind: prefix, length: 3, scale: channel", "kept"),
    "prompt": ("parallel: x -> y", "kind: prompt, length: 3, scale: scalar", "kept"),
    "ssf": ("sequential: y", "kind: ssf", "absorbed"),
    "ia3": ("sequential: y", "kind: ia3", "absorbed"),
    "rep_adapter": ("parallel: x -> y", "kind: rep_adapter, dim: 4", "absorbed"),
    "rep_adapter in sequence": ("sequential: y", "kind: rep_adapter, dim: 4", "absorbed"),
    "bypass": ("chain: y -> y, from: x", "kind: bypass, dim: 3, scale: channel, learn_gate: true", "kept"),
    "ladder": ("chain: y -> y, from: x", "kind: ladder, width: 4", "kept"),
}
NO_MAP, NO_GRID = "a conv_adapter reads feature maps, or tokens of a fixed number", r"the grid of '\w' .* is unknown"
KEEPS_SHAPE = "attention to learned tokens keeps the shape of its queries"
REFUSED = {
    **{(f, t): NO_MAP for f in ("convpass", "mona") for t in ("signal", "volume", "vector")},
    **{(f, "windows"): NO_GRID for f in ("convpass", "mona")},
    **{(f, t): KEEPS_SHAPE for f in ("prefix", "prompt") for t in ("NCHW strided", "NHWC", "NCHW to NHWC")},
    ("rep_adapter", "NCHW strided"): r"the tuner yields \[2, 6, 4, 4\] where \[2, 6, 2, 2\] is needed",
    ("rep_adapter", "NCHW to NHWC"): "both must be the last, or both axis 1",
}
# a linear tuner that no layer can take: a norm scales channels and does not mix them
KEPT = {("rep_adapter", "norm"): "is read in 2 places"}
CELLS = [(f, t) for f in FAMILIES for t in LAYOUTS if (f, t) not in REFUSED]
ALWAYS = {  # each family and each layout once or twice
    ("adapter", "NCHW strided"), ("adapter", "NCHW to NHWC"), ("adapter", "windows"), ("adapter in sequence", "volume"),
    ("convpass", "class token"), ("mona", "tokens"), ("prefix", "signal"), ("prompt", "NHWC same"), ("ssf", "NHWC"),
    ("ia3", "norm"), ("rep_adapter", "vector"), ("rep_adapter in sequence", "NCHW"), ("bypass", "windows"),
    ("ladder", "class token"),
}  # fmt: skip


def some(cells: list[tuple[str, str]]) -> list[object]:
    return [pytest.param(*c, id="-".join(c), marks=() if c in ALWAYS else pytest.mark.full) for c in cells]


def rules(family: str, more: str = "") -> str:
    insert, tuner, _ = FAMILIES[family]
    return f"version: 1\nname: t\nrules:\n  - name: v\n    match: {{module: layer}}\n    insert: {{{insert}, tuner: {{{tuner}{more}}}}}\n"


def made(family: str, layout: str, more: str = "") -> tuple[nn.Module, utc.TunedModule, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = LAYOUTS[layout]
    # frozen: torch sums a linear of a permuted value in another order where its weight wants a gradient
    model, x = build().eval().requires_grad_(False), torch.randn(shape)
    return model, utc.compile(model, rules(family, more), (x,)), x  # proves the identity at the start, where declared


def shake(tuned: nn.Module) -> None:
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("family", "layout"), some(CELLS))
def test_a_family_in_a_layout(family: str, layout: str, tmp_path: Path) -> None:
    model, tuned, x = made(family, layout)
    (site,) = tuned.sites
    with torch.no_grad():
        base = model(x)
        assert torch.equal(tuned.eval()(x), base) == tuned.tuner(site.id).identity_at_start
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for n, _ in tuned.named_parameters() if n.startswith("tuners.")}
    frozen = {n: p.clone() for n, p in tuned.named_parameters() if n not in trained}
    wanted, optimizer = base + torch.randn_like(base), torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    losses, moved = [], set()
    tuned.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss = (tuned(x) - wanted).square().mean()
        loss.backward()
        if len(losses) < 2:
            assert all(p.grad is None or p.grad.isfinite().all() for p in trained.values())
            moved |= {n for n, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and moved == trained.keys()
    assert all(torch.equal(p, frozen[n]) and p.grad is None for n, p in tuned.named_parameters() if n in frozen)

    shake(tuned)
    tuned.eval()
    utc.save_tuners(tuned, tmp_path)
    other = utc.load_tuners(made(family, layout)[1], tmp_path).eval()
    with torch.no_grad():
        expected = tuned(x)
        assert torch.equal(other(x), expected) and torch.equal(copy.deepcopy(tuned)(x), expected)
        more = torch.cat((x, torch.randn_like(x), x))
        torch.testing.assert_close(tuned(more)[: len(x)], expected, rtol=1e-4, atol=1e-5)
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), base)

    tuned.double()
    folded, report = utc.fold(tuned)
    reason = KEPT.get((family, layout))
    assert report.sites[0].status == ("kept" if reason else FAMILIES[family][2])
    assert (reason or "") in report.sites[0].reason
    with torch.no_grad():
        assert error(folded(x.double()), tuned(x.double())) < 1e-12
        assert error(folded(x.double()), base.double()) > 1e-3  # and the tuner matters


@pytest.mark.parametrize(("family", "layout"), list(REFUSED))
def test_what_does_not_fit_says_why(family: str, layout: str) -> None:
    with pytest.raises(utc.UtcError) as caught:
        made(family, layout)
    caught.match(REFUSED[family, layout])
    caught.match("rule 'v' at .* in layer")


@pytest.mark.parametrize("family", ["convpass", "mona"])
def test_the_grid_of_windows_may_be_stated(family: str) -> None:
    _, tuned, x = made(family, "windows", ", grid: [2, 2]")
    shake(tuned)
    assert tuned(x).isfinite().all()


@pytest.mark.full
@pytest.mark.parametrize(("family", "layout"), sorted(ALWAYS | {("adapter", t) for t in LAYOUTS}))
def test_onnx_equals_torch(family: str, layout: str, tmp_path: Path) -> None:
    _, tuned, x = made(family, layout)
    shake(tuned)
    for name, module in (("tuned", tuned.eval()), ("folded", utc.fold(tuned)[0])):
        assert utc.export_onnx(module, tmp_path / f"{name}.onnx", (x,)).max_error < 1e-4

"""Every weight family on every kind of operation: the start, the gradients, a step, a checkpoint, the fold, ONNX.

What does not apply says why. A slice of the matrix runs always, all of it in `make test-full`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import own_tuners
from support.weight_toys import TOYS, Toy
from torch import nn

import utcompile as utc

FAMILIES = {
    "lora": "kind: lora, r: 2, alpha: 3",
    "dora": "kind: dora, r: 2, rslora: true",
    "ssf": "kind: ssf",
    "ia3": "kind: ia3",
    "bias": "kind: bias",
    "norm_affine": "kind: norm_affine",
    "vera": "kind: vera, r: 3, d: 1.0",
    "oft": "kind: oft, block: 9",
}
APPLIES = [(f, t) for f in FAMILIES for t, toy in TOYS.items() if f not in toy.lacks]
REFUSED = [(f, t) for f in FAMILIES for t, toy in TOYS.items() if f in toy.lacks]
# one of each family, and one of each way in which an operation is rewritten
ALWAYS = {
    ("lora", "linear"), ("lora", "conv2d strided"), ("lora", "transposed"), ("lora", "embedding"), ("lora", "experts"),
    ("lora", "lstm"), ("lora", "borrowed slice"), ("dora", "reflect"), ("dora", "gru"), ("ssf", "batch norm"),
    ("ssf", "transposed grouped"), ("ia3", "matmul"), ("bias", "F.linear"), ("norm_affine", "group norm"),
    ("lora", "parameter"), ("lora", "standardised"), ("vera", "transposed grouped"), ("oft", "depthwise"),
    ("lora", "lstm cell"), ("bias", "gru cell"), ("lora", "gru with a state"),
}  # fmt: skip


def some(cases: list[tuple[str, str]]) -> list[object]:
    return [pytest.param(*c, id="-".join(c), marks=() if c in ALWAYS else pytest.mark.full) for c in cases]


def rules(family: str, toy: Toy, more: str = "") -> str:
    return (
        f"version: 1\nname: t\nrules:\n  - name: w\n    match: {toy.match}\n"
        f"    insert: {{weight: h, tuner: {{{FAMILIES[family]}{more}}}}}\n"
    )


def tuned_of(family: str, toy: Toy, more: str = "") -> tuple[nn.Module, utc.TunedModule, torch.Tensor]:
    torch.manual_seed(0)
    # frozen: torch takes another kernel for a GRU whose weights want gradients, which differs in the last bit
    model, x = toy.make().eval().requires_grad_(False), toy.given()
    return model, utc.compile(model, rules(family, toy, more), (x,)), x  # proves the identity at the start, bit for bit


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with own_tuners.registered():
        yield


@pytest.fixture(autouse=True)
def _no_fast_path() -> Iterator[None]:
    """The fast path of `nn.MultiheadAttention` is another kernel, and skips what is inserted: equality is against this."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def shake(tuned: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p.dtype))


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("family", "toy"), some(APPLIES))
def test_a_family_on_an_operation(family: str, toy: str, tmp_path: Path) -> None:
    model, tuned, x = tuned_of(family, TOYS[toy])
    assert {s.how for s in tuned.sites} <= {"branch", "reparametrised"}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = {n: p.clone() for n, p in tuned.named_parameters() if not n.startswith("tuners.")}
    with torch.no_grad():
        wanted = model(x) + torch.randn_like(model(x))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses, moved = [], set()
    for _ in range(4):
        optimizer.zero_grad()
        loss = (tuned(x) - wanted).square().mean()
        loss.backward()
        moved |= {n for n, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert all(p.grad is None or p.grad.isfinite().all() for p in tuned.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trainable = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert moved == trainable == {n for n, _ in tuned.named_parameters() if n.startswith("tuners.")}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p, tuned.get_parameter(n)) for n, p in frozen.items())

    shake(tuned)
    tuned.eval()
    with torch.no_grad(), utc.disable_tuners(tuned):
        assert torch.equal(tuned(x), model(x))
    utc.save_tuners(tuned, tmp_path)
    other = utc.load_tuners(utc.compile(model, rules(family, TOYS[toy]), (x,)), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(other(x), tuned(x))
        for same in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
            assert torch.equal(same(x), tuned(x))

    tuned.double()
    y = x.double() if x.is_floating_point() else x
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"absorbed"} and max(s.max_error for s in report.sites) < 1e-12
    with torch.no_grad():
        assert error(folded(y), tuned(y)) < 1e-12
        assert error(folded(y), model.double()(y)) > 1e-3  # and the tuner matters
    captured = utc.capture(model, (y,))
    assert [(n.op, str(n.target)) for n in folded.graph.nodes if n.op != "get_attr"] == [
        (n.op, str(n.target)) for n in captured.graph.nodes if n.op != "get_attr"
    ]


@pytest.mark.parametrize(("family", "toy"), some(REFUSED))
def test_what_does_not_apply_says_why(family: str, toy: str) -> None:
    with pytest.raises(utc.UtcError, match=TOYS[toy].lacks[family]):
        tuned_of(family, TOYS[toy])


# of a padded embedding B's row of the padding stays zero in training, and `shake` moves it
FORMS = [t for f, t in APPLIES if f == "lora" and t != "embedding padded"]


@pytest.mark.parametrize(("family", "toy"), some([("lora", t) for t in FORMS]))
def test_both_forms_compute_the_same_and_give_the_same_gradients(family: str, toy: str) -> None:
    made = {}
    for how in ("branch", "reparametrised"):
        try:
            _, tuned, x = tuned_of(family, TOYS[toy], f", how: {how}")
        except utc.UtcError as refused:
            assert how == "branch" and "LoRA has no branch here" in refused.what
            continue
        assert {s.how for s in tuned.sites} == {how}
        shake(tuned.double())
        x = x.double() if x.is_floating_point() else x
        leaf = x.clone().requires_grad_() if x.is_floating_point() else x
        tuned(leaf).square().sum().backward()
        made[how] = [tuned(x).detach(), *(p.grad for p in tuned.parameters() if p.requires_grad)]
        if leaf.is_floating_point():
            made[how].append(leaf.grad)
    if len(made) == 2:
        for a, b in zip(*made.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.full
@pytest.mark.parametrize(("family", "toy"), [pytest.param(*c, id="-".join(c)) for c in APPLIES])
def test_onnx_equals_torch(family: str, toy: str, tmp_path: Path) -> None:
    _, tuned, x = tuned_of(family, TOYS[toy])
    shake(tuned)
    assert utc.export_onnx(utc.fold(tuned.eval())[0], tmp_path / "folded.onnx", (x,)).max_error < 1e-4
    if family == "oft":
        with pytest.raises(utc.UtcError, match="linalg_solve"):
            utc.export_onnx(tuned, tmp_path / "tuned.onnx", (x,))
    else:
        assert utc.export_onnx(tuned, tmp_path / "tuned.onnx", (x,)).max_error < 1e-4


@pytest.mark.parametrize(
    ("family", "toy"),
    [
        pytest.param(*c, id="-".join(c), marks=() if c == ("dora", "reflect") else pytest.mark.full)
        for c in APPLIES
        if c[1].split()[0] not in ("lstm", "gru")
        or "cell" in c[1]  # Dynamo supports no recurrent layer, the frozen one neither
    ],
)
def test_a_whole_graph_compiles(family: str, toy: str) -> None:
    _, tuned, x = tuned_of(family, TOYS[toy])
    shake(tuned)
    compiled = torch.compile(copy.deepcopy(tuned), backend="aot_eager", fullgraph=True)
    found, expected = compiled(x), tuned(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    mine = {n.removeprefix("_orig_mod."): p.grad for n, p in compiled.named_parameters() if p.requires_grad}
    for name, p in tuned.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(mine[name], p.grad, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()

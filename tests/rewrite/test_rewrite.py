"""Insertion, freezing, switching off, checkpoints."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc

RULES = {
    "resnet": "convnet/residual_parallel", "convnext": "u_tuning/dual_foldable", "efficientnet": "convnet/inverted_residual_foldable",
    "mixer": "lora/all_linear", "vit": "u_tuning/tri", "swin": "u_tuning/dual",
}  # fmt: skip


def tuned_of(kind: str) -> tuple[nn.Module, utc.TunedModule, torch.Tensor]:
    return zoo.compiled(kind, RULES[kind])


def digest(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {k: hashlib.sha256(v.detach().numpy().tobytes()).hexdigest() for k, v in tensors.items()}


@pytest.mark.parametrize("kind", RULES)
def test_identity_gradients_and_frozen_bits(kind: str) -> None:
    model, tuned, x = tuned_of(kind)
    with torch.no_grad():
        assert torch.equal(tuned(x), model(x))
    trainable = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert trainable == {n for n in dict(tuned.named_parameters()) if n.startswith("tuners.") or n in tuned.trained}
    before = digest(model.state_dict())
    frozen = {k: v for k, v in tuned.state_dict().items() if k not in trainable}
    frozen_before = digest(frozen)
    start = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    losses, labels = [], torch.arange(2)
    tuned.train()
    for _ in range(6):
        loss = nn.functional.cross_entropy(tuned(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for n, p in tuned.named_parameters() if n not in trainable)
    assert digest(model.state_dict()) == before
    assert digest({k: tuned.state_dict()[k] for k in frozen}) == frozen_before
    still = [n for n, p in tuned.named_parameters() if p.requires_grad and torch.equal(p, start[n])]
    assert not still, f"never moved: {still}"


@pytest.mark.parametrize("kind", RULES)
def test_disable_tuners_is_the_base_again(kind: str) -> None:
    model, tuned, x = tuned_of(kind)
    zoo.shake(tuned, 0.1)
    tuned.eval()
    with torch.no_grad():
        changed = tuned(x)
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), model(x))
        assert torch.equal(tuned(x), changed) and not torch.equal(changed, model(x))
    assert all(p.requires_grad for n, p in tuned.named_parameters() if n in tuned.trained)


def test_disable_tuners_ends_with_an_error_too() -> None:
    _, tuned, x = tuned_of("vit")
    zoo.shake(tuned)
    changed = tuned.eval()(x)
    with pytest.raises(KeyError), utc.disable_tuners(tuned):
        raise KeyError
    assert torch.equal(tuned(x), changed)


@pytest.mark.parametrize(
    "kind", ["resnet", *(pytest.param(k, marks=pytest.mark.full) for k in ("vit", "efficientnet"))]
)
def test_copies_pickles_and_compiles(kind: str) -> None:
    model, tuned, x = tuned_of(kind)
    zoo.shake(tuned)
    tuned.eval()
    for other in (
        copy.deepcopy(tuned),
        pickle.loads(pickle.dumps(tuned)),
        torch.compile(tuned, backend="eager", fullgraph=True),
    ):
        with torch.no_grad():
            torch.testing.assert_close(other(x), tuned(x), rtol=1e-5, atol=1e-6)
        with torch.no_grad(), utc.disable_tuners(copy.deepcopy(tuned)) as base:
            assert torch.equal(base(x), model(x))


def test_compiling_twice_gives_the_same_graph() -> None:
    model, x = zoo.make("vit")
    captured = utc.capture(model, x)
    graphs = [str(utc.match(captured, "u_tuning/tri").apply().graph) for _ in range(2)]
    assert graphs[0] == graphs[1] == str(utc.compile(model, "u_tuning/tri", x).graph)


def test_several_tuners_on_one_value_add_up_and_read_the_changed_stream() -> None:
    model, tuned, x = zoo.compiled("vit", "u_tuning/tri")
    zoo.shake(tuned, 0.05)
    tuned.eval()
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        tuned.get_submodule(s.name).register_forward_hook(
            lambda m, a, o, i=s.id: seen.update({f"in {i}": a[0], f"out {i}": o})
        )
        for s in tuned.sites
    ]
    with torch.no_grad():
        tuned(x)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["in mha/blocks.1/0"], seen["in block/blocks.1/0"])  # both read the stream after block 0
    h = seen["in ffn/blocks.0/0"]
    ffn = model.blocks[0].mlp(model.blocks[0].norm2(h))
    y = h + (ffn + seen["out ffn/blocks.0/0"]) + seen["out block/blocks.0/0"]
    torch.testing.assert_close(seen["in mha/blocks.1/0"], y)


ORDER = """
version: 1
name: t
rules:
  - name: a
    match: {op: linear}
    insert: {sequential: h, tuner: {kind: adapter, dim: 2}}
  - name: b
    match: {op: linear}
    insert: {sequential: h, tuner: {kind: adapter, dim: 2}}
"""


def test_sequential_tuners_compose_in_file_order() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    tuned = utc.compile(model, ORDER, (x,))
    zoo.shake(tuned, 1.0)
    expected = torch.relu(tuned.tuner("b/0/0")(tuned.tuner("a/0/0")(model[0](x))))
    torch.testing.assert_close(tuned(x), expected)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.encoder(x)
        return self.decoder(torch.cat([torch.relu(skip), skip], 1))


def test_sequential_for_one_reader_leaves_the_others() -> None:
    rules = """
version: 1
name: scedit
rules:
  - name: skip
    match: |
      s = conv(x)
      r = relu(s)
      j = cat(r, s)
    insert: {sequential: s, for: j, tuner: {kind: adapter, dim: 2}}
"""
    model, x = Skip().eval(), torch.randn(2, 3, 5, 5)
    tuned = utc.compile(model, rules, (x,))
    zoo.shake(tuned, 1.0)
    skip = model.encoder(x)
    expected = model.decoder(torch.cat([torch.relu(skip), tuned.tuner(tuned.sites[0].id)(skip)], 1))
    torch.testing.assert_close(tuned(x), expected)


CYCLE = """
version: 1
name: t
rules:
  - name: a
    match: |
      p = relu(x)
      q = tanh(x)
      y = add(p, q)
    insert: {parallel: p -> q, tuner: {kind: adapter}}
  - name: b
    match: |
      p = relu(x)
      q = tanh(x)
      y = add(p, q)
    insert: {parallel: q -> p, tuner: {kind: adapter}}
"""


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        return torch.relu(h) + torch.tanh(h)


def test_tuners_that_read_what_the_other_changes_are_refused() -> None:
    with pytest.raises(utc.UtcError, match="reads what it changes, by way of another tuner"):
        utc.compile(Two(), CYCLE, (torch.randn(2, 4),))
    one_way = CYCLE.split("  - name: b")[0]
    tuned = utc.compile(Two(), one_way, (torch.randn(2, 4),))
    assert torch.equal(tuned(torch.ones(2, 4)), tuned(torch.ones(2, 4)))


def test_a_tuner_that_claims_identity_and_is_not_is_caught() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    rules = ORDER.split("  - name: b")[0].replace("dim: 2", "dim: 2, init: xavier")
    utc.compile(model, rules, (x,))  # declares that it is none
    from utcompile.tuners import Adapter

    original = Adapter._initialise
    try:
        Adapter._initialise = lambda self, init: nn.init.ones_(self.up.weight)  # type: ignore[method-assign,assignment]
        with pytest.raises(utc.UtcError, match="a tuner that declares itself the identity at the start is not"):
            utc.compile(model, ORDER, (x,))
    finally:
        Adapter._initialise = original  # type: ignore[method-assign]


class TwoGrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_reparametrised_operations_that_read_one_another() -> None:
    model, x = TwoGrouped().eval(), torch.randn(2, 4, 5, 5)
    tuned = utc.compile(
        model,
        "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: conv}\n    insert: {weight: h, tuner: {kind: lora, r: 2}}\n",
        x,
    )
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned, strict=True)
    assert len(report.sites) == 2
    torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-4, atol=1e-5)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_tuners_and_trained_parts_alone_and_loads(tmp_path: Path) -> None:
    model, tuned, x = tuned_of("vit")
    zoo.shake(tuned)
    utc.save_tuners(tuned, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["manifest.json", "tuners.safetensors"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    count = sum(torch.Size(t["shape"]).numel() for t in manifest["tensors"].values())
    assert count == tuned.trainable_parameters()[0]
    other = utc.compile(model, RULES["vit"], x)
    assert not torch.equal(other.eval()(x), tuned.eval()(x))
    assert torch.equal(utc.load_tuners(other, tmp_path / "run")(x), tuned(x))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "there is no checkpoint here"),
        (lambda f: (f / "manifest.json").write_text("{"), "the manifest is no JSON"),
        (lambda f: (f / "manifest.json").write_text("{}"), "no manifest of utcompile"),
        (lambda f: (f / "tuners.safetensors").write_bytes(b"nonsense"), "tensors cannot be read"),
        (lambda f: (f / "tuners.safetensors").unlink(), "tensors cannot be read"),
    ],
)
def test_broken_checkpoints(tmp_path: Path, spoil: object, message: str) -> None:
    _, tuned, x = tuned_of("mixer")
    utc.save_tuners(tuned, tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    zoo.shake(tuned)
    before = tuned(x)
    with pytest.raises(utc.UtcError, match=message):
        utc.load_tuners(tuned, tmp_path)
    assert torch.equal(tuned(x), before)


def test_another_base_other_rules_other_shapes(tmp_path: Path) -> None:
    model, tuned, x = tuned_of("mixer")
    utc.save_tuners(tuned, tmp_path)
    original = next(model.parameters()).detach().clone()
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(utc.UtcError, match="trained on another base"):
        utc.load_tuners(utc.compile(model, RULES["mixer"], x), tmp_path)
    with torch.no_grad():
        next(model.parameters()).copy_(original)
    with pytest.raises(utc.UtcError, match=r"r is 8 in the checkpoint, 3 here"):
        utc.load_tuners(utc.compile(model, RULES["mixer"], x, vars={"r": 3}), tmp_path)
    with pytest.raises(utc.UtcError, match="the checkpoint's sites are not this model's"):
        utc.load_tuners(utc.compile(model, "u_tuning/single_ffn", x), tmp_path)


def test_saving_fails_whole(tmp_path: Path) -> None:
    _, tuned, _ = tuned_of("mixer")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(utc.UtcError, match="a checkpoint is a folder, and this is a file"):
        utc.save_tuners(tuned, tmp_path / "file")
    with pytest.raises(utc.UtcError, match="extra must be a mapping"):
        utc.save_tuners(tuned, tmp_path / "run", extra=3)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_rules_that_all_find_nothing_are_an_error_though_each_is_optional() -> None:
    model, x = zoo.make("resnet")
    with pytest.raises(utc.UtcError) as caught:
        utc.compile(model, "lora/qv", x)
    assert caught.value.what == "none of the rules matches"
    assert str(caught.value.why).startswith("all of them are optional: packed, query, value; the model has no sdpa")
    assert caught.value.fix == "`print(plan.explain())` or `utcompile explain` shows the nearest misses of each"

"""The two tuners of `examples/`: registered from outside, and in all else like the package's own."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from support import own_tuners
from torch import nn

import utcompile as utc

TUNERS = {"vera": "kind: vera, r: 6", "oft": "kind: oft, block: 6"}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with own_tuners.registered():
        yield


def rules(name: str, more: str = "", match: str = "{op: linear | conv}\n    except: head") -> str:
    return f"version: 1\nname: t\nrules:\n  - name: w\n    match: {match}\n    insert: {{weight: h, tuner: {{{TUNERS[name]}{more}}}}}\n"


@pytest.mark.parametrize("name", TUNERS)
def test_an_example_is_one_short_file(name: str) -> None:
    assert len((own_tuners.EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("vera", "vit", marks=pytest.mark.full),  # its formula and its sharing are tested below
        ("oft", "resnet"),
        pytest.param("vera", "resnet", marks=pytest.mark.full),
        pytest.param("oft", "vit", marks=pytest.mark.full),
    ],
)
def test_on_real_models(name: str, kind: str, tmp_path: Path) -> None:
    """The start, gradients, frozen bits, a falling loss, a checkpoint, copies, the fold and ONNX."""
    model, x = zoo.make(kind)
    tuned = utc.compile(model, rules(name), x)  # proves the identity at the start, bit for bit
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for n, _ in tuned.named_parameters() if n.startswith("tuners.")}
    frozen = {n: t.clone() for n, t in [*tuned.named_parameters(), *tuned.named_buffers()] if n not in trained}
    optimizer, losses, moved = torch.optim.AdamW(trained.values(), lr=1e-2), [], set()
    for _ in range(4):
        loss = F.cross_entropy(tuned(x), torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        if len(losses) < 2:
            assert all(p.grad is None or p.grad.isfinite().all() for p in trained.values())
            moved |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(loss.item())
    assert moved == trained.keys() and losses[-1] < losses[0]
    now = dict([*tuned.named_parameters(), *tuned.named_buffers()])
    assert all(torch.equal(t, now[n]) for n, t in frozen.items())

    utc.save_tuners(tuned, tmp_path)
    other = utc.load_tuners(utc.compile(model, rules(name), x), tmp_path).eval()
    tuned.eval()
    with torch.no_grad():
        for same in (other, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
            assert torch.equal(same(x), tuned(x))
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), model(x))
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"absorbed"} and max(s.max_error for s in report.sites) < 1e-12
    assert utc.export_onnx(folded, tmp_path / "m.onnx", x).max_error < 1e-3  # proven in ONNX Runtime


def test_vera_is_its_formula_and_its_matrices_are_shared(tmp_path: Path) -> None:
    model, x = zoo.make("vit")
    tuned = utc.compile(model, rules("vera"), x)
    zoo.shake(tuned, 0.3)
    tuner = tuned.tuner("w/blocks.0.mlp.fc1/0")
    weight = model.blocks[0].mlp.fc1.weight  # type: ignore[index,union-attr]
    update = torch.diag(tuner.b) @ tuner.up.matrix @ torch.diag(tuner.d) @ tuner.down.matrix  # type: ignore[arg-type,union-attr,operator]
    torch.testing.assert_close(tuner.changed(weight), weight + update)
    width, hidden = weight.shape[1], weight.shape[0]
    shapes = {(6, width), (6, hidden), (6, 3 * 16 * 16), (3 * width, 6), (width, 6), (hidden, 6)}
    assert tuned.trainable_parameters()[0] == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    for same in (tuned, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), copy.deepcopy(tuned).double()):
        drawn = [b for n, b in same.named_buffers() if n.endswith("matrix")]
        assert {tuple(b.shape) for b in drawn} == shapes and len({b.data_ptr() for b in drawn}) == len(shapes)
    again = utc.match(utc.capture(model, x), rules("vera"))
    assert again.apply().tuner("w/blocks.0.mlp.fc1/0").up is not again.apply().tuner("w/blocks.0.mlp.fc1/0").up
    manifest = json.loads((utc.save_tuners(tuned, tmp_path) / "manifest.json").read_text())
    assert all(n.rpartition(":")[2] in ("b", "d") for n in manifest["tensors"])  # the seed is in the rules
    seeded = utc.compile(model, rules("vera", ", seed: 1"), x).tuner("w/blocks.0.mlp.fc1/0")
    assert not torch.equal(seeded.up.matrix, tuner.up.matrix)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("layer", "shape", "match"),
    [
        (nn.Linear(6, 5), (2, 6), "{op: linear}"),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), "{op: conv}"),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), (2, 6, 3, 3), "{op: conv_transpose}"),
    ],
)
def test_oft_turns_all_neurons_alike(layer: nn.Module, shape: tuple[int, ...], match: str) -> None:
    """R is orthogonal, so lengths of neurons and the angles between those of one group stay."""
    tuned = utc.compile(nn.Sequential(layer).eval(), rules("oft", match=match), torch.randn(shape)).double()
    zoo.shake(tuned, 0.5)
    tuner = tuned.tuner("w/0/0")
    rotation = tuner.rotation(torch.double)  # type: ignore[operator]
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(rotation.shape[-1], dtype=torch.double).expand_as(rotation)
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(rotation), dtype=torch.double))
    weight = layer.weight.detach().double()  # type: ignore[union-attr,operator]
    groups = getattr(layer, "groups", 1)
    angles = []
    for w in (weight, tuner.changed(weight).detach()):
        assert w.shape == weight.shape
        if isinstance(layer, nn.ConvTranspose2d):
            w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        w = w.flatten(1).unflatten(0, (groups, -1))
        angles.append(w @ w.mT)
    assert not torch.equal(tuner.changed(weight), weight)
    torch.testing.assert_close(*angles)


def test_what_does_not_fit_says_why() -> None:
    norm = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(utc.UtcError, match="VeRA needs a matrix"):
        utc.compile(norm, rules("vera", match="{op: norm}"), torch.randn(2, 4))
    with pytest.raises(utc.UtcError, match="neurons of 7 weights have no blocks of 2 to 6"):
        utc.compile(nn.Sequential(nn.Linear(7, 4)), rules("oft", match="{op: linear}"), torch.randn(2, 7))


def test_folding_leaves_modules_that_tuners_share_as_they_were() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    model, x = Net().eval(), torch.randn(2, 5, 4)
    tuned = utc.compile(model, rules("vera", match="{op: lstm}"), x)  # one matrix for several weights of one layer
    zoo.shake(tuned, 0.3)
    tuned.eval()
    before = {n: t.clone() for n, t in [*tuned.named_parameters(), *tuned.named_buffers()]}
    expected = tuned(x)
    utc.fold(tuned)
    assert all(torch.equal(t, before[n]) for n, t in [*tuned.named_parameters(), *tuned.named_buffers()])
    assert torch.equal(tuned(x), expected)

"""What Python decides by sizes, values and properties is an expression in the graph, or a guard that names its line."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import json
import pickle
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from support import guard_toys as toys
from torch import nn

import utcompile as utc
from utcompile.errors import GuardError
from utcompile.recording.expressions import Expression
from utcompile.recording.tracked import live

T = torch.Tensor
# beyond the example of 2 × 8, on both sides of every threshold; few share a factor
SIZES = [(1, 8), (2, 1), (2, 3), (3, 7), (7, 8), (2, 9), (2, 11), (1, 13), (17, 20), (5, 33)]


def ids(b: int, length: int) -> T:
    return torch.randint(0, 50, (b, length), generator=torch.Generator().manual_seed(b * 100 + length))


def outcomes(model: nn.Module, captured: nn.Module) -> list[str]:
    """For each size: equal, or refused by a guard; anything else fails."""
    found = []
    for size in SIZES:
        x = ids(*size)
        try:
            got = captured(x)
        except GuardError:
            found.append("refused")
            continue
        assert torch.equal(got, model(x)), f"wrong at {size}"
        found.append("equal")
    return found


ALL = ["equal"] * len(SIZES)
EXPRESSIONS = [toys.pad_to_eight, toys.pad_and_cut, toys.half, toys.clamped, toys.logs, toys.bits, toys.told]
GUARDED: dict[Callable[[T], T], tuple[str, Callable[[int, int], bool]]] = {
    toys.by_length: ("L <= 10", lambda b, n: n <= 10),
    toys.chunks: ("L <= 8", lambda b, n: n <= 8),
    toys.looped: ("steps(0, L // 4, 1) == 2", lambda b, n: n // 4 == 2),
}


@pytest.mark.parametrize("then", EXPRESSIONS, ids=lambda f: f.__name__)
def test_what_is_computed_from_sizes_is_right_at_every_size(then: Callable[[T], T]) -> None:
    model = toys.Tokens(then).eval()
    captured = utc.capture(model, ids(2, 8))
    assert captured.guards == () and captured.report.pinned == ()
    assert outcomes(model, captured) == ALL


@pytest.mark.parametrize("then", GUARDED, ids=lambda f: f.__name__)
def test_a_decision_by_a_size_is_a_guard_that_names_relation_and_line(then: Callable[[T], T]) -> None:
    relation, holds = GUARDED[then]
    model = toys.Tokens(then).eval()
    captured = utc.capture(model, ids(2, 8))
    (guard,) = captured.guards
    assert guard.relation == relation and str(guard).startswith(f"{relation} (guard_toys.py:")
    assert guard in captured.report.guards and f"guard: {guard}" in str(captured.report)
    assert outcomes(model, captured) == ["equal" if holds(*s) else "refused" for s in SIZES]


@pytest.mark.parametrize("then", [toys.rows, toys.even, toys.table, toys.named, toys.text, toys.array, toys.positions])
def test_what_cannot_be_followed_is_refused_and_never_wrong(then: Callable[[T], T]) -> None:
    model = toys.Tokens(then).eval()
    captured = utc.capture(model, ids(2, 8))
    x = ids(2, 8)
    assert torch.equal(captured(x), model(x))
    for size in SIZES:
        try:
            got = captured(ids(*size))
        except utc.UtcError as error:
            assert "guard_toys.py:" in str(error) or "shape" in str(error)
        else:
            assert torch.equal(got, model(ids(*size))), f"wrong at {size}"


def test_a_refusal_says_what_where_why_and_how_to_fix_it() -> None:
    captured = utc.capture(toys.Tokens(toys.by_length).eval(), ids(2, 8))
    with pytest.raises(utc.UtcError) as caught:
        captured(ids(3, 12))
    error = caught.value
    assert error.what == "this capture is right for L <= 10, and the call has L=12"
    assert error.where is not None and error.where.startswith("guard_toys.py:") and "by_length" in error.where
    assert error.why and error.fix == "capture it with an example that has this size of L"


def test_the_example_is_always_on_the_right_side() -> None:
    class Large(nn.Module):
        def forward(self, x: T) -> T:
            return x * 2 if x.shape[0] > 5 else x - 1

    x = torch.randn(6, 4)
    captured = utc.capture(Large().eval(), x)
    assert torch.equal(captured(x), x * 2) and [g.relation for g in captured.guards] == ["B >= 6"]
    with pytest.raises(GuardError, match="B >= 6"):
        captured(torch.randn(5, 4))


def test_answers_of_one_recording_belong_together() -> None:
    """Two thresholds were seen on both sides, but never both at once."""

    class Both(nn.Module):
        def forward(self, x: T, y: T) -> T:
            small, short = x.shape[0] <= 3, y.shape[0] <= 5
            return x.sum() + y.sum() if small or short else x.sum() - y.sum()

    sizes = {"x": {0: "N"}, "y": {0: "M"}}
    model = Both().eval()
    captured = utc.capture(model, (torch.randn(3, 2), torch.randn(4, 2)), dynamic=sizes)
    for n, m in ((3, 4), (7, 4), (3, 9), (7, 9), (4, 6), (1, 1), (30, 2)):
        x, y = torch.randn(n, 2), torch.randn(m, 2)
        with contextlib.suppress(GuardError):  # refused is right; another sum is not
            assert torch.equal(captured(x, y), model(x, y))
    with pytest.raises(GuardError):
        captured(torch.randn(7, 2), torch.randn(9, 2))


def test_decisions_that_leave_out_what_does_nothing_are_no_guards() -> None:
    class Expands(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.randn(1, 8))

        def forward(self, x: T) -> T:
            p = self.p
            if x.shape[0] != p.shape[0]:
                p = p.expand(x.shape[0], -1)
            return x * p

    model = Expands().eval()
    captured = utc.capture(model, torch.randn(2, 8))
    assert captured.guards == ()
    for b in (1, 2, 9):
        x = torch.randn(b, 8)
        assert torch.equal(captured(x), model(x))


def test_sizes_behind_strides_and_halves_are_read_off_their_tensors() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

        def forward(self, x: T) -> T:
            y = self.up(self.down(x))
            dh, dw = x.shape[2] - y.shape[2], x.shape[3] - y.shape[3]
            return x + nn.functional.pad(y, (0, dw, 0, dh))

    model = Skips().eval()
    captured = utc.capture(model, torch.randn(1, 3, 32, 32), dynamic={"x": {0: "B", 2: "H", 3: "W"}})
    assert captured.guards == ()
    for size in ((1, 32, 32), (2, 33, 35), (1, 64, 31), (3, 7, 90)):
        x = torch.randn(size[0], 3, *size[1:])
        assert torch.equal(captured(x), model(x))


def test_no_size_outlives_its_recording() -> None:
    toys.KEPT.clear()
    toys.SEEN.clear()
    toys.doubled.cache_clear()
    model = toys.Keeps().eval()
    captured = utc.capture(model, torch.randn(3, 4), verify="shapes")
    gc.collect()
    assert live() == [] and captured.guards == ()
    kept = [*toys.KEPT.values(), *toys.SEEN, toys.Keeps.last]
    assert all(type(v) in (int, torch.Size, tuple, type(None)) for v in kept)
    x = torch.randn(7, 4)
    assert torch.equal(captured(x), model(x))


def test_functions_with_a_cache_are_computed_anew() -> None:
    model = toys.Caches().eval()
    held = {name: value for name, value in vars(toys.Caches).items() if name in ("positions", "half", "third")}
    captured = utc.capture(model, torch.randn(3, 4), dynamic={"x": {0: "B", 1: "L"}}, verify="shapes")
    assert captured.guards == () and {n: vars(toys.Caches)[n] for n in held} == held
    for shape in ((1, 4), (7, 1), (5, 9)):
        x = torch.randn(shape)
        assert torch.equal(captured(x), model(x))


@pytest.mark.parametrize("cached", [False, True])
def test_a_cache_that_came_since_the_last_capture_is_bypassed_too(
    monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    model, x = toys.OfItsModule().eval(), torch.randn(4, 10)
    utc.capture(model, x, {"x": {0: "B", 1: "L"}})
    if cached:
        monkeypatch.setattr(toys, "quarter", functools.cache(toys.quarter))
    held = toys.quarter, toys.fifth
    captured = utc.capture(model, x, {"x": {0: "B", 1: "L"}})
    assert captured.guards == () and held == (toys.quarter, toys.fifth)
    for sizes in ((9, 3), (1, 31), (40, 5)):
        y = torch.randn(sizes)
        assert torch.equal(captured(y), model(y))


def test_decisions_that_change_nothing_at_a_size_of_1_are_no_guards() -> None:
    one, pooled = toys.OneQuery().eval(), toys.Pooled().eval()
    attention = utc.capture(one, torch.randn(2, 6, 4), dynamic={"x": {0: "B", 1: "L"}}, verify="shapes")
    positions = utc.capture(pooled, torch.randn(2, 3, 9), dynamic={"x": {0: "B", 2: "L"}}, verify="shapes")
    assert attention.guards == positions.guards == ()
    for length in (1, 2, 11):
        x, y = torch.randn(1, length, 4), torch.randn(1, 3, length)
        torch.testing.assert_close(attention(x), one(x))
        assert torch.equal(positions(y), pooled(y))


class _Choosing(nn.Module):
    """One node: its code chooses by values, so the sizes that it makes are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: T) -> T:
        return x * self.scale if bool(x.sum() > 1e9) else x + self.scale


class _Behind(nn.Module):
    """Decides by a size behind an opaque module."""

    def __init__(self, then: Callable[[T], T]) -> None:
        super().__init__()
        self.inner, self.layer, self.then = _Choosing(), nn.Linear(4, 4), then

    def forward(self, x: T) -> T:
        return self.then(self.layer(self.inner(x)))


def _expands(x: T) -> T:
    p = torch.arange(4.0)[None]
    return x + (p.expand(x.shape[0], -1) if x.shape[0] != p.shape[0] else p)


def _repeats(x: T) -> T:
    p = torch.arange(4.0)[None]
    return x * (p.repeat(x.shape[0], 1) if x.shape[0] > 1 else p)


@pytest.mark.parametrize("then", [_expands, _repeats, lambda x: x + 1 if x.shape[0] != 1 else x * 3])
def test_a_batch_of_1_behind_an_opaque_module(then: Callable[[T], T]) -> None:
    model = _Behind(then).eval()
    captured = utc.capture(model, torch.randn(2, 4))
    [guard] = captured.guards
    assert guard.relation.endswith(" or B == 1") is (then in (_expands, _repeats))
    for batch in (2, 9):
        x = torch.randn(batch, 4)
        assert torch.equal(captured(x), model(x))
    if then in (_expands, _repeats):
        x = torch.randn(1, 4)
        assert torch.equal(captured(x), model(x))
    else:
        with pytest.raises(GuardError):
            captured(torch.randn(1, 4))


def test_a_step_that_varies_makes_a_size_of_its_own() -> None:
    class Strides(nn.Module):
        def forward(self, x: T) -> T:
            kept = x[:: x.shape[1] // 3 % 5 + 1]  # of a batch of two: one row, or two
            return kept / (sum([1] * min(kept.shape[0], 9)) + 1.5)

    captured = utc.capture(Strides(), torch.randn(2, 5), dynamic={"x": {1: "L"}}, verify="shapes")
    ran = []
    for length in (2, 3, 4, 5, 6, 16):
        x = torch.randn(2, length)
        try:
            found = captured(x)
        except utc.UtcError:
            continue
        assert torch.equal(found, Strides()(x)), length
        ran.append(length)
    assert {3, 4, 5} <= {*ran} and 2 not in ran


def test_a_repetition_once_is_no_decision() -> None:
    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, 4))

        def forward(self, x: T) -> T:
            one = self.positions
            return x + (one.repeat(x.shape[0], 1) if x.shape[0] != 1 else one)

    model = Repeats().eval()
    captured = utc.capture(model, torch.randn(3, 4), verify="shapes")
    assert captured.guards == ()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4)
        assert torch.equal(captured(x), model(x))


class _Cut(nn.Module):
    def forward(self, x: T, k: T) -> T:
        return x[:, :k]


class _Alike(nn.Module):
    """Asks two questions that read alike: of two parts, of two calls of one module, or at the end of a long text."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.cut = kind, _Cut()

    def forward(self, x: T, k: T) -> T:
        if self.kind == "parts":
            return torch.cat([p.relu() for p in x[:, :k].split(3, 1) if p.shape[1] == 3] + [x], 1)
        if self.kind == "calls":
            return torch.cat([p.relu() for p in (self.cut(x, k), self.cut(x, k - 3)) if p.shape[1] == 3] + [x], 1)
        n = x.shape[1]
        for i in range(24):
            n = (n * 3 + i) // 2
        return x + (1 if n % 2 == 0 else 2) + (10 if n % 3 == 0 else 20)


@pytest.mark.parametrize("kind", ["parts", "calls", "long texts"])
def test_questions_that_read_alike_are_two(kind: str) -> None:
    model = _Alike(kind).eval()
    captured = utc.capture(model, (torch.randn(2, 6), torch.tensor(6)), dynamic={"x": {0: "B", 1: "L"}})
    found = []
    for length in range(3, 24):
        for k in (3, 4, 5, 6):
            x = torch.randn(3, length)
            try:
                got = captured(x, torch.tensor(k))
            except GuardError:
                found.append("refused")
                continue
            assert torch.equal(got, model(x, torch.tensor(k))), f"wrong at {length}, {k}"
            found.append("equal")
    assert {*found} == {"refused", "equal"}


def test_a_long_computation_of_sizes_stays_short() -> None:
    class Collatz(nn.Module):
        def forward(self, x: T) -> T:
            n = x.shape[0]
            for _ in range(400):
                n = n // 2 + n % 3 + n
                n = n % 1009
            return x * n

    model = Collatz().eval()
    captured = utc.capture(model, torch.randn(4, 2))
    for b in (1, 4, 11):
        x = torch.randn(b, 2)
        assert torch.equal(captured(x), model(x))
    size = Expression.reading("size", 1, 0)
    assert Expression.of("add", size, size) is Expression.of("add", size, size)


@pytest.mark.parametrize("read", [int, T.item, float], ids=["int", "item", "float"])
def test_a_number_that_python_reads_off_an_input_is_fixed(read: Callable[[T], Any]) -> None:
    class Reads(nn.Module):
        def forward(self, x: T, k: T) -> T:
            return x * read(k)

    k, other = (torch.tensor(3.0), torch.tensor(5.0)) if read is float else (torch.tensor(3), torch.tensor(5))
    captured = utc.capture(Reads().eval(), (torch.randn(2, 4), k))
    assert any(p.startswith("k: its values") for p in captured.report.pinned)
    x = torch.randn(5, 4)
    assert torch.equal(captured(x, k), x * 3)
    with pytest.raises(utc.UtcError, match="recorded with k=3"):
        captured(x, other)


def test_what_containers_hold_is_fixed() -> None:
    class Config(nn.Module):
        def forward(self, x: T, config: dict[str, Any]) -> T:
            return x * config["scale"] + len(config["steps"]) + sum(config["parts"])

    x, parts = torch.randn(2, 3), (torch.ones(3), torch.ones(3))
    config = {"scale": 2.0, "steps": [1, 2], "parts": parts}
    captured = utc.capture(Config().eval(), (x, config))
    assert torch.equal(captured(x, config), x * 2 + 4)
    for changed in ({"scale": 5.0}, {"steps": [1, 2, 3]}, {"parts": (*parts, torch.ones(3))}, {"more": 1}):
        with pytest.raises(utc.UtcError, match=r"recorded with config"):
            captured(x, {**config, **changed})


def test_properties_that_python_reads_are_guards() -> None:
    class Flags(nn.Module):
        def forward(self, x: T) -> T:
            return x * (2 if x.requires_grad else 3) + (1 if x.is_contiguous() else 0)

    x = torch.randn(4, 4)
    captured = utc.capture(Flags().eval(), x)
    assert torch.equal(captured(x), x * 3 + 1)
    assert sorted(g.relation for g in captured.guards) == ["x.is_contiguous is True", "x.requires_grad is False"]
    for other in (x.t(), x.clone().requires_grad_()):
        with pytest.raises(GuardError):
            captured(other)


def test_a_choice_by_the_mode_of_gradients_is_refused_unless_it_does_not_matter() -> None:
    class Chooses(nn.Module):
        def __init__(self, other: float) -> None:
            super().__init__()
            self.other = other

        def forward(self, x: T) -> T:
            return x * (2.0 if torch.is_grad_enabled() else self.other)

    assert utc.capture(Chooses(2.0).eval(), torch.randn(2, 2)).guards == ()
    with pytest.raises(utc.UtcError, match="is_grad_enabled"):
        utc.capture(Chooses(3.0).eval(), torch.randn(2, 2), verify="shapes")


def test_guards_survive_copies_pickles_tuning_and_folding() -> None:
    model = toys.Tokens(toys.by_length).eval()
    captured = utc.capture(model, ids(2, 8))
    rule = "version: 1\nname: r\ntuners: {s: {kind: ssf}}\nrules:\n  - {name: m, match: {op: mul}, insert: {sequential: h, tuner: s}}\n"
    tuned = utc.match(captured, rule).apply()
    folded, _ = utc.fold(tuned)
    for module in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured)), tuned, folded):
        assert [g.relation for g in module.guards] == ["L <= 10"]
        module(ids(3, 9))
        with pytest.raises(GuardError, match="L <= 10"):
            module(ids(3, 11))


def test_guards_are_asked_in_compiled_graphs_too() -> None:
    captured = utc.capture(toys.Tokens(toys.by_length).eval(), ids(2, 8))
    compiled = torch.compile(captured, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(compiled(ids(3, 9)), captured(ids(3, 9)))
    # the compiler raises its own error, which shows the line: it found the refusal while it traced
    with pytest.raises(Exception, match=r"raise guard\.refuse|L <= 10"):
        compiled(ids(3, 11))
    loose = torch.compile(captured, backend="eager", dynamic=True)
    with pytest.raises(GuardError, match="L <= 10"):
        loose(ids(3, 11))


def test_an_exported_file_says_which_guards_narrow_it(tmp_path: Any) -> None:
    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x: T) -> T:
            y: T = self.l(x)
            return y * 2 if x.shape[0] < 7 else y

    captured = utc.capture(Few().eval(), torch.randn(2, 4))
    result = utc.export_onnx(captured, tmp_path / "few.onnx", torch.randn(2, 4))
    assert len(result.guards) == 1 and result.guards[0] == "batch <= 6"
    assert result.batch_sizes == (1, 2, 3) and "right only for batch <= 6" in str(result)
    props = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    assert json.loads(props["utcompile.guards"]) == list(result.guards)
    with pytest.raises(GuardError):
        utc.export_onnx(captured, tmp_path / "few2.onnx", torch.randn(2, 4), batch_sizes=(3, 9))
    assert not (tmp_path / "few2.onnx").exists()


def test_guards_on_values_are_asked_in_one_call() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x: T, k: T) -> T:
            y: T = self.l(x)
            if x.sum() > 0:
                y = y + int(k)
            if (x > 5).any():
                y = y * 2
            return y

    model, k = Chooses().eval(), torch.tensor(3)
    captured = utc.capture(model, (torch.rand(2, 4), k))
    checks = [n for n in captured.graph.nodes if "check_values" in n.name]
    assert len(checks) == 1
    x = torch.rand(3, 4)
    assert torch.equal(captured(x, k), model(x, k))
    for other in ((-x, k), (x + 9, k), (x, torch.tensor(4))):
        with pytest.raises(utc.UtcError, match=r"at capture|recorded with k=3"):
            captured(*other)


class _Chunks(nn.Module):
    """Asks two sizes that no formula gives, behind a pad to a multiple of eight."""

    def forward(self, x: T) -> T:
        a = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 8))
        b = a.flip(1).relu()
        if a.shape[1] % 8 or a.shape[1] != b.shape[1]:
            return x
        return (a + b)[:, : x.shape[1]]


def test_guards_name_the_node_whose_size_they_ask_and_are_listed_once_for_all_layers() -> None:
    model = nn.Sequential(nn.Embedding(50, 6), nn.Sequential(_Chunks(), _Chunks()))
    captured = utc.capture(model.eval(), ids(2, 5))
    listed = [str(g).partition(" (")[0] for g in captured.guards]
    assert listed == ["1.*.pad.shape[1] % 8 == 0", "1.*: pad.shape[1] == relu.shape[1]"]
    assert {n.name for n in captured.graph.nodes} >= {"_1_0_pad", "_1_1_relu"}  # as in the printed graph
    for size in SIZES:
        assert torch.equal(captured(ids(*size)), model(ids(*size)))

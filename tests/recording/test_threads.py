"""Several captures at once are right, leave nothing behind, and disturb no other thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import utcompile as utc
from utcompile.recording.active import current
from utcompile.recording.patches import patched

T = torch.Tensor
X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    """A part for everything that a recording replaces: layers, attention, autocast, an autograd.Function, an assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: T) -> T:
        torch._check_tensor_all(x < 1e6)
        y = Doubled.apply(self.layer(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = self.head(y)
        return half.float() + self.head(y)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: T) -> T:
        return x * 2

    @staticmethod
    def backward(context: object, gradient: T) -> T:
        return gradient * 2


class ReadsValues(Everything):
    """Recorded with real values, as if it were traced."""

    def forward(self, x: T) -> T:
        return super().forward(x) if x.sum() < 1e6 else super().forward(x) * 2


def make(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def process() -> dict[str, object]:
    """The attributes of torch, Python and logging that a recording touches."""
    autocast, logger = torch.amp.autocast_mode.autocast, logging.getLogger("torch._subclasses.fake_tensor")
    return {
        "call": vars(nn.Module)["__call__"],
        "apply": vars(torch.autograd.Function)["apply"],
        "enter": vars(autocast)["__enter__"],
        "exit": vars(autocast)["__exit__"],
        "check": torch._check_tensor_all_with,
        "compiling": torch.compiler.is_compiling,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "logger": (logger.disabled, list(logger.filters)),
        "collector": gc.isenabled(),
        "recorder": current(),
    }


@contextmanager
def unchanged() -> Iterator[None]:
    before = process()
    yield
    after = process()
    assert after.keys() == before.keys()
    assert all(after[k] is before[k] or after[k] == before[k] for k in before)
    with pytest.raises(ValueError):
        torch._check_tensor_all_with(ValueError, torch.tensor([False]))


def run(workers: list[Callable[[], None]]) -> None:
    """Run each in its own thread, and raise the error of one of them."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(w,)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", [Everything, ReadsValues])
def test_captures_in_threads_while_another_runs_the_model(kind: type[nn.Module]) -> None:
    shared = make(kind)
    with torch.no_grad():
        expected = shared(X)
    done = threading.Event()
    calls = []

    own = iter([make(kind) for _ in range(4)])  # made here: threads share torch's random numbers

    def capture() -> None:
        for model in (shared, next(own)):
            captured = utc.capture(model, X)
            with torch.no_grad():
                assert torch.allclose(captured(X), expected, atol=1e-2)  # bfloat16 in it; the fast path is off

    def forward() -> None:
        while not done.is_set():
            with torch.no_grad():
                assert torch.equal(shared(X), expected)  # with its fast path, bit for bit
            calls.append(0)

    def captures() -> None:
        try:
            run([capture] * 4)
        finally:
            done.set()

    with unchanged():
        run([captures, forward])
    assert len(calls) > 1


def test_compiling_in_threads() -> None:
    def work() -> None:
        for _ in range(3):
            utc.compile(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)).eval(), "lora/all_linear", (X,))

    with unchanged():
        run([work] * 4)


def test_captures_under_asyncio() -> None:
    models = [make(Everything) for _ in range(3)]

    async def all_at_once() -> list[utc.CapturedModule]:
        return await asyncio.gather(*(asyncio.to_thread(utc.capture, model, X) for model in models))

    with unchanged():
        found = asyncio.run(all_at_once())
        assert all(torch.equal(c(X), found[0](X)) for c in found)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, utc.UtcError])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_nothing_is_left_after_an_error(error: type[BaseException], at: int) -> None:
    calls = []

    class Fails(Everything):
        def forward(self, x: T) -> T:
            y = super().forward(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                calls.append(0)
                if len(calls) >= at:
                    raise error("on purpose")
            return y

    model = make(Fails)
    with unchanged(), pytest.raises((error, utc.UtcError)):
        utc.capture(model, X)
    assert all(not m.training for m in model.modules())


def test_other_threads_see_the_originals() -> None:
    from utcompile.recording.active import recording
    from utcompile.recording.recorder import Recorder

    seen: dict[str, object] = {}

    model = make(Everything)

    def elsewhere() -> None:
        with torch.no_grad():
            seen["out"] = model(X)
        seen["compiling"], seen["recorder"] = torch.compiler.is_compiling(), current()
        try:
            torch._check_tensor_all_with(ValueError, torch.tensor([False]))
        except ValueError:
            seen["checks"] = True

    with torch.no_grad():
        expected = make(Everything)(X)
    with unchanged(), recording(Recorder({}, real=True)), patched():
        assert torch.compiler.is_compiling()
        run([elsewhere])
    assert torch.equal(seen.pop("out"), expected)  # type: ignore[arg-type]
    assert seen == {"compiling": False, "recorder": None, "checks": True}


def test_the_collector_is_on_again_when_the_last_thread_is_done() -> None:
    from utcompile.graph import collector_paused

    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with collector_paused():
            entered.set()
            left.wait()

    thread = threading.Thread(target=other)
    with collector_paused():
        thread.start()
        entered.wait()
    assert not gc.isenabled()
    left.set()
    thread.join()
    assert gc.isenabled()

"""Many threads over one model and over models of their own: compiling, calling, turning tuners off, folding."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.draws import examples
from torch import nn

import utcompile as utc
from utcompile.graph import full_precision

THREADS = 8


def model_of(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        ).eval()


class Shared:
    """One tuned model, which every thread calls."""

    def __init__(self) -> None:
        self.model, self.x = model_of(0), torch.randn(3, 4)
        self.tuned = utc.compile(self.model, "lora/all_linear", (self.x,)).eval()
        with torch.no_grad():
            for parameter in self.tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3)
            self.base, self.changed = self.model(self.x), self.tuned(self.x)

    def call(self, on: bool) -> None:
        with torch.no_grad():
            if on:
                assert torch.equal(self.tuned(self.x), self.changed)
                return
            with utc.disable_tuners(self.tuned):
                assert torch.equal(self.tuned(self.x), self.base)
            assert torch.equal(self.tuned(self.x), self.changed)

    def fold(self) -> None:
        folded, report = utc.fold(self.tuned)
        assert not report.kept and torch.allclose(folded(self.x), self.changed, atol=1e-5)

    def compile(self, seed: int) -> None:
        model = model_of(seed)
        tuned = utc.compile(model, "lora/all_linear", (self.x,)).eval()
        with torch.no_grad():
            expected = model(self.x)
            assert torch.equal(tuned(self.x), expected)
            with utc.disable_tuners(tuned):
                assert torch.equal(tuned(self.x), expected)


def work(shared: Shared, seed: int, iterations: int) -> int:
    chosen = random.Random(seed)
    for i in range(iterations):
        what = chosen.choice(["on", "on", "off", "off", "fold", "compile"])
        if what == "fold":
            shared.fold()
        elif what == "compile":
            shared.compile(1000 * seed + i)
        else:
            shared.call(on=what == "on")
    return iterations


def switches() -> list[str]:
    backends = torch.backends
    kinds = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cudnn.conv, backends.cuda.matmul)
    return [torch.get_float32_matmul_precision(), *(kind.fp32_precision for kind in kinds)]


def soak(iterations: int) -> None:
    before = switches()
    shared = Shared()
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(lambda seed: work(shared, seed, iterations // THREADS), range(THREADS)))
    assert sum(done) == iterations
    assert switches() == before
    shared.call(on=True)
    shared.call(on=False)


def test_threads_compile_call_turn_off_and_fold() -> None:
    soak(examples(2, full=4) * THREADS)


@pytest.mark.full
def test_two_thousand_times() -> None:
    soak(2_000)


def test_switches_are_put_back_whichever_thread_ends_first() -> None:
    """One thread begins to compare while another does, and ends after it."""
    before, entered, left = switches(), threading.Event(), threading.Event()

    def inner() -> None:
        with full_precision():
            entered.set()
            assert left.wait(30)
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"

    with ThreadPoolExecutor(1) as pool:
        with full_precision():
            found = pool.submit(inner)
            assert entered.wait(30)
        left.set()
        found.result(30)
    assert switches() == before

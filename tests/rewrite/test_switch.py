"""`disable_tuners` changes what a call computes, here and now, and nothing that anything else sees."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import utcompile as utc

RULES = """
version: 1
name: t
rules:
  - {name: w, match: {op: linear}, except: head, insert: {weight: h, tuner: {kind: lora, r: 2}}}
  - {name: s, match: {op: relu}, insert: {sequential: h, tuner: {kind: ia3}}}
train: [%s]
"""


class Net(nn.Module):
    """A body, a parameter that the graph reads by its name, and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.randn(8))
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head((self.body(x) + self.shift).relu())
        return y[0] if isinstance(y, tuple) else y


def tuned_of(
    head: nn.Module | None = None, train: str = "'module:head'", x: torch.Tensor | None = None
) -> tuple[Callable[[torch.Tensor], torch.Tensor], utc.TunedModule, torch.Tensor]:
    """A model, and a tuned one whose tuners and head have moved; `x` gives other outputs in both."""
    torch.manual_seed(0)
    model = Net(head or nn.Linear(8, 3)).eval()
    x = torch.randn(4, 8) if x is None else x
    tuned = utc.match(utc.capture(model, (x,)), RULES % train).apply().eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    model.requires_grad_(False)
    return model, tuned, x


def agree(*pairs: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in pairs)


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer": (lambda: nn.Linear(8, 3), "'module:head'"),
    "a part of a layer": (lambda: nn.Linear(8, 3), "'parameter:head.weight'"),
    "a parameter that the graph reads": (lambda: nn.Linear(8, 3), "'parameter:shift'"),
    "both": (lambda: nn.Linear(8, 3), "'parameter:shift', 'parameter:head.bias'"),
    "a norm with buffers": (lambda: nn.BatchNorm1d(8), "'module:head'"),
    "a layer that lists its weights": (lambda: nn.GRU(8, 3), "'module:head'"),
    "several layers": (lambda: nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 3)), "'module:head'"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_base_is_the_models_with_its_original_head(kind: str) -> None:
    head, train = HEADS[kind]
    model, tuned, x = tuned_of(head(), train)
    expected, changed = model(x), tuned(x)
    assert not torch.equal(expected, changed)
    for other in (tuned, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        with utc.disable_tuners(other) as given:
            assert given is other and agree((other(x), expected))
        assert agree((other(x), changed), (tuned(x), changed))


def test_the_base_follows_what_happens_to_the_model() -> None:
    model, tuned, x = tuned_of(nn.BatchNorm1d(8))
    with utc.disable_tuners(tuned):
        tuned.double()
        x = x.double()
        assert torch.allclose(tuned(x), model.double()(x))  # type: ignore[attr-defined]
    tuned.head.running_mean.add_(1)
    tuned.head.register_forward_hook(lambda m, a, y: y * 2)
    model.head.running_mean.add_(1)  # type: ignore[attr-defined]
    with utc.disable_tuners(tuned):
        assert torch.allclose(tuned(x), model(x) * 2)
    assert tuned(x).dtype is torch.float64


def test_originals_take_no_place_in_states_and_counts() -> None:
    model, tuned, _ = tuned_of(nn.Linear(8, 3), "'parameter:head.weight'")
    state = tuned.state_dict()
    assert set(state) == {*model.state_dict(), *(n for n in state if n.startswith("tuners."))}  # type: ignore[attr-defined]
    assert not any(tuned.load_state_dict(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        tuned.load_state_dict({k: v for k, v in state.items() if k != "head.bias"})
    base = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    tuners = sum(p.numel() for n, p in tuned.named_parameters() if n.startswith("tuners."))
    assert tuned.trainable_parameters() == (tuners + 24, base + tuners)


def test_what_is_saved_loaded_folded_and_copied_inside_is_what_it_is_outside(tmp_path: Path) -> None:
    _, tuned, x = tuned_of()
    changed, state = tuned(x), tuned.state_dict()
    with utc.disable_tuners(tuned):
        utc.save_tuners(tuned, tmp_path / "run")
        folded, report = utc.fold(tuned)
        inside = tuned.state_dict()
        copies = [copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))]
        assert all(agree((c(x), changed)) for c in copies)
        assert torch.allclose(folded(x), changed, atol=1e-5) and not report.kept
    assert state.keys() == inside.keys() and agree(*((state[k], inside[k]) for k in state))
    fresh = utc.match(utc.capture(tuned_of()[0], (x,)), RULES % "'module:head'").apply().eval()  # type: ignore[arg-type]
    with utc.disable_tuners(fresh):
        utc.load_tuners(fresh, tmp_path / "run")
    assert agree((fresh(x), changed))


@pytest.mark.full
def test_what_is_exported_inside_is_what_it_is_outside(tmp_path: Path) -> None:
    _, tuned, x = tuned_of()
    with utc.disable_tuners(tuned):
        utc.export_onnx(tuned, tmp_path / "inside.onnx", (x,))
    utc.export_onnx(tuned, tmp_path / "outside.onnx", (x,))
    assert (tmp_path / "inside.onnx").read_bytes() == (tmp_path / "outside.onnx").read_bytes()


def test_training_goes_on_inside() -> None:
    _, tuned, x = tuned_of()
    with utc.disable_tuners(tuned):
        tuned(x.requires_grad_()).sum().backward()
        assert x.grad is not None and not any(p.grad is not None for p in tuned.parameters())
        assert {n for n, p in tuned.named_parameters() if p.requires_grad} > {"head.weight", "head.bias"}
    tuned(x).sum().backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_contexts_end_in_any_order_and_are_nested() -> None:
    model, tuned, x = tuned_of()
    expected, changed = model(x), tuned(x)
    first, second = utc.disable_tuners(tuned), utc.disable_tuners(tuned)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert agree((tuned(x), expected))
    second.__exit__(None, None, None)
    assert agree((tuned(x), changed))
    with utc.disable_tuners(tuned):
        with pytest.raises(KeyError), utc.disable_tuners(tuned):
            raise KeyError
        assert agree((tuned(x), expected))
    assert agree((tuned(x), changed))


def test_one_model_is_off_and_another_is_on() -> None:
    model, one, x = tuned_of()
    other = copy.deepcopy(one)
    with utc.disable_tuners(one):
        assert agree((one(x), model(x))) and not agree((other(x), model(x)))
        with utc.disable_tuners(nn.ModuleList([one, other])):  # a module that contains several
            assert agree((one(x), model(x)), (other(x), model(x)))
        assert agree((one(x), model(x))) and not agree((other(x), model(x)))
    for wrong in (model, 3, utc.capture(model, (x,))):  # type: ignore[arg-type]
        with pytest.raises(utc.UtcError, match="takes a TunedModule"), utc.disable_tuners(wrong):  # type: ignore[type-var]
            pass


def test_generators_that_overlap_leave_the_tuners_on() -> None:
    model, tuned, x = tuned_of()
    expected, changed = model(x), tuned(x)

    def references() -> Iterator[torch.Tensor]:
        with utc.disable_tuners(tuned):
            while True:
                yield tuned(x)

    first, second = references(), references()
    assert agree((next(first), expected), (next(second), expected))
    first.close()  # type: ignore[attr-defined]
    assert agree((next(second), expected))
    second.close()  # type: ignore[attr-defined]
    assert agree((tuned(x), changed))


def test_a_generator_that_another_thread_closes_is_closed() -> None:
    _, tuned, x = tuned_of()
    changed = tuned(x)

    def references() -> Iterator[torch.Tensor]:
        with utc.disable_tuners(tuned):
            yield tuned(x)

    left = references()
    next(left)
    closing = threading.Thread(target=left.close)  # type: ignore[attr-defined]
    closing.start()
    closing.join()
    assert agree((tuned(x), changed))
    with utc.disable_tuners(tuned):
        assert not agree((tuned(x), changed))
    assert agree((tuned(x), changed))


def test_threads_choose_for_themselves() -> None:
    model, tuned, x = tuned_of()
    expected, changed = model(x), tuned(x)
    together = threading.Barrier(4)

    def work(number: int) -> bool:
        right = []
        for _ in range(20):
            with ExitStack() as stack:
                if number % 2:
                    stack.enter_context(utc.disable_tuners(tuned))
                together.wait()
                right.append(agree((tuned(x), expected if number % 2 else changed)))
                together.wait()
        return all(right)

    with ThreadPoolExecutor(4) as pool, utc.disable_tuners(tuned):
        assert list(pool.map(work, range(4))) == [True] * 4  # the pool's threads see nothing of this context
    assert agree((tuned(x), changed))


def test_a_context_reaches_the_threads_and_tasks_that_it_is_handed_to() -> None:
    model, tuned, x = tuned_of()
    expected, changed = model(x), tuned(x)

    async def task(off: bool, turns: int) -> bool:
        right = True
        with ExitStack() as stack:
            if off:
                stack.enter_context(utc.disable_tuners(tuned))
            for _ in range(turns):
                await asyncio.sleep(0)
                right &= agree((tuned(x), expected if off else changed))
        return right & agree((tuned(x), changed))

    async def references() -> AsyncIterator[torch.Tensor]:
        with utc.disable_tuners(tuned):
            while True:
                yield tuned(x)

    async def main() -> None:
        assert await asyncio.gather(*(task(i % 2 == 0, 3 + i) for i in range(4))) == [True] * 4
        with utc.disable_tuners(tuned):
            assert agree((await asyncio.to_thread(tuned, x), expected))
            inner = asyncio.create_task(asyncio.to_thread(tuned, x))
            assert agree((await inner, expected))
        async for found in references():  # left without an end: asyncio ends it in a task of its own
            assert agree((found, expected))
            break

    asyncio.run(main())
    assert agree((tuned(x), changed))
    with utc.disable_tuners(tuned):
        handed = contextvars.copy_context()
        assert agree((handed.run(tuned, x), expected))
    assert agree((handed.run(tuned, x), changed))  # what has ended is over everywhere


def test_replicas_run_in_threads_as_their_model_was() -> None:
    model, tuned, x = tuned_of()
    with utc.disable_tuners(tuned):
        replica = tuned._replicate_for_data_parallel()
        again = tuned._replicate_for_data_parallel
    with ThreadPoolExecutor(1) as pool:
        assert agree((pool.submit(replica, x).result(), model(x)), (pool.submit(again(), x).result(), tuned(x)))


def test_nothing_is_left_of_models_that_were_switched() -> None:
    """A soak in small: neither contexts nor classes keep a model's switch once its contexts have ended."""
    _, tuned, x = tuned_of()
    before = len(contextvars.copy_context())
    for _ in range(3):
        with utc.disable_tuners(copy.deepcopy(tuned)) as other:
            other(x)
    assert len(contextvars.copy_context()) == before


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_has_the_context_inside_and_not_around(reentrant: bool) -> None:
    """Backward makes the call again, where the context may be over."""
    model, tuned, x = tuned_of()
    x.requires_grad_()
    wanted = torch.autograd.grad(model(x).sin().sum(), x)[0]

    def gradient(y: torch.Tensor) -> torch.Tensor:
        x.grad = None
        y.sin().sum().backward()
        assert x.grad is not None
        return x.grad

    def inside(x: torch.Tensor) -> torch.Tensor:
        with utc.disable_tuners(tuned):
            return tuned(x)

    def around(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with utc.disable_tuners(tuned):
            return checkpoint(function, x, use_reentrant=reentrant)

    assert torch.equal(gradient(checkpoint(inside, x, use_reentrant=reentrant)), wanted)
    assert torch.equal(gradient(around(inside)), wanted)
    for function in (tuned, lambda x: tuned(x.tanh()).relu()):
        with pytest.raises(utc.UtcError, match="disable_tuners is open around"):
            around(function)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_of_the_tuned_model_is_not_called_again_with_the_tuners_off(reentrant: bool) -> None:
    _, tuned, x = tuned_of()
    x.requires_grad_()
    y = checkpoint(tuned, x, use_reentrant=reentrant)
    with utc.disable_tuners(tuned), pytest.raises(utc.UtcError, match="disable_tuners is open around"):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_without_gradients_a_checkpoint_may_lie_inside(reentrant: bool) -> None:
    model, tuned, x = tuned_of()
    x.requires_grad_()
    with torch.no_grad(), utc.disable_tuners(tuned):
        assert torch.equal(checkpoint(tuned, x, use_reentrant=reentrant), model(x))

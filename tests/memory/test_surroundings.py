"""Blocks that run again in backward, in what surrounds a model in training loops: gradients are those without a plan."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

import utcompile as utc
from utcompile.memory import MemoryPlan
from utcompile.memory.units import units_of

Gradients = list[Tensor]


class Twice(nn.Module):
    """A linear that is called twice, so that one changed weight is read in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](torch.tanh(self.first(x)).sin().exp())
        x = self.norms[1](torch.tanh(self.shared(x)).sin().exp())
        x = self.norms[2](torch.tanh(self.last(x)).sin().exp())
        result: Tensor = self.norms[3](torch.tanh(self.shared(x)).sin().exp())
        return result


def _linears() -> nn.Module:
    layers = [m for _ in range(3) for m in (nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6), nn.Tanh(), nn.Softplus())]
    return nn.Sequential(*layers)


def _images() -> nn.Module:
    blocks = [m for _ in range(3) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Tanh())]
    return nn.Sequential(*blocks)


def _rules(op: str, how: str) -> str:
    tuner = f"{{kind: lora, r: 2, how: {how}}}"
    return (
        f"version: 1\nname: all\nrules: [{{name: all, match: {{op: {op}}}, insert: {{weight: h, tuner: {tuner}}}}}]\n"
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "branches": (_linears, _rules("linear", "branch"), (3, 6)),
    "weights": (_linears, _rules("linear", "reparametrised"), (3, 6)),
    "a shared weight": (Twice, _rules("linear", "reparametrised"), (3, 6)),
    "images": (_images, _rules("conv", "auto"), (2, 4, 5, 5)),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[utc.TunedModule, utc.TunedModule, Tensor]:
    """A module all of whose blocks run again, the same without a plan, and an input."""
    make, rules, shape = MODELS[request.param]
    torch.manual_seed(0)
    tuned = utc.compile(make().eval(), rules, (torch.randn(shape),), verify="shapes").double()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    tuned.memory = MemoryPlan(tuple((u.first, u.last) for u in units_of(tuned.graph, tuned, tuned.follows_mode)))
    assert len(tuned.memory.again) > 1
    return tuned, plain, torch.randn(shape, dtype=torch.float64)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _given(module: nn.Module) -> Gradients:
    return [p.grad.clone() for p in _trained(module) if p.grad is not None]


def _loss(result: Tensor) -> Tensor:
    return (result.square() + result.sin()).sum()


def twice_backward(module: nn.Module, x: Tensor) -> Gradients:
    loss = _loss(module(x))
    loss.backward(retain_graph=True)
    first = _given(module)
    loss.backward()
    return first + _given(module)


def gradients_of_gradients(module: nn.Module, x: Tensor) -> Gradients:
    given = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(_loss(module(given)), given, create_graph=True)
    grad.square().sum().backward()
    assert given.grad is not None
    return [grad.detach(), given.grad, *_given(module)]


def stored_elsewhere(module: nn.Module, x: Tensor) -> Gradients:
    """As `save_on_cpu` on a GPU: what comes back is a copy, and no parameter."""
    with saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        loss = _loss(module(x))
    loss.backward()
    return _given(module)


def other_parameters(module: nn.Module, x: Tensor) -> Gradients:
    """The call has other parameters than the module has in backward."""
    given = {n: (1.5 * p.detach()).requires_grad_() for n, p in module.named_parameters() if p.requires_grad}
    _loss(functional_call(module, given, (x,))).backward()
    return [p.grad for p in given.values() if p.grad is not None]


def other_sizes(module: nn.Module, x: Tensor) -> Gradients:
    """Two batches, of which the later one goes back first."""
    losses = [_loss(module(x[:1])), _loss(module(torch.cat([x, 2 * x])))]
    for loss in reversed(losses):
        loss.backward()
    return _given(module)


def another_thread(module: nn.Module, x: Tensor) -> Gradients:
    loss = _loss(module(x))
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    return _given(module)


@pytest.mark.parametrize(
    "around",
    [twice_backward, gradients_of_gradients, stored_elsewhere, other_parameters, other_sizes, another_thread],
)
def test_gradients_are_those_without_a_plan(
    pair: tuple[utc.TunedModule, utc.TunedModule, Tensor], around: Callable[[nn.Module, Tensor], Gradients]
) -> None:
    found, expected = [], []
    for module, gradients in ((pair[0], found), (pair[1], expected)):
        module.zero_grad()
        gradients += around(module, pair[2])
    assert len(found) == len(expected) >= len(_trained(pair[0]))
    for of_tuned, of_plain in zip(found, expected, strict=True):
        torch.testing.assert_close(of_tuned, of_plain, rtol=1e-10, atol=1e-12)  # float64, sums in another order


@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_that_is_written_before_backward_is_an_error(
    pair: tuple[utc.TunedModule, utc.TunedModule, Tensor], frozen: bool
) -> None:
    """As torch's own of what is saved: the block would run again with other numbers."""
    tuned = pair[0]
    written = next(p for p in tuned.parameters() if p.requires_grad is not frozen)
    with _restored(written):
        loss = _loss(tuned(pair[2]))
        with torch.no_grad():
            written.mul_(2)
        with pytest.raises(RuntimeError, match="modified"):
            loss.backward()
    tuned.zero_grad()
    _loss(tuned(pair[2])).backward()


@contextmanager
def _restored(parameter: nn.Parameter) -> Iterator[None]:
    before = parameter.detach().clone()
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)

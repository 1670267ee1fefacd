"""Tuned modules of every form under `torch.func`, forward-mode derivatives, and on tensors without memory of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from support import models as zoo
from support.processes import one_process_group
from support.saved import saved_bytes
from support.transformer_toys import RULES, Transformer
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import utcompile as utc

# torch's own forward-mode formulas are scripted
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
Named = dict[str, torch.Tensor]
MORE = {"dora": "lora/dora_all_linear", "a bias": "bitfit/biases", "an adapter in the stream": "adapter/houlsby"}


@pytest.fixture(scope="module")
def captured() -> tuple[utc.CapturedModule, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6)
    return utc.capture(Transformer().eval(), (x,)), x


@pytest.fixture(params=[*RULES, *(pytest.param(k, marks=pytest.mark.full) for k in MORE)])
def case(
    request: pytest.FixtureRequest, captured: tuple[utc.CapturedModule, torch.Tensor]
) -> Iterator[tuple[utc.TunedModule, Named, torch.Tensor]]:
    """A tuned module of one form, with the gradients that ordinary backward gives; attention is spelled out."""
    module, x = captured
    tuned = utc.match(copy.deepcopy(module), {**RULES, **MORE}[request.param]).apply().eval()
    zoo.shake(tuned, 0.1)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have neither forward-mode derivatives nor batching rules
        total(tuned(x)).backward()
        expected = {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}
        tuned.zero_grad()
        yield tuned, expected, x


def total(y: torch.Tensor) -> torch.Tensor:
    return y.sin().sum()


def same(found: Named, expected: Named) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(found[n], g, rtol=1e-4, atol=1e-5) for n, g in expected.items()
    )


def test_transforms_of_functions(case: tuple[utc.TunedModule, Named, torch.Tensor]) -> None:
    tuned, expected, x = case
    given = {n: p.detach() for n, p in tuned.named_parameters() if n in expected}

    def loss(parameters: Named, x: torch.Tensor) -> torch.Tensor:
        return total(functional_call(tuned, parameters, (x,)))

    assert same(grad(loss)(given, x), expected)
    assert same(jacrev(loss)(given, x), expected)
    each = vmap(grad(lambda p, x: loss(p, x[None])), (None, 0))(given, x)
    assert same({n: g.sum(0) for n, g in each.items()}, expected)
    torch.testing.assert_close(
        jvp(lambda p: loss(p, x), (given,), (expected,))[1], slope(expected), rtol=1e-4, atol=1e-4
    )
    lent = {n: p.clone().requires_grad_() for n, p in given.items()}
    with torch.no_grad():
        for name in given:  # the module's own are others by the time of backward
            tuned.get_parameter(name).add_(1)
    loss(lent, x).backward()
    assert same({n: p.grad for n, p in lent.items() if p.grad is not None}, expected)


def test_forward_mode_derivatives(case: tuple[utc.TunedModule, Named, torch.Tensor]) -> None:
    """Along the gradient the derivative is its squared length; a side network has none along x, which it detaches."""
    tuned, expected, x = case
    with forward_ad.dual_level():
        lent = {n: forward_ad.make_dual(tuned.get_parameter(n).detach(), g) for n, g in expected.items()}
        found = forward_ad.unpack_dual(total(functional_call(tuned, lent, (x,)))).tangent
    torch.testing.assert_close(found, slope(expected), rtol=1e-4, atol=1e-4)


def slope(gradients: Named) -> torch.Tensor:
    return torch.stack([g.square().sum() for g in gradients.values()]).sum()


def trains(tuned: nn.Module, x: torch.Tensor) -> bool:
    y = tuned(x)
    y.sum().backward()
    return y.shape == (3, 3) and all((p.grad is not None) == p.requires_grad for p in tuned.parameters())


def test_tensors_without_values(case: tuple[utc.TunedModule, Named, torch.Tensor]) -> None:
    tuned, _, x = case
    mode = FakeTensorMode()
    fake = copy.deepcopy(tuned)
    for module in fake.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(p.detach()), p.requires_grad)
        module._buffers.update({name: mode.from_tensor(b) for name, b in module._buffers.items() if b is not None})
    with mode:
        assert trains(fake, mode.from_tensor(x))
    assert trains(copy.deepcopy(tuned).to("meta"), x.to("meta"))


def test_distributed_tensors(case: tuple[utc.TunedModule, Named, torch.Tensor], group: None) -> None:
    from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor, init_device_mesh

    tuned, expected, x = case
    mesh = init_device_mesh("cpu", (1,))
    tuned = distribute_module(copy.deepcopy(tuned), mesh)  # type: ignore[assignment]
    total(tuned(distribute_tensor(x, mesh))).backward()
    found = {n: p.grad.full_tensor() for n, p in tuned.named_parameters() if isinstance(p.grad, DTensor)}
    assert same(found, expected)


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    with one_process_group():
        yield


def test_checkpointing_around_the_model_frees_all(case: tuple[utc.TunedModule, Named, torch.Tensor]) -> None:
    tuned, expected, x = case
    x = x.clone().requires_grad_()
    assert saved_bytes(tuned, lambda: tuned(x)) > 4 * x.nbytes
    assert saved_bytes(tuned, lambda: checkpoint(tuned, x, use_reentrant=False)) <= x.nbytes
    total(checkpoint(tuned, x, use_reentrant=False)).backward()
    assert same({n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}, expected)

"""Tuned modules as other libraries wrap them: compiled, prepared by accelerate, sharded, in data parallel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from support import models as zoo
from support.processes import one_process_group
from support.transformer_toys import RULES, Transformer
from torch import nn
from torch._dynamo.testing import CompileCounter

import utcompile as utc


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, utc.CapturedModule, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Transformer().eval(), torch.randn(2, 5, 6)
    return model, utc.capture(model, (x,)), x


Made = tuple[nn.Module, utc.CapturedModule, torch.Tensor]


def tuned_of(made: Made, rules: str = "lora/all_linear") -> utc.TunedModule:
    torch.manual_seed(0)
    tuned = utc.match(copy.deepcopy(made[1]), rules).apply()
    zoo.shake(tuned, 0.3)
    return tuned.eval()


def check_switch(call: Callable[..., torch.Tensor], given: nn.Module, made: Made, tolerance: float = 1e-5) -> None:
    """A wrapped model computes the base's in the context, its own outside, and again."""
    model, _, x = made
    with torch.no_grad():
        expected, changed = model(x), call(x)
        assert not torch.allclose(expected, changed, atol=3 * tolerance)
        for _ in range(2):
            with utc.disable_tuners(given):
                torch.testing.assert_close(call(x), expected, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(call(x), changed, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rules", [k if k == "weights" else pytest.param(k, marks=pytest.mark.full) for k in RULES])
def test_a_compiled_model_is_compiled_once_for_each_choice(made: Made, rules: str) -> None:
    tuned = tuned_of(made, RULES[rules])
    counter = CompileCounter()
    compiled = torch.compile(tuned, backend=counter, fullgraph=True)
    check_switch(compiled, tuned, made)
    check_switch(compiled, compiled, made)  # type: ignore[arg-type]
    with torch.no_grad(), utc.disable_tuners(tuned), utc.disable_tuners(compiled):  # type: ignore[type-var]
        torch.testing.assert_close(compiled(made[2]), made[0](made[2]))
    assert counter.frame_count == 2


def test_many_models_are_compiled_in_one_process() -> None:
    """`torch.compile` stops at eight compilations of one code object, and a sweep has more models than four."""
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(4, 2)
    plan = utc.match(utc.capture(model, x), "lora/all_linear", vars={"r": 1})
    for _ in range(5):
        tuned = plan.apply()
        zoo.shake(tuned, 0.3)
        compiled = torch.compile(tuned, backend="eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), tuned(x))
            with utc.disable_tuners(tuned):
                torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.full
def test_a_compiled_function_may_switch_inside(made: Made) -> None:
    tuned, (model, _, x) = tuned_of(made), made

    @torch.compile(backend="eager")
    def divergence(x: torch.Tensor) -> torch.Tensor:
        with utc.disable_tuners(tuned):
            reference = tuned(x)
        return tuned(x) - reference

    with torch.no_grad():
        torch.testing.assert_close(divergence(x), tuned(x) - model(x))


@pytest.fixture
def no_accelerator() -> Iterator[None]:
    """Accelerate has one state for a process, and refuses a second precision: others may have made one before."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_accelerator")
def test_accelerate_keeps_the_forward_of_a_model_and_sees_the_choice(made: Made) -> None:
    from accelerate import Accelerator

    tuned = tuned_of(made)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(tuned)
    check_switch(prepared, prepared, made, tolerance=3e-2)  # bfloat16
    torch.testing.assert_close(copy.deepcopy(tuned_of(made))(made[2]), tuned_of(made)(made[2]))


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    with one_process_group():
        yield


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("reshard", [True, False])
def test_a_sharded_model(made: Made, group: None, dtype: torch.dtype | None, reshard: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    tuned = tuned_of(made)
    mesh, policy = init_device_mesh("cpu", (1,)), MixedPrecisionPolicy(dtype, output_dtype=torch.float32)
    fully_shard(tuned, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    check_switch(tuned, tuned, made, tolerance=1e-5 if dtype is None else 5e-2)
    tuned(made[2]).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in tuned.parameters())


def test_a_model_in_distributed_data_parallel(made: Made, group: None) -> None:
    tuned = tuned_of(made)
    wrapped = nn.parallel.DistributedDataParallel(tuned)
    check_switch(wrapped, wrapped, made)
    alone = tuned_of(made)
    for module in (alone, wrapped):
        module(made[2]).square().sum().backward()
    for name, parameter in alone.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(tuned.get_parameter(name).grad, parameter.grad)

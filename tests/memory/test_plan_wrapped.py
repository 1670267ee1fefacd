"""A planned module in data parallel over two processes, and compiled by torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import architectures
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import utcompile as utc
from utcompile.memory.units import units_of

CASES = {"vit of two blocks": "lora/all_linear", "convnet": "lora/all_conv"}


def planned(kind: str) -> tuple[utc.TunedModule, dict[str, Any]]:
    """A module with a plan in which blocks run again, off its start, and its inputs of four samples."""
    model, inputs = architectures.make(kind)
    torch.manual_seed(0)  # what was made before drew numbers, or did not
    inputs = {name: torch.cat([value] * 4)[:4] for name, value in inputs.items()}
    inputs = {name: value + torch.randn_like(value) for name, value in inputs.items()}
    tuned = utc.compile(model, CASES[kind], inputs, verify="shapes")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    tuned.memory = type(tuned.memory)(tuple((u.first, u.last) for u in units[1::2]))
    assert tuned.memory.again
    return tuned, inputs


def loss(module: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    result = module(**inputs)
    parts = result.values() if isinstance(result, dict) else [result]
    return torch.stack([part.square().mean() for part in parts]).sum()


def process(rank: int, folder: str, kind: str, how: str) -> None:
    """One of two: its half of the batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    tuned, inputs = planned(kind)
    half = {name: value[2 * rank : 2 * rank + 2] for name, value in inputs.items()}
    parallel, parts = _wrapped(tuned, how)  # DDP's reducer ends with it
    for part in parts:
        assert part.memory is not None and bool(part.memory.again), part
    loss(parallel, half).backward()
    flat = tuned if how == "ddp" else parallel.as_one_graph()
    grads = {n: _whole(p.grad) for n, p in flat.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save(grads, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def _wrapped(tuned: utc.TunedModule, how: str) -> tuple[Any, list[Any]]:
    """A module for two processes, and the parts of it in which units run again."""
    if how == "ddp":
        return DistributedDataParallel(tuned), [tuned]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    if how == "fsdp":
        return fully_shard(tuned, mesh=mesh), [tuned]
    nested = tuned.nested("blocks.*")
    blocks = list(nested.get_submodule("blocks").children())
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(nested, mesh=mesh), blocks[1:]


def _whole(grad: torch.Tensor | None) -> torch.Tensor:
    assert grad is not None
    whole: torch.Tensor = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return whole


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "how"), [*((kind, how) for kind in CASES for how in ("ddp", "fsdp")), ("vit of two blocks", "by block")]
)
def test_two_processes_have_the_gradients_of_one(kind: str, how: str, tmp_path: Path) -> None:
    mp.spawn(process, (str(tmp_path), kind, how), nprocs=2)
    tuned, inputs = planned(kind)
    tuned.memory = None
    loss(tuned, inputs).backward()
    expected = {n: p.grad for n, p in tuned.named_parameters() if p.requires_grad}
    found = torch.load(tmp_path / "gradients.pt")
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad is not None
        # float32, means of halves instead of one of all
        assert (found[name] - grad).abs().max() <= 1e-4 * grad.abs().max() + 1e-7, name


@pytest.mark.full
@pytest.mark.parametrize("kind", CASES)
def test_a_compiled_module_has_the_same_gradients(kind: str) -> None:
    """`torch.compile` sees the plain graph, and its own partitioner decides what is kept."""
    tuned, inputs = planned(kind)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    gradients = []
    for module, call in ((tuned, torch.compile(tuned, backend="aot_eager", fullgraph=True)), (plain, plain)):
        loss(call, inputs).backward()
        gradients.append([p.grad for p in module.parameters() if p.requires_grad])
    for found, expected in zip(*gradients, strict=True):
        assert found is not None and expected is not None
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-7  # sums in another order


FRESH = """
import torch, utcompile as utc
layers = torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)
x = torch.randn(4, 8)
tuned = utc.compile(torch.nn.Sequential(*layers), "lora/all_linear", (x,), vars={"r": 2})
assert torch.equal(torch.compile(tuned, backend="eager", fullgraph=True)(x), tuned(x))
from torch._dynamo.trace_rules import get_torch_obj_rule_map as table
assert {torch.compiler.is_compiling, torch.is_grad_enabled} <= table().keys()
"""


@pytest.mark.full
def test_a_fresh_process_compiles_what_it_captured() -> None:
    """What capture replaces for its time must not stay in torch.compile's table of functions."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr

"""Two processes with gloo on a CPU: what each does with a sharded or replicated model is compared with one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import utcompile as utc
from support import models as zoo
from support.transformer_toys import Transformer
from utcompile.rewrite import checkpoint

NEAR = 1e-5  # of gradients: sums over processes are in another order


@contextmanager
def one_process_group() -> Iterator[None]:
    """This process as the only one of a group."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def inputs() -> torch.Tensor:
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3))


def tuned_of(rules: str = "lora/all_linear", seed: int = 0) -> utc.TunedModule:
    """The same in every process."""
    torch.manual_seed(0)
    tuned = utc.compile(Transformer().eval(), rules, torch.randn(2, 5, 6), verify="shapes")
    torch.manual_seed(seed)
    zoo.shake(tuned, 0.3)
    return tuned


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a mean over samples, whole, by the tuner's name or that in the base."""
    model.zero_grad()
    model(x).square().mean().backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gather = getattr(parameter.grad, "full_tensor", lambda grad=parameter.grad: grad)
            found[name.rpartition("tuners.")[2].removeprefix("module.")] = gather().float()
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def run_both(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Run a function with rank and count in several processes; an error of one is an error here."""
    mp.start_processes(_begin, (work, count, free_port(), arguments), nprocs=count, start_method="spawn")


def _begin(rank: int, work: Callable[..., None], count: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try:
        work(rank, count, *arguments)
    finally:
        dist.destroy_process_group()


Ended = subprocess.CompletedProcess[str]


def launched(count: int, *arguments: str | Path) -> Ended:
    """`torchrun`, on loopback."""
    return ended([_torchrun(f"--nproc-per-node={count}", f"--master-port={free_port()}", *arguments)])[0]


def accelerated(count: int, *arguments: str | Path) -> Ended:
    """`accelerate launch`, as for several GPUs, on loopback."""
    options = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    started = (f"--num_processes={count}", f"--main_process_port={free_port()}")
    launch = (sys.executable, "-m", "accelerate.commands.launch", *options, *started)
    return ended([[*launch, *map(str, arguments)]])[0]


def on_two_nodes(*arguments: str | Path) -> list[Ended]:
    """`torchrun` twice, as on two machines with one process each, which meet at a port of the first."""
    meet = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    here = ("--rdzv-id=run", "--local-addr=127.0.0.1")
    return ended([_torchrun(*meet, *here, *arguments) for _ in range(2)])


def _torchrun(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]


def ended(commands: list[list[str]]) -> list[Ended]:
    """Run commands at the same time, on CPUs."""
    root = Path(utc.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env) for command in commands]
    try:
        texts = [one.communicate(timeout=500) for one in started]
    finally:
        for one in started:
            one.kill()
    return [Ended(p.args, p.returncode, *text) for p, text in zip(started, texts, strict=True)]


# --- what the processes do


def check_gradients(rank: int, count: int, kind: str, folder: Path) -> None:
    """Wrap a model, compare its gradients with one process, save it from all, and load what another number saved."""
    x = inputs()
    is_half = kind.startswith("half")
    expected = gradients(WRAPPED[kind](tuned_of(), _mesh(alone=True)) if is_half else tuned_of(), x)
    tuned = tuned_of()
    model = WRAPPED[kind](tuned)
    found = gradients(model, x.chunk(count)[rank])
    tolerance = 3e-2 if is_half else NEAR  # in bfloat16, of 8 bits, a share of a batch is rounded by itself
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        error = float((found[name] - gradient).abs().max() / scale)
        assert error <= tolerance, (kind, name, error)
    with torch.no_grad(), utc.disable_tuners(model):
        torch.testing.assert_close(model(x), Transformer.forward(_original(), x), rtol=tolerance, atol=tolerance)
    with patch.object(checkpoint, "write_pair", wraps=checkpoint.write_pair) as written:
        utc.save_tuners(model, folder / kind)
    assert kind == "ddp" or written.called == (rank == 0), "the first process writes what is sharded"
    dist.barrier()
    again = tuned_of(seed=1)
    utc.load_tuners(again, folder / kind)
    for name, value in tuned_of().state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    utc.load_tuners(model, folder / "of_one")  # saved by one process
    other = tuned_of(seed=2)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=tolerance, atol=tolerance)


def _original() -> Transformer:
    torch.manual_seed(0)
    return Transformer().eval()


def _ddp(tuned: utc.TunedModule) -> nn.Module:
    return nn.parallel.DistributedDataParallel(tuned)


def _root(tuned: utc.TunedModule) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(tuned, mesh=_mesh())
    return tuned


def _blocks(tuned: utc.TunedModule) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    nested = tuned.nested("blocks.*")
    for block in nested.get_submodule("blocks").children():
        fully_shard(block, mesh=_mesh())
    fully_shard(nested, mesh=_mesh())
    return nested


def _half(tuned: utc.TunedModule, mesh: Any = None) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh or _mesh()
    nested = tuned.nested("blocks.*")
    for block in nested.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    whole = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    fully_shard(nested, mesh=mesh, mp_policy=whole)
    return nested


def _half_as_a_whole(tuned: utc.TunedModule, mesh: Any = None) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    fully_shard(tuned, mesh=mesh or _mesh(), mp_policy=policy)
    return tuned


def _hybrid(tuned: utc.TunedModule) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(tuned, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards")))
    return tuned


def _mesh(*, alone: bool = False) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if alone:  # each process by itself
        return init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("apart", "one"))["one"]
    return init_device_mesh("cpu", (dist.get_world_size(),))


WRAPPED: dict[str, Callable[..., nn.Module]] = {
    "ddp": _ddp,
    "fsdp": _root,
    "fsdp by block": _blocks,
    "half": _half,
    "half as a whole": _half_as_a_whole,
    "hsdp": _hybrid,
}


def check_shares(rank: int, count: int) -> None:
    """The mean loss and its gradient over a batch that processes share, for losses that are no mean over samples."""
    from utcompile.train.processes import Processes
    from utcompile.train.tasks.base import Counts
    from utcompile.train.tasks.classify import Classify
    from utcompile.train.tasks.regress import Regress
    from utcompile.train.tasks.segment import IGNORED, Segment

    draw = torch.Generator().manual_seed(0)
    weights, classes = torch.tensor([0.2, 1.0, 3.0]), torch.tensor([0, 2, 1, 2, 0])
    pixels = torch.randint(0, 3, (5, 4, 4), generator=draw)
    pixels[0, :3] = IGNORED  # the first process has fewer that count
    pixels[2] = IGNORED
    cases: list[tuple[Any, torch.Tensor, tuple[int, ...]]] = [
        (Classify(3), classes, (5, 3)),
        (Classify(3, label_smoothing=0.1, weights=weights), classes, (5, 3)),
        (Segment(3), pixels, (5, 3, 4, 4)),
        (Segment(3, weights=weights), pixels, (5, 3, 4, 4)),
        (Segment(3), torch.full_like(pixels, IGNORED), (5, 3, 4, 4)),
        (Regress(2, torch.zeros(2), torch.ones(2)), torch.randn(5, 2, generator=draw), (5, 2)),
    ]
    processes = Processes(rank, count)
    for task, targets, shape in cases:
        predictions = torch.randn(shape, generator=draw).requires_grad_()
        expected = task.loss(predictions, targets)
        (gradient,) = torch.autograd.grad(expected, predictions)
        for samples in (5, 1):  # of a batch of one, the second process has nothing, and takes what counts nothing
            mine = slice(rank, None, count) if samples == 5 else slice(0, 1)
            given = targets[mine]
            counted = task.counted(given) if isinstance(task, Counts) else processes.size(samples)
            loss = task.loss(predictions[mine], given)
            value, shared, _ = processes.joined(loss, samples, lambda counted=counted: counted)
            (found,) = torch.autograd.grad(shared, predictions)
            dist.all_reduce(found)
            if samples == 5:
                torch.testing.assert_close(torch.tensor(value), expected.detach(), rtol=NEAR, atol=NEAR)
                torch.testing.assert_close(found / count, gradient, rtol=NEAR, atol=NEAR)
            else:
                torch.testing.assert_close(torch.tensor(value), loss.detach(), rtol=NEAR, atol=NEAR)


def check_all(rank: int, count: int, folder: Path) -> None:
    """Every way of wrapping, in one start of two processes."""
    for kind in WRAPPED:
        check_gradients(rank, count, kind, folder)

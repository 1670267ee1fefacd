"""The processes of one run: under `torchrun` or `accelerate launch` there are several, else one.

Each takes its share of every batch, so that the loss and the gradient are those of one process with the whole batch.
The first process writes the run folder and reports; all validate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject
from utcompile.train.run_folder import STATE, RunFolder
from utcompile.train.run_state import read_state

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator, batch_size: int, prefix_cache: object) -> Processes:
        """The processes of an accelerator.

        Raises:
            UtcError: a batch has fewer samples than there are processes, or a cache is wanted that one process keeps.
        """
        found = cls(accelerator.process_index, accelerator.num_processes)
        if batch_size < found.count:
            raise UtcError(
                f"a batch of {batch_size} cannot be shared by {found.count} processes",
                why="batch_size is that of all processes together",
                fix=f"give a batch_size of {found.count} or more, or start fewer processes",
                code="train/settings",
            )
        if found.count > 1 and prefix_cache is not None:
            raise UtcError(
                "prefix_cache is kept by one process, and this run has several",
                fix="leave out prefix_cache, or train in one process",
                code="train/settings",
            )
        return found

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def wait_for_the_first(self) -> None:
        """The others go on when the first process has called `wait_for_the_others`."""
        if not self.leads:
            self.wait()

    def wait_for_the_others(self) -> None:
        """Let the others go on."""
        if self.leads:
            self.wait()

    def agreed(self, entry: dict[str, float]) -> dict[str, float]:
        """What the first process found: decisions by it are then the same everywhere."""
        if self.count == 1:
            return entry
        found: list[dict[str, float]] = [entry]
        torch.distributed.broadcast_object_list(found, src=0)
        result: dict[str, float] = found[0]
        return result

    def size(self, samples: int) -> int:
        """How many samples of a batch are this process's."""
        return len(range(self.rank, samples, self.count))

    def batches(self, order: Iterable[int], batch_size: int) -> Sampler[list[int]]:
        """This process's share of each batch; where it has none, one sample that counts nothing."""
        return _Shares(BatchSampler(order, batch_size, drop_last=False), self)

    def joined(self, loss: Tensor, samples: int, counted: Callable[[], float]) -> tuple[float, Tensor, float]:
        """The mean over a batch, and this process's loss such that the mean over processes has the batch's gradient.

        The third result is how much the whole batch counts.

        Args:
            loss: the mean over this process's share.
            samples: of the batch.
            counted: how much the share counts: its samples, their weights, or the pixels that are not ignored.
        """
        if self.count == 1:
            return float(loss.detach()), loss, counted()
        mine = counted() if self.size(samples) else 0.0
        both = torch.stack([loss.detach().double() * mine, loss.new_tensor(mine, dtype=torch.float64)])
        torch.distributed.all_reduce(both)
        total, every = both.tolist()
        return (total / every, loss * (mine * self.count / every), every) if every else (0.0, loss * 0.0, 0.0)


class _Shares(Sampler[list[int]]):
    def __init__(self, batches: BatchSampler, processes: Processes) -> None:
        self.batches, self.processes = batches, processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.processes.rank :: self.processes.count] or batch[:1]

    def __len__(self) -> int:
        return len(self.batches)


class FollowedFolder(RunFolder):
    """The folder of a run in a process that does not write it."""

    def start(self) -> None:
        """The first process has made it.

        Raises:
            UtcError: it is not here.
        """
        self._check_shared()

    def resume(self, settings: Mapping[str, object], parts: tuple[str, ...]) -> JsonObject:
        """Load the last checkpoint; the first process has checked the settings.

        Raises:
            UtcError: the folder is not here.
        """
        self._check_shared()
        state = read_state(self.last / STATE, parts)
        self.load(self.last)
        return state

    def _check_shared(self) -> None:
        if not self.out.is_dir():
            raise UtcError(
                "the run folder of the first process is not on this machine",
                where=str(self.out),
                why="every process reads the checkpoints that the first one writes",
                fix="give a folder on a disk that all machines share",
                code="train/run",
            )

    def keep_best(self) -> None:
        """The first process writes it."""

    def keep_last(self, state: Mapping[str, object], history: object) -> None:
        """The first process writes it."""

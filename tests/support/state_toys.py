"""Small models that keep state, read it, or only write it."""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

T = torch.Tensor
CALLS = 0
LOG: list[T] = []
TABLE: dict[str, T] = {}
STATE = SimpleNamespace(n=0)


class Base(nn.Module):
    """One layer, one buffer, a counter and some containers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.n, self.step = 0, 0
        self.log: list[T] = []
        self.cache: dict[str, T] = {}
        self.previous: T | None = None
        self.box = SimpleNamespace(n=0, seen=[])
        self.ring: deque[T] = deque(maxlen=3)
        self.layers = nn.ModuleList([nn.Linear(4, 4)])


# --- read again: errors that name the state -------------------------------------------------------------------------


class Ema(Base):
    def forward(self, x: T) -> T:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.linear(x) - self.mean


class EmaOfAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(4)

    def forward(self, x: T) -> T:
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        return self.linear(x) - self.average


class Decays(Base):
    """Made of state alone, and still other values in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x: T) -> T:
        self.scale = self.scale * 0.9
        return self.linear(x) * self.scale


class Counter(Base):
    def forward(self, x: T) -> T:
        self.n += 1
        return self.linear(x) * self.n


class WarmsUp(Base):
    """A counter whose threshold is far away."""

    def forward(self, x: T) -> T:
        self.step += 1
        return self.linear(x) if self.step > 100 else self.linear(x) * 0.5


class EveryTenth(Base):
    def forward(self, x: T) -> T:
        self.step += 1
        return self.linear(x).relu() if self.step % 10 == 0 else self.linear(x)


class Previous(Base):
    def forward(self, x: T) -> T:
        y = self.linear(x)
        out = y if self.previous is None else y + self.previous.mean()
        self.previous = y.detach()
        return out


class Remembers(Base):
    """A list of what earlier calls made."""

    def forward(self, x: T) -> T:
        self.log.append(self.linear(x).mean(0))
        return self.linear(x) + sum(self.log)


class LongLog(Base):
    """The length of a list, beyond a threshold."""

    def forward(self, x: T) -> T:
        self.log.append(x)
        return self.linear(x) * (2 if len(self.log) > 20 else 1)


class Recent(Base):
    def forward(self, x: T) -> T:
        self.ring.append(self.linear(x).mean(0))
        return self.linear(x) - torch.stack(list(self.ring)).mean(0)


class Grows(Base):
    def forward(self, x: T) -> T:
        self.layers.append(nn.Linear(4, 4))
        for layer in self.layers:
            x = layer(x)
        return x


class ReplacesLayer(Base):
    def forward(self, x: T) -> T:
        y = self.linear(x)
        self.linear = nn.Identity()
        return y


class InABox(Base):
    """The state of a plain object."""

    def forward(self, x: T) -> T:
        self.box.n += 1
        return self.linear(x) + self.box.n


class StaleLength(Base):
    """The length of the call before."""

    def forward(self, x: T) -> T:
        y = self.linear(x) * self.n
        self.n = x.shape[1]
        return y


class GlobalCounter(Base):
    def forward(self, x: T) -> T:
        global CALLS
        CALLS += 1
        return self.linear(x) * CALLS


class GlobalObject(Base):
    def forward(self, x: T) -> T:
        STATE.n += 1
        return self.linear(x) * STATE.n


class ClassCounter(Base):
    total = 0

    def forward(self, x: T) -> T:
        type(self).total += 1
        return self.linear(x) * self.total


class DefaultArgument(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) * self.count()

    def count(self, seen: list[int] = []) -> int:  # noqa: B006 - the fault that this model has
        seen.append(1)
        return len(seen)


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def forward(self, x: T) -> T:
        return self.linear(x) * float(self.random.integers(1, 9) > 0)


class OtherMemory(Base):
    def forward(self, x: T) -> T:
        self.mean.data = 0.9 * self.mean.data + 0.1 * x.mean(0)
        return self.linear(x) - self.mean


class Shrinks(Base):
    """A weight that is given other memory."""

    def forward(self, x: T) -> T:
        self.linear.weight.data = self.linear.weight.data * 0.99
        return self.linear(x)


class InAClosure(Base):
    def __init__(self) -> None:
        super().__init__()
        n = 0

        def times(y: T) -> T:
            nonlocal n
            n += 1
            return y * n

        self.times = times

    def forward(self, x: T) -> T:
        return self.times(self.linear(x))


class InAnArray(Base):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.zeros(2)

    def forward(self, x: T) -> T:
        self.numbers[1] += 1
        return self.linear(x) * float(self.numbers[1])


class FirstCall(Base):
    def __init__(self) -> None:
        super().__init__()
        self.first = True

    def forward(self, x: T) -> T:
        y = self.linear(x)
        if self.first:
            self.first = False
            return y * 2
        return y


class FirstInput(Base):
    """A cache that is none: it keeps what the first input gave."""

    def forward(self, x: T) -> T:
        if "first" not in self.cache:
            self.cache["first"] = x.mean()
        return self.linear(x) * self.cache["first"]


class ActNorm(Base):
    """Weights that the first call makes; Python asks a buffer whether they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("ready", torch.tensor(0))

    def forward(self, x: T) -> T:
        y = self.linear(x)
        if self.ready == 0:
            self.shift.data.copy_(-y.mean(0))
            self.ready.fill_(1)
        return y + self.shift


READ_AGAIN: dict[type[Base], str] = {
    Ema: "mean", EmaOfAttribute: "average", Decays: "scale", Counter: "n", WarmsUp: "step", EveryTenth: "step",
    Previous: "previous", Remembers: "log", LongLog: "log", Recent: "ring", InABox: "box.n",
    StaleLength: "n", GlobalCounter: "support.state_toys.CALLS", GlobalObject: "support.state_toys.STATE.n",
    ClassCounter: "ClassCounter.total", DefaultArgument: "a default of DefaultArgument.count", Grows: "a new Linear",
    ReplacesLayer: "linear", OtherMemory: "mean", Shrinks: "linear.weight", InAClosure: "n in InAClosure",
    InAnArray: "numbers", FirstCall: "first", FirstInput: "cache['first']", ActNorm: "shift, ready",
}  # fmt: skip


# --- never read again: reported -------------------------------------------------------------------------------------


class Shows(Base):
    """Keeps its attention, which no code here reads."""

    def forward(self, x: T) -> T:
        self.previous = self.linear(x).softmax(-1)
        return self.previous @ self.linear.weight


class Counts(Base):
    def forward(self, x: T) -> T:
        self.n += 1
        return self.linear(x)


class Sizes(Base):
    """Sizes kept on the module, and read after they were assigned (PVT, SegFormer)."""

    def forward(self, x: T) -> T:
        self.n, self.step = x.shape
        return self.linear(x).reshape(self.step, self.n)


class BiasCache(Base):
    """LeViT's cache: made of weights alone."""

    def forward(self, x: T) -> T:
        if "bias" not in self.cache:
            self.cache["bias"] = self.linear.bias[[3, 2, 1, 0]]
        return self.linear(x) + self.cache["bias"]


class PositionCache(Base):
    """A cache made of sizes alone, with a size next to it (rotary embeddings)."""

    def forward(self, x: T) -> T:
        if self.previous is None or self.n < x.shape[1]:
            self.n, self.previous = x.shape[1], torch.arange(x.shape[1]) / 10
        return self.linear(x) + self.previous[: x.shape[1]]


class BufferCache(Base):
    """A cache in a registered buffer, which it replaces (ConViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)

    def forward(self, x: T) -> T:
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.eye(x.shape[1]).to(x.dtype)
        return self.linear(x) @ self.table


class UnsetBufferCache(Base):
    """The same in a buffer that is None before the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", None)

    def forward(self, x: T) -> T:
        if self.table is None:
            self.table = self.linear.weight.detach().tril()
        return self.linear(x) @ self.table


class BufferShown(Base):
    """A buffer that is replaced in each call, and that no code here reads."""

    def forward(self, x: T) -> T:
        self.mean = x.mean(0)
        return self.linear(x)


class Logs(Base):
    def forward(self, x: T) -> T:
        self.log.append(self.linear(x))
        self.box.seen.append(x.shape)
        return self.log[-1].relu()


class GlobalLog(Base):
    def forward(self, x: T) -> T:
        LOG.append(x)
        TABLE["last"] = x
        return self.linear(x)


class Moves(Base):
    """Keeps its table where the input is (CTRL's positions)."""

    def forward(self, x: T) -> T:
        self.mean = self.mean.to(device=x.device, dtype=x.dtype)
        return self.linear(x) + self.mean


class HooksItself(Base):
    """Puts hooks on its own layers in its first call, to return what they yield (transformers' hidden states)."""

    hooked = False

    def forward(self, x: T) -> list[T]:
        if not self.hooked:
            self.linear.register_forward_hook(lambda module, args, out: self.log.append(out))
            self.hooked = True
        self.log.clear()
        self.linear(x)
        return list(self.log)


UNREAD: dict[type[Base], tuple[str, ...]] = {
    Shows: ("previous",), Counts: ("n",), Sizes: ("n", "step"), BiasCache: ("cache['bias']",),
    PositionCache: ("n", "previous"), Moves: ("mean",), BufferCache: ("table",),
    UnsetBufferCache: ("table",), BufferShown: ("mean",), HooksItself: ("hooks of its modules", "hooked", "log"), Logs: ("log", "box.seen"),
    GlobalLog: ("support.state_toys.LOG", "support.state_toys.TABLE['last']"),
}  # fmt: skip


# --- written by torch operations: part of the graph -------------------------------------------------------------------


class EmaInPlace(Base):
    def forward(self, x: T) -> T:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.linear(x) - self.mean


class CopiesBack(Base):
    def forward(self, x: T) -> T:
        y = self.linear(x) + self.mean
        self.mean.copy_(y.mean(0))
        return y


class CountsInBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: T) -> T:
        self.steps += 1
        return self.linear(x) / self.steps


class FillsSlots(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slots", torch.zeros(3, 4))

    def forward(self, x: T) -> T:
        self.slots[1] = x.mean(0)
        return self.linear(x) + self.slots.sum(0)


class Normalises(Base):
    def forward(self, x: T) -> T:
        x.div_(255).sub_(0.5)
        return self.linear(x)


class Masks(Base):
    def forward(self, x: T) -> T:
        x[:, 0] = 0
        return self.linear(x)


class Renormalises(Base):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, max_norm=0.5)

    def forward(self, x: T) -> T:
        return self.linear(self.embed(x.abs().long().clamp(max=8)))


class WritesWeight(Base):
    def forward(self, x: T) -> T:
        self.linear.weight.data.mul_(0.5)
        return self.linear(x)


class Slots(Base):
    """A cache of keys in a buffer, and the next free place in another one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(8, 4))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(self, x: T) -> T:
        self.keys.index_copy_(0, self.position.reshape(1), x.mean(0, keepdim=True))
        self.position += 1
        return self.linear(x) + self.keys.sum(0)


class ReturnsIt(Base):
    """The written value is an output as well."""

    def forward(self, x: T) -> T:
        x += 1
        self.mean += 1
        return torch.stack([self.linear(x).mean(0), self.mean])


WRITES = (
    Slots,
    ReturnsIt,
    EmaInPlace,
    CopiesBack,
    CountsInBuffer,
    FillsSlots,
    Normalises,
    Masks,
    Renormalises,
    WritesWeight,
)


# --- random numbers and clocks ------------------------------------------------------------------------------------------


class DrawsPython(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) if random.random() < 2 else x


class DrawsNumpy(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) if np.random.rand() < 2 else x


class ReadsClock(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) if self.now() > 0 else x

    def now(self) -> float:
        return time.perf_counter()


class ReadsUuid(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) if str(uuid.uuid4()) else x


DRAWS = {
    DrawsPython: "Python's random numbers", DrawsNumpy: "NumPy's random numbers", OwnGenerator: "random",
    ReadsClock: "time.perf_counter (state_toys.py", ReadsUuid: "uuid.uuid4 (state_toys.py",
}  # fmt: skip


@lru_cache
def positions(length: int) -> T:
    """A table that Python keeps for the whole process."""
    return torch.arange(length) / 10


class ProcessCache(Base):
    def forward(self, x: T) -> T:
        return self.linear(x) + positions(x.shape[1])

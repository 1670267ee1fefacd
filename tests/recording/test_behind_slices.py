"""Sizes behind what may be cut off: right at every size, or a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc

T = torch.Tensor


class Joined(nn.Module):
    """Rows that are cut off, next to as many zeros."""

    def __init__(self, cut: Callable[[T], T]) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: T) -> T:
        h = self.cut(x)
        return torch.cat([h, torch.zeros(h.shape[0], 1, 4)], 1)


class Rows(nn.Module):
    """A number of rows that is padded to a multiple of three, and counted."""

    def forward(self, x: T) -> T:
        h = x[:2]
        h = F.pad(h, (0, 0, 0, 0, 0, -h.shape[0] % 3))
        return h * len([*h])


CUTS = {
    "a constant": lambda x: x[:6],
    "from the end": lambda x: x[-6:],
    "a size that does not vary": lambda x: x[: min(x.shape[1], 6)],
    "narrow": lambda x: x.narrow(0, 0, min(x.shape[0], 6)),
    "topk": lambda x: x.topk(min(x.shape[0], 6), 0).values,
    "from a start": lambda x: x[3:],
}


def _calls(model: nn.Module, example: int) -> dict[int, str]:
    captured = utc.capture(model, torch.randn(example, 8, 4))
    found = {}
    for batch in (1, 2, 3, 5, 6, 7, 12):
        x = torch.randn(batch, 8, 4)
        try:
            found[batch] = "equal" if torch.equal(captured(x), model(x)) else "WRONG"
        except utc.UtcError:
            found[batch] = "guard"
    return found


@pytest.mark.parametrize("example", [6, 9, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_rows_that_are_cut_off(cut: str, example: int) -> None:
    found = _calls(Joined(CUTS[cut]), example)
    assert set(found.values()) <= {"equal", "guard"}
    assert found[12 if example > 6 else example] == "equal"


@pytest.mark.parametrize("example", [1, 2, 4])
def test_rows_that_are_counted(example: int) -> None:
    assert set(_calls(Rows(), example).values()) <= {"equal", "guard"}


def test_a_number_that_is_computed_gives_rows_that_are_right_everywhere() -> None:
    assert set(_calls(Joined(CUTS["narrow"]), 7).values()) == {"equal"}


class Halved(nn.Module):
    """Rows by the number of those that are left, which is nought in two recordings of three."""

    def __init__(self, number: Callable[[T], float]) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: T) -> T:
        h = x[3:] if x.shape[1] >= 8 else x
        return h + self.number(h)


@pytest.mark.parametrize(
    "number", [lambda h: float(h.shape[0]), lambda h: h.shape[0] // 2, lambda h: h.numel() / 4, lambda h: len(h)]
)
def test_a_size_that_is_cut_off_in_some_recordings_only_is_read(number: Callable[[T], float]) -> None:
    model = Halved(number)
    captured = utc.capture(model, torch.randn(2, 12, 4), dynamic={"x": {0: "B", 1: "L"}})
    for batch in (1, 2, 3, 4, 7, 12):
        x = torch.randn(batch, 12, 4)
        assert torch.equal(captured(x), model(x)), batch


class Counted(nn.Module):
    """A number in the input is a bound or a size, and what it makes is counted."""

    def __init__(self, make: Callable[[T, T], T]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: T, k: T) -> T:
        h = self.make(x, k)
        return h.sum() / (h.shape[0] + 1) * (h.shape[0] // 2)


SIZED = {
    "stop": lambda x, k: x[:k],
    "start": lambda x, k: x[k:],
    "step": lambda x, k: x[::k],
    "narrow": lambda x, k: x.narrow(0, 0, k),
    "repeat": lambda x, k: x.repeat(k, 1),
    "zeros": lambda x, k: x.new_zeros(k) + 1,
    "arange": lambda x, k: torch.arange(k),
    "pad": lambda x, k: F.pad(x, (0, 0, 0, k)),
}


@pytest.mark.parametrize("how", SIZED)
def test_a_size_that_a_number_in_the_input_makes_is_read(how: str) -> None:
    model, x = Counted(SIZED[how]), torch.randn(8, 4)
    captured = utc.capture(model, (x, torch.tensor(1)), dynamic={})
    for k in (1, 2, 3, 5, 8):
        assert torch.equal(captured(x, torch.tensor(k)), model(x, torch.tensor(k))), k


class Normed(nn.Module):
    """A layer norm over sizes that were padded by as much as a length, up to six."""

    def __init__(self, then: Callable[[T], T]) -> None:
        super().__init__()
        self.then = then

    def forward(self, x: T) -> T:
        h = self.then(F.pad(x, (0, 0, 0, min(x.shape[1], 6))))
        return F.layer_norm(h, h.shape[1:])


THEN = {
    "unfold of a tensor": lambda h: h.unfold(0, 2, 1).mean(-1),
    "unbatched convolution": lambda h: F.conv2d(h[:2], torch.ones(3, 2, 1, 1)),
    "pool": lambda h: F.max_pool1d(h, 2),
    "transposed pool": lambda h: F.avg_pool2d(h[None], 1)[0],
}


@pytest.mark.parametrize("then", THEN)
def test_what_has_no_batch_and_channels_keeps_what_is_inexact(then: str) -> None:
    model = Normed(THEN[then])
    captured = utc.capture(model, torch.randn(3, 5, 4), dynamic={"x": {0: "B", 1: "L"}})
    for size in ((3, 5), (2, 4), (7, 33), (5, 9)):
        x = torch.randn(*size, 4)
        try:
            found = captured(x)
        except utc.UtcError:
            continue
        assert torch.equal(found, model(x)), size

"""A size in a text: of a message it decides nothing, of anything else it does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import utcompile as utc

T = torch.Tensor
logger = logging.getLogger(__name__)


class By(nn.Module):
    def __init__(self, number: Callable[[int], float]) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: T) -> T:
        return x * self.number(x.shape[0])


def compilable_check(condition: bool, message: str) -> int:
    """As transformers names its own."""
    if not condition:
        raise ValueError(message)
    return len(message)


def ensure(condition: bool, *, message: str) -> None:
    compilable_check(condition, message)


def validate_rows(condition: bool, message: str, kind: type[Exception]) -> None:
    if not condition:
        raise kind(message)


def told(n: int) -> float:
    assert n < 4000, f"too many: {n}"
    torch._assert(n < 4000, f"too many: {n}")
    torch._check(n < 4000, lambda: f"too many: {n}")
    compilable_check(n < 4000, f"too many: {n}")
    ensure(n < 4000, message=f"too many: {n}")
    validate_rows(n < 4000, f"too many: {n}", ValueError)
    logger.debug("%s rows", n)
    logger.debug(
        f"{n} rows"  # over several lines
    )
    print(n, end="")  # noqa: T201 - what is tested
    warnings.warn(f"{n} rows", stacklevel=1)
    if n > 5000:
        raise ValueError(f"too many: {n}")
    return 1.0


def first_digit(n: int) -> float:
    return int(str(n * 5)[0])  # "log" is in the line behind: logits


def last_digit(n: int) -> float:
    if n > 5000:
        raise ValueError(n)
    return int(f"{n * 2}"[-1])


def of_an_assertion(n: int) -> float:
    assert f"{n}" != "7"
    return 1.0


def of_a_check(n: int) -> float:
    return 1.0 + compilable_check(n < 4000, f"{n}")  # the length of the text


def checkpoint(run: Callable[[str], float], text: str) -> float:
    return run(text)


def of_a_checkpoint(n: int) -> float:
    return checkpoint(lambda text: float(text[-1]), f"{n}")


def key(n: int) -> float:
    return {"2": 1.0, "3": 1.0, "5": 1.0}.get(f"{n}", 2.0)


@pytest.mark.filterwarnings("ignore")
def test_the_text_of_a_message_is_no_guard(capsys: pytest.CaptureFixture[str]) -> None:
    captured = utc.capture(By(told), torch.randn(3, 4))
    assert [g.relation for g in captured.guards] == ["B <= 3999"]


@pytest.mark.parametrize("number", [first_digit, last_digit, of_an_assertion, of_a_check, of_a_checkpoint, key])
def test_any_other_text_of_a_size_is(number: Callable[[int], float]) -> None:
    model = By(number)
    captured = utc.capture(model, torch.randn(3, 4))
    for n in (1, 2, 3, 4, 6, 7, 11, 52):
        x = torch.randn(n, 4)
        try:
            found = captured(x)
        except utc.UtcError:
            continue
        assert torch.equal(found, model(x)), n

"""Whether a model's tuners are off, for each thread and each context by itself."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass


@dataclass(eq=False)
class Choice:
    """One open `disable_tuners` (or the inverse of it), and the one that was open around it.

    Attributes:
        off: whether the tuners are off.
        outer: the choice that was made before; None for a switch, which is the first.
        is_open: whether its context has not ended.
        is_last: whether nothing lies outside it: true of a switch alone.
        token: takes it back in the context in which it was made.
        checkpoints: how many calls of `torch.utils.checkpoint` it was made inside of.
        has_gradients: whether it was made where gradients are on.
    """

    off: bool
    outer: Choice | None = None
    is_open: bool = True
    is_last: bool = False
    token: Token[Choice] | None = None
    checkpoints: int = 0
    has_gradients: bool = True


class Switch(Choice):
    """A model's own switch, and the choice where no context is open: the tuners are on.

    A choice is made in the present `contextvars.Context`: other threads do not see it, asyncio tasks that are created
    inside do. A choice that has ended is over everywhere, in whichever thread and order it ended.
    """

    variable: ContextVar[Choice]
    innermost: Choice

    def open(self, off: bool) -> Choice:
        """Make a choice in the present context."""
        choice = Choice(off, self.innermost)
        choice.token = self.variable.set(choice)
        return choice

    def close(self, choice: Choice) -> None:
        """End a choice, and forget in the present context what has ended."""
        choice.is_open = False
        if self.innermost is choice:
            assert choice.token is not None
            with suppress(ValueError):  # it was made in another context, which ended before this one
                self.variable.reset(choice.token)
        if not (self.innermost.is_open or self.innermost.is_last):
            self.variable.set(present(self.innermost))


def make_switch() -> Switch:
    """A new switch, for one model.

    `torch.compile` takes a property over a C function for free of side effects and evaluates it in its guards, so that
    a compiled model looks the choice up in each call. It guards on what the loop of `is_off` reads: `is_open` and `off`
    of the innermost choice, and not on which one this is.
    """
    variable: ContextVar[Choice] = ContextVar("utcompile_choice")
    kind = type("Switch", (Switch,), {"variable": variable, "innermost": property(variable.get)})
    switch: Switch = kind(off=False, is_open=False, is_last=True)
    return switch


def is_off(switch: Switch) -> bool:
    """Whether the tuners are off here."""
    return present(switch.innermost).off


def present(choice: Choice) -> Choice:
    """The innermost choice that has not ended, from one on outwards."""
    while not (choice.is_open or choice.is_last):
        assert choice.outer is not None
        choice = choice.outer
    return choice

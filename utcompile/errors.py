"""The one base class of every error that a user can cause."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, Self, TypeVar

from utcompile.error_codes import UNKNOWN

_P = ParamSpec("_P")
_T = TypeVar("_T")


class UtcError(Exception):
    """What went wrong, where, why, and how to fix it.

    Args:
        what: one sentence that names the thing that is wrong.
        where: a place: `rules.yaml:14:7`, a module path, a source line.
        why: the reason, with the values that failed.
        fix: what to do about it.
        code: the kind of problem, such as `match/count`: a key of `utcompile.error_codes.CODES`, or your own.

    Example:
        >>> fix = "did you mean 'lora'?"
        >>> error = UtcError("unknown tuner kind 'lore'", where="r.yaml:3:9", fix=fix, code="tuner/unknown")
        >>> print(error)
        r.yaml:3:9: unknown tuner kind 'lore'
          fix: did you mean 'lora'?
        >>> error.code
        'tuner/unknown'
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
        code: str = UNKNOWN,
    ) -> None:
        # no call of Exception's own: its `__new__` has kept `what`, and torch.compile could not trace it
        self.what, self.where, self.why, self.fix, self.code = what, where, why, fix, code

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        lines += [f"  {label}: {text}" for label, text in (("why", self.why), ("fix", self.fix)) if text]
        return "\n".join(lines)

    def brief(self) -> str:
        """What and where, on one line."""
        return f"{self.what} ({self.where})" if self.where else self.what.splitlines()[0]

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.why, self.fix, self.code)

    def within(self, context: str = "", *, where: str | None = None) -> Self:
        """The same error with the context of a caller: the one way to add to an error.

        Args:
            context: goes in front of what is wrong: `rule 'dual' at blocks.0`.
            where: the place, for an error that has none.

        Example:
            >>> print(UtcError("no weight", fix="use parallel").within("rule 'a'", where="r.yaml:3:9"))
            r.yaml:3:9: rule 'a': no weight
              fix: use parallel
        """
        what = f"{context}: {self.what}" if context else self.what
        return type(self)(what, where=self.where or where, why=self.why, fix=self.fix, code=self.code)


class GuardError(UtcError):
    """A call of a captured model that its guards refuse: the model's own Python code would run otherwise."""


def _rebuild(
    cls: type[UtcError], what: str, where: str | None, why: str | None, fix: str | None, code: str
) -> UtcError:
    return cls(what, where=where, why=why, fix=fix, code=code)


def check_type(value: object, kinds: type | tuple[type, ...], what: str, wanted: str) -> None:
    """Raise where an argument that is no flag is of another type.

    >>> check_type(3, str, "path", "a text")
    Traceback (most recent call last):
    utcompile.errors.UtcError: path must be a text, not 3
    """
    if not isinstance(value, kinds) or isinstance(value, bool):  # which Python takes for a number
        raise UtcError(f"{what} must be {wanted}, not {value!r:.60}", code="arguments/type")


def known_arguments(otherwise: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorator: an argument that a function does not have is a `UtcError`, where Python raises a TypeError.

    Args:
        otherwise: what to do where no argument of the function has a similar name; `{name!r}` is the name.
    """

    def decorated(function: Callable[_P, _T]) -> Callable[_P, _T]:
        known = inspect.signature(function).parameters

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in kwargs:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                    fix = f"did you mean {near[0]!r}?" if near else otherwise.format(name=name)
                    raise UtcError(f"{function.__name__} has no argument {name!r}", fix=fix, code="arguments/unknown")
            return function(*args, **kwargs)

        return checked

    return decorated


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or the list of them.

    >>> did_you_mean("atention", ["attention", "ffn"])
    "did you mean 'attention'?"
    >>> did_you_mean("zzz", ["attention", "ffn"])
    'known: attention, ffn'
    """
    names = sorted(set(map(str, known)))
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return f"known: {shown}" if names else "there are none"

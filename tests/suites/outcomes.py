"""What came of a model from elsewhere: equal, one UtcError, or a fault."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import utcompile as utc

EQUAL = "equal"


def outcome(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *others: tuple[Any, ...]) -> str | None:
    """Capture a model and call both: "equal", "refused: …" or "WRONG: …"; None where the model itself fails.

    Args:
        others: positional arguments of further calls.
    """
    with warnings.catch_warnings(), torch.no_grad(), without_fast_path():
        warnings.simplefilter("ignore")
        try:
            expected = [_run(_frozen(model), a, kwargs) for a in (args, *others)]
        except Exception:  # whatever a model raises
            return None
        try:
            captured = utc.capture(model, by_name(model, cloned(args), cloned(kwargs)))
            found = [_run(copy.deepcopy(captured), a, kwargs) for a in (args, *others)]
        except utc.UtcError as error:
            return f"refused: {error.brief()}"
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:300]
    try:
        # to the bit, unless the report says that the roundings are others
        exact = {} if "other roundings" in captured.report.verified else {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(found, expected, equal_nan=True, **exact)
    except AssertionError as difference:
        return f"WRONG: {difference}"[:300]
    return EQUAL


def faults(outcomes: Iterable[tuple[str, str | None]], allowed: dict[str, str]) -> str:
    """The outcomes that may not be, one per line.

    Args:
        outcomes: name and outcome of each model.
        allowed: names that may be refused, to the reason.
    """
    return "\n".join(
        f"{name}: {found}"
        for name, found in outcomes
        if found not in (None, EQUAL) and not (found.startswith("refused") and name.split("[")[0] in allowed)
    )


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return model(*cloned(args), **cloned(kwargs))


def _frozen(model: nn.Module) -> nn.Module:
    """A copy without gradients, as a capture is: torch chooses kernels by that, also under `no_grad`."""
    return copy.deepcopy(model).requires_grad_(False)


def cloned(value: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone(), value)


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments as `capture` takes them: positional, or by name where some are given by name."""
    if not kwargs:
        return args
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    named = next((n for n, p in bound.signature.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    return {n: v for n, v in bound.arguments.items() if n != named} | bound.arguments.get(named, {})


class without_fast_path:
    """Equality is with what `nn.TransformerEncoderLayer` computes from its submodules."""

    def __enter__(self) -> None:
        self._before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._before)

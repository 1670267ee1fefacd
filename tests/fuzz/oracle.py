"""The oracle: the model itself, called with the same inputs as its capture."""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import utcompile as utc

from .program import Call, Program

Capture = Callable[..., Any]


@dataclass
class Outcome:
    """What came of one program.

    Attributes:
        equal, guarded, refused, invalid: how many calls were equal, refused by a check in the call, not possible
            because the capture was refused, and not possible because the model itself fails on them.
        unwritten: equal calls after which the call's own arguments differ: the model writes them in place, a capture need not.
        reasons: of refusals, with the numbers left out.
        wrong: (where, what) of each thing that is neither equal nor a UtcError.
        messages: the refusals in full.
    """

    equal: int = 0
    guarded: int = 0
    refused: int = 0
    invalid: int = 0
    unwritten: int = 0
    reasons: list[str] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    captured: bool = True
    runs: bool = True

    def refuse(self, where: str, error: utc.UtcError) -> None:
        self.reasons.append(f"{where}: {_kind(error)}")
        self.messages.append(f"{where}: {error}")


def judge(program: Program, capture: Capture = utc.capture) -> Outcome:
    """Capture a program's model, call both, and compare bit for bit."""
    # a graph module that fails prints its code
    with _module(program) as module, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return _judge(program, module, capture)


def _judge(program: Program, module: types.ModuleType, capture: Capture) -> Outcome:
    outcome = Outcome()
    try:
        torch.manual_seed(0)
        model = module.Model().eval().requires_grad_(False)
        pristine = copy.deepcopy(model)
        copy.deepcopy(model)(*_values(module, program.example))
    except Exception:  # whatever a random model raises
        outcome.runs = False
        return outcome
    captured = _capture(program, module, model, capture, outcome)
    if outcome.wrong:
        return outcome
    difference = _differs(_state(pristine), _state(model))
    if difference:
        outcome.wrong.append(("capture", f"changed the model: {difference}"))
    for sequence in program.calls:
        _compare(sequence, module, copy.deepcopy(pristine), copy.deepcopy(captured), outcome)
    return outcome


def _capture(program: Program, module: types.ModuleType, model: nn.Module, capture: Capture, outcome: Outcome) -> Any:
    given, kept = _values(module, program.example), _values(module, program.example)
    dynamic = eval(program.dynamic)
    try:
        captured = capture(model, given, dynamic=dynamic)
    except utc.UtcError as error:
        outcome.captured = False
        outcome.refuse("capture", error)
        return None
    except Exception as error:
        outcome.wrong.append(("capture", f"traceback {_brief(error)}"))
        return None
    difference = _differs(kept, given)
    if difference:
        outcome.wrong.append(("capture", f"changed the example: {difference}"))
    return captured


def _compare(
    sequence: tuple[Call, ...], module: types.ModuleType, model: nn.Module, captured: Any, outcome: Outcome
) -> None:
    """One sequence of calls on a fresh model and a fresh capture; it ends where one of them does not run."""
    for call in sequence:
        ours, theirs = _values(module, call), _values(module, call)
        with torch.set_grad_enabled(call.grad):
            try:
                expected = model(*theirs)
            except Exception:
                outcome.invalid += 1
                return
            if captured is None:
                outcome.refused += 1
                continue
            try:
                found = captured(*ours)
            except utc.UtcError as error:
                outcome.guarded += 1
                outcome.refuse("call", error)
                return
            except Exception as error:
                outcome.wrong.append((call.label, f"traceback {_brief(error)}"))
                return
        difference = _differs(expected, found)
        if difference:
            outcome.wrong.append((call.label, difference))
            return
        outcome.unwritten += _differs(theirs, ours) is not None
        outcome.equal += 1


@contextlib.contextmanager
def _module(program: Program) -> Iterator[types.ModuleType]:
    """The program as a module with source lines that tracebacks and guards find."""
    name = f"fuzz_program_{program.seed}"
    file, source = f"{name}.py", program.source
    module = types.ModuleType(name)
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[name]
        linecache.cache.pop(file, None)


def _values(module: types.ModuleType, call: Call) -> tuple[Any, ...]:
    values: tuple[Any, ...] = eval(str(call), module.__dict__)
    return values


def _state(model: nn.Module) -> dict[str, Any]:
    """What a module keeps: tensors and attributes of the module's own code."""
    own = set(vars(nn.Module()))
    found: dict[str, Any] = dict(model.state_dict())
    for path, m in model.named_modules():
        found |= {f"{path}.{k}": v for k, v in vars(m).items() if k not in own}
        found[f"{path}.training"] = m.training
    return found


def _differs(a: Any, b: Any, where: str = "output") -> str | None:
    """Where two values differ, or None; NaNs are equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where} is {b.dtype} {list(b.shape)}, not {a.dtype} {list(a.shape)}"
        a, b = a.detach(), b.detach()
        same = torch.equal(a, b) or (torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()))
        return None if same else f"{where} has other values"
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return next(
            filter(None, (_differs(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=False)))), None
        )
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(filter(None, (_differs(a[k], b[k], f"{where}[{k!r}]") for k in a)), None)
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return None
    same = a == b or (a != a and b != b)
    return None if same is True and isinstance(b, type(a)) else f"{where} is {b!r}, not {a!r}"


def _kind(error: utc.UtcError) -> str:
    """An error without its numbers and names."""
    text = error.what if "fails at" not in error.what else error.what.split(" at ")[0]
    text = re.sub(r"the capture holds for.*|because.*", "…", text)
    text = re.sub(r"'[^']*'|\[[^\]]*\]|\S+\.py:\d+\S*|\b\w+=\S+", "…", text)
    return re.sub(r"-?\d[\d.e+-]*", "N", text)[:90]


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100] if str(error).strip() else ''}"

"""Calls of a captured model at sizes that were not recorded: equal to the model's, refused by a guard, or wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

import utcompile as utc
from utcompile.graph import BATCH, Symbol
from utcompile.recording.guards import SizeCheck
from utcompile.recording.inputs import read_inputs

_BATCHES = (1, 7, 17)
_TOLERANCE = 1e-5  # float32, of the largest value: other sizes may take other kernels


@dataclass(frozen=True)
class Beyond:
    """How many calls beyond the recorded sizes came to what; calls that the model itself cannot run are left out.

    Attributes:
        equal: the outputs are the model's.
        refused: a guard refused the call.
        false: of these, those in which the graph computes what the model computes.
        wrong: another result, or an error that is none of ours.
    """

    equal: int = 0
    refused: int = 0
    false: int = 0
    wrong: tuple[str, ...] = ()


def beyond(model: nn.Module, captured: utc.CapturedModule, given: Any, dynamic: Any) -> Beyond:
    """Call both at batches of 1, 7 and 17, and at lengths around and beyond the example's."""
    inputs = read_inputs(model, given, dynamic)
    counts = {"equal": 0, "refused": 0, "false": 0}
    wrong = []
    for sizes in _sizes(inputs.example):
        arguments = inputs.at(sizes)
        shown = ", ".join(f"{s.name}={n}" for s, n in sizes.items())
        try:
            expected = _call(model, arguments)
        except Exception:  # whatever a model raises of sizes that it does not take
            continue
        try:
            found = _call(captured, arguments)
        except utc.UtcError:
            counts["refused"] += 1
            counts["false"] += _is_false(captured, arguments, expected)
        except Exception as error:  # what is no refusal is a fault
            wrong.append(f"{shown}: {type(error).__name__}: {error}"[:200])
        else:
            counts["equal"] += _same(expected, found)
            wrong += [] if _same(expected, found) else [f"{shown}: another result"]
    return Beyond(**counts, wrong=tuple(wrong))


def _sizes(example: Mapping[Symbol, int]) -> Iterator[dict[Symbol, int]]:
    lengths = {s: n for s, n in example.items() if s != BATCH}
    if BATCH in example:
        for batch in _BATCHES:
            yield {**example, BATCH: batch}
    for change in (lambda n: n + 3, lambda n: 2 * n + 1, lambda n: max(1, n - 1), lambda n: 1):
        if lengths:
            yield {**example, **{s: change(n) for s, n in lengths.items()}}


def _call(module: nn.Module, arguments: dict[str, Any]) -> Any:
    """The outputs; some models draw random numbers in eval too (ViLT chooses patches), the same in every call here."""
    torch.manual_seed(0)
    with torch.no_grad():
        return module(**arguments)


def _is_false(captured: utc.CapturedModule, arguments: dict[str, Any], expected: Any) -> bool:
    """Whether the graph without its checks computes what the model computes."""
    try:
        return _same(expected, _call(_unchecked(captured), arguments))
    except Exception:
        return False


def _unchecked(captured: utc.CapturedModule) -> utc.CapturedModule:
    """A copy of a captured module without its guards on sizes."""
    copied = copy.deepcopy(captured)
    for node in list(copied.graph.nodes):
        if isinstance(node.target, SizeCheck):
            copied.graph.erase_node(node)
    copied.recompile()
    return copied


def _same(expected: Any, found: Any) -> bool:
    pairs = [[t for t in pytree.tree_leaves(v) if isinstance(t, torch.Tensor)] for v in (expected, found)]
    return len(pairs[0]) == len(pairs[1]) and all(map(_close, *pairs))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    scale = a.nan_to_num().abs().max().item()
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * max(1.0, scale), equal_nan=True)

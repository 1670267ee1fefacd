"""torch's database of modules, tuned: every layer with parameters gets lora, bias and ssf, is moved, folded and called.

Everything runs in float64. What is folded computes what is tuned, on inputs that nothing has seen; where the folded
model is the original architecture, so does the original layer with its parameters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from support import models as zoo
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_flatten, tree_map_only

import utcompile as utc

from .outcomes import EQUAL, by_name, cloned, without_fast_path

_EVERY = "linear | conv | conv_transpose | embedding | norm | addmm | matmul | lstm | gru | rnn | lstm_cell | gru_cell | rnn_cell | bilinear | prelu"
TUNERS = {
    "lora": "kind: lora, r: 2, alpha: 3",
    "bias": "kind: bias",
    "ssf": "kind: ssf",
}
EXACT = 1e-9  # of the largest output: float64, sums of some hundred terms, folded once
_SAMPLES = 3


class Model(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer(*args)


def rules(tuner: str) -> str:
    return (
        f"version: 1\nname: t\nrules:\n  - name: t\n    match: {{op: {_EVERY}}}\n    on_refusal: skip\n"
        f"    insert: {{weight: h, tuner: {{{TUNERS[tuner]}}}, all_uses: true}}\n"
    )


def tuned_outcome(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tuner: str) -> str | None:
    """`equal`, `refused: …` or `WRONG: …`; None where the layer itself cannot be called."""
    with warnings.catch_warnings(), without_fast_path():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                _call(model, args, kwargs)
        except Exception:  # whatever a layer raises
            return None
        try:
            found = utc.compile(copy.deepcopy(model), rules(tuner), by_name(model, cloned(args), cloned(kwargs)))
            zoo.shake(found, 0.3)
            found.eval()
            folded, report = utc.fold(found)
            plain = _plain(model, folded) if report.is_original else None
        except utc.UtcError as error:
            return f"refused: {error.brief()}"
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:300]
        return _compared(model, found, [m for m in (folded, plain) if m is not None], args, kwargs)


def _compared(
    model: nn.Module, tuned: nn.Module, others: list[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    generator = torch.Generator().manual_seed(3)
    args, kwargs = (
        tree_map_only(torch.Tensor, lambda t: _fresh(t, generator), value) for value in (cloned(args), cloned(kwargs))
    )
    with torch.no_grad():
        try:
            expected, base = _call(tuned, args, kwargs), _call(model, args, kwargs)
            found = [_call(other, args, kwargs) for other in others]
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {error}"[:300]
    if all(_error(a, b) == 0 for a, b in zip(expected, base, strict=True)):
        return "WRONG: the tuners change nothing"
    worst = max(_error(a, b) for every in found for a, b in zip(expected, every, strict=True))
    return EQUAL if worst < EXACT else f"WRONG: folded differs by {worst:.1e}"


def _plain(model: nn.Module, folded: nn.Module) -> nn.Module:
    original = copy.deepcopy(model)
    original.load_state_dict(folded.state_dict())
    return original


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    leaves, _ = tree_flatten(model(*cloned(args), **cloned(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _fresh(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Other numbers of the same kind; masks and indices stay, which say what is allowed."""
    if not tensor.is_floating_point() or bool(torch.isinf(tensor).any()) or not bool((tensor != 0).any()):
        return tensor
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a.nan_to_num(), b.nan_to_num()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() if a.numel() else 0.0


def _samples(info: Any) -> Iterator[tuple[str, Callable[[], nn.Module], Any]]:
    dtype = torch.float64 if torch.float64 in info.dtypes else next(iter(info.dtypes))
    given = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    for i, sample in enumerate(islice((s for s in given if s.forward_input is not None), _SAMPLES)):

        def make(sample: Any = sample) -> nn.Module:
            torch.manual_seed(0)
            module: nn.Module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            return module.to(dtype).eval().requires_grad_(False)

        yield f"{info.name}[{i}]", make, sample.forward_input
        if not sample.forward_input.kwargs:  # as a layer of a model, too, which stays one call in the graph
            yield f"{info.name}[{i}] in a model", lambda make=make: Model(make()), sample.forward_input


def outcomes(tuner: str) -> dict[str, str]:
    """Of every layer of the database that has parameters."""
    from torch.testing._internal.common_modules import module_db

    found: dict[str, str] = {}
    for info in module_db:
        if issubclass(info.module_cls, LazyModuleMixin):
            continue  # no weights before the first call
        for name, make, given in _samples(info):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = make()
            if next(model.parameters(), None) is None:
                continue
            result = tuned_outcome(model, given.args, given.kwargs, tuner)
            if result is not None:
                found[name] = result
    return found


@pytest.mark.full
@pytest.mark.parametrize("tuner", TUNERS)
def test_every_layer_of_torch_tuned(tuner: str) -> None:
    found = outcomes(tuner)
    assert [f"{name}: {said}" for name, said in found.items() if said.startswith("WRONG")] == []

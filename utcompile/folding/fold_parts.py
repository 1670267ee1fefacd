"""The fold of a model of which parts are tuned: the user's own class again, with the folded weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.folding.inputs import ProofInputs, evaluated, outputs_of
from utcompile.folding.lowest_dtype import LowestDtype
from utcompile.folding.report import FoldReport
from utcompile.folding.whole import Difference, is_proven
from utcompile.graph import UtcGraphModule, every_name, full_precision, owner_of, path_in
from utcompile.graph.difference import relative_error
from utcompile.graph.nested import map_tensors, tensors
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import cut_ties, owned
from utcompile.rewrite import KEPT, Whole, count_parameters, fit_sizes, replace_module

FoldOne = Callable[[nn.Module], tuple[UtcGraphModule, FoldReport]]


def fold_parts(whole: Whole, fold_one: FoldOne) -> tuple[nn.Module, FoldReport]:
    """Fold each part, and put the user's own modules back where nothing but their values has changed.

    Args:
        whole: a model of which parts are tuned; it stays as it was.
        fold_one: folds and proves one part.

    Raises:
        UtcError: as `fold`, of a part; or the whole model's outputs differ.
    """
    assert whole.kept is not None
    found = {path: _folded(path, part, fold_one) for path, part in whole.parts.items()}
    model = _with(whole, {path: new for path, (new, _) in found.items()})
    cut = cut_ties(model, whole.kept.ties)
    owned(model, list(whole.tensors().values()))
    report = _joined({path: report for path, (_, report) in found.items()}, whole.module, model, cut)
    return model.eval(), replace(report, max_error=max(report.max_error, _prove(whole, model)))


def _folded(path: str, part: nn.Module, fold_one: FoldOne) -> tuple[UtcGraphModule, FoldReport]:
    try:
        return fold_one(part)
    except UtcError as error:
        raise error.within(f"the part {path}") from error


def _with(whole: Whole, parts: Mapping[str, UtcGraphModule]) -> nn.Module:
    """A copy of the model with other parts in it."""
    assert whole.kept is not None
    model = structural_copy(whole.module)
    vars(model).pop(KEPT)
    for path, new in parts.items():
        own = _as_original(new, whole.kept.originals[path], whole.parts[path].trained)
        replace_module(model, path, own or new)
    model.requires_grad_(False)
    return model


def _as_original(folded: UtcGraphModule, empty: nn.Module, trained: Collection[str]) -> nn.Module | None:
    """The user's own module with the folded values; None where it would not compute what the folded graph does.

    Args:
        trained: what `train:` names there: of a task, a head may have another number of rows.
    """
    values, own = dict(every_name(folded)), dict(every_name(empty))
    if any(name not in values or not _fits(values[name], own[name], rows=name in trained) for name in own):
        return None
    module = structural_copy(empty)
    for name in own:
        owner, attribute = owner_of(module, name)
        if attribute in owner._parameters:
            owner._parameters[attribute] = nn.Parameter(values[name].detach(), requires_grad=False)
        else:
            owner._buffers[attribute] = values[name]
    fit_sizes(module)
    module.eval()
    inputs = ProofInputs(folded)
    with evaluated(folded, module):
        for call, must_run in inputs.calls():
            try:
                found, expected = outputs_of(module, call), outputs_of(folded, call)
            except Exception:  # whatever a module raises
                if must_run:
                    return None
                continue
            if not all(_is_near(a, b) for a, b in zip(found, expected, strict=True)):
                return None
    return module


def _fits(value: torch.Tensor, own: torch.Tensor, *, rows: bool) -> bool:
    """Whether a value has the shape of the user's own, or another number of rows where that may differ."""
    return value.dim() == own.dim() and value.shape[rows:] == own.shape[rows:]


def _is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same operations in the same dtype; a layer and its function may take different kernels."""
    return found.shape == expected.shape and is_proven(Difference(relative_error(found, expected)), found.dtype)


def _joined(reports: Mapping[str, FoldReport], tuned: nn.Module, folded: nn.Module, cut: Sequence[str]) -> FoldReport:
    flops = [report.flops for report in reports.values()]
    return FoldReport(
        tuple(replace(s, id=_id_in(path, s.id)) for path, r in reports.items() for s in r.sites),
        max((report.max_error for report in reports.values()), default=0.0),
        (count_parameters(tuned), count_parameters(folded)),
        tuple(replace(s, id=path_in(path, s.id)) for path, r in reports.items() for s in r.base),
        None if None in flops else (sum(f[0] for f in flops if f), sum(f[1] for f in flops if f)),
        (*(path_in(path, phrase) for path, r in reports.items() for phrase in r.renamed), *cut),
    )


def _id_in(path: str, site_id: str) -> str:
    rule, inside, number = site_id.rsplit("/", 2)
    return f"{rule}/{path_in(path, inside)}/{number}"


def _prove(whole: Whole, folded: nn.Module) -> float:
    """The largest relative difference of the whole model's outputs, on the call that it was captured with.

    The parts are proven one by one. A choice by values in the code around them (boxes that are kept) may turn at a
    rounding, so where the outputs differ in the model's dtype, both are compared in float64.

    Raises:
        UtcError: they differ there too.
    """
    kept = whole.kept
    assert kept is not None
    dtype = next((p.dtype for p in folded.parameters() if p.is_floating_point()), torch.float32)
    copies = (structural_copy(whole.module), structural_copy(folded))  # Python code may count its calls
    error, lowest = _difference(*copies, kept.example, kept.modes, dtype)
    if is_proven(Difference(error), lowest):
        return error
    doubles = (copy.deepcopy(whole.module).double(), copy.deepcopy(folded).double())
    double, lowest = _difference(*doubles, kept.example, kept.modes, torch.float64)
    if is_proven(Difference(double), lowest):
        return 0.0
    raise UtcError(
        f"the folded model's outputs differ by {error:.1e} of their largest value",
        where="on the example inputs of the whole model",
        why=f"every part computes what it did, and in float64 the whole differs by {double:.1e}: the code around the "
        "parts reads their weights itself",
        fix="let `within=` name a larger part, which contains that code",
        code="fold/not-proven",
    )


def _difference(
    tuned: nn.Module, folded: nn.Module, example: Any, modes: Mapping[str, bool], dtype: torch.dtype
) -> tuple[float, torch.dtype]:
    """The largest relative difference, and the lowest precision in which the folded model computes."""
    device = next((p.device for p in folded.parameters()), torch.device("cpu"))
    call = example.arguments(dtype if dtype == torch.float64 else example.dtype, device)
    with LowestDtype(dtype) as lowest:
        found = _outputs(folded, call, modes)
    expected = _outputs(tuned, call, modes)
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf"), lowest.dtype
    return max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0), lowest.dtype


def _outputs(module: nn.Module, call: Mapping[str, Any], modes: Mapping[str, bool]) -> list[torch.Tensor]:
    """The floating-point outputs in the modes of the capture, from seed 0; the module is left as it was."""
    with evaluated(module), full_precision(), _in_modes(module, modes):
        torch.manual_seed(0)
        args, kwargs = map_tensors(torch.clone, (call["args"], call["kwargs"]))
        return [t.clone() for t in tensors(module(*args, **kwargs)) if t.is_floating_point() or t.is_complex()]


@contextmanager
def _in_modes(module: nn.Module, modes: Mapping[str, bool]) -> Iterator[None]:
    """The modes of the capture outside of the parts; inside, eval. `evaluated` takes them back."""
    for path, inner in module.named_modules():
        if path in modes and not isinstance(inner, UtcGraphModule):
            inner.training = modes[path]
    yield

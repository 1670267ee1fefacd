"""torch's database of operations: two samples of each, as a model of one operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .outcomes import EQUAL, faults, outcome

_SEEDS = "its sample sets the random seed inside of forward"
# what may be refused, and why
ALLOWED = {
    "item": "its result is a number, not a tensor",
    "sparse.mm": "compressed sparse tensors as inputs",
    "sparse.sampled_addmm": "compressed sparse tensors as inputs",
    "nn.functional.linear_cross_entropy": "an options object is given to one call",
    "nn.functional.triplet_margin_with_distance_loss": "a module that is no part of the model is given to one call",
    "torch._scaled_mm_v2": "an enumeration of C++ is given to one call",
    **dict.fromkeys(
        "cauchy exponential geometric log_normal normal uniform svd_lowrank pca_lowrank randn_like rand_like randint_like "
        "multinomial bernoulli nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d nn.functional.rrelu "
        "nn.functional.dropout nn.functional.dropout2d nn.functional.dropout3d nn.functional.alpha_dropout "
        "nn.functional.feature_alpha_dropout nn.functional.multi_head_attention_forward "
        "nn.functional.scaled_dot_product_attention".split(),
        _SEEDS,
    ),
}
UNINITIALISED = """empty empty_like empty_permuted empty_strided new_empty new_empty_strided
resize_ resize_as_ native_batch_norm _native_batch_norm_legit _batch_norm_with_update""".split()
_SLICES = 4


class Operation(nn.Module):
    """A model of one operation."""

    def __init__(self, operation: Callable[..., Any]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, given: Any, positional: Any, named: Any) -> Any:
        return self.operation(given, *positional, **named)


def _samples(entries: list[Any]) -> Iterator[tuple[str, nn.Module, tuple[Any, ...]]]:
    for entry in entries:
        if entry.name in UNINITIALISED:
            continue
        dtype = torch.float32 if torch.float32 in entry.dtypes else next(iter(entry.dtypes), torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = [*islice(entry.sample_inputs("cpu", dtype), 2)]
        for i, sample in enumerate(samples):
            given = (sample.input, sample.args, sample.kwargs)
            if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(given)):
                yield f"{entry.name}[{i}]", Operation(entry.op).eval(), given


@pytest.mark.full
@pytest.mark.parametrize("part", range(_SLICES))
def test_every_operation_of_torch(part: int) -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    found = [(name, outcome(model, given, {})) for name, model, given in _samples(op_db[part::_SLICES])]
    assert faults(found, ALLOWED) == ""
    equal = sum(result == EQUAL for _, result in found)
    assert equal >= 0.95 * sum(result is not None for _, result in found)

"""torch's database of modules: every layer of torch.nn with the arguments that torch's own tests give it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .outcomes import EQUAL, faults, outcome

# what may be refused, and why
ALLOWED = {
    "nn.LinearCrossEntropyLoss": "an options object is given to one call, which a graph's code cannot spell out",
    **dict.fromkeys(
        [f"nn.Lazy{kind}{n}d" for kind in ("Conv", "ConvTranspose", "BatchNorm", "InstanceNorm") for n in (1, 2, 3)]
        + ["nn.LazyLinear"],
        "a lazy module has no weights before its first call",
    ),
}
_SAMPLES = 8  # of each module; some have hundreds that differ in one option


def _samples(info: Any) -> Iterator[tuple[str, torch.nn.Module, Any]]:
    dtype = torch.float32 if torch.float32 in info.dtypes else next(iter(info.dtypes))
    given = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    for i, sample in enumerate([s for s in given if s.forward_input is not None][:_SAMPLES]):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        yield f"{info.name}[{i}]", module.to(dtype).eval(), sample.forward_input


@pytest.mark.full
def test_every_layer_of_torch() -> None:
    from torch.testing._internal.common_modules import module_db

    samples = (sample for info in module_db for sample in _samples(info))
    found = {name: outcome(module, given.args, given.kwargs) for name, module, given in samples}
    assert faults(found.items(), ALLOWED) == ""
    may = {name for name in found if name.split("[")[0] in ALLOWED}
    assert list(found.values()).count(EQUAL) >= len(found) - len(may)

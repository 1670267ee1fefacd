"""torch.export's own database of what models do: each case captured, and called with its further arguments."""

from __future__ import annotations

import pytest

from .outcomes import EQUAL, faults, outcome

# what may be refused, and why; the list may shrink, and not grow
ALLOWED = {
    "dynamic_shape_map": "map is an operator of torch.compile's, which reads the body by itself",
    "cond_closed_over_variable": "torch.cond in the root module takes functions, whose insides cannot be recorded",
}


@pytest.mark.full
def test_the_database_of_export() -> None:
    from torch._export.db.examples import all_examples

    found = {}
    for name, case in all_examples().items():
        others = [case.extra_args] if case.extra_args else []
        found[name] = outcome(case.model, case.example_args, case.example_kwargs, *others)
    assert faults(found.items(), ALLOWED) == ""
    assert list(found.values()).count(EQUAL) >= len(found) - len(ALLOWED)

"""Containers as inputs: another structure is an error that names it, whatever comes after it in the signature; and
outputs that are dataclasses and dictionaries in one."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

import utcompile as utc

T = torch.Tensor
X = torch.randn(3, 4)


class Before(nn.Module):
    """A container between other inputs, of which a part is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: T, parts: Any, factor: float = 2.0) -> T:
        first = parts["a"] if isinstance(parts, dict) else parts[0]
        return self.layer(x) * factor + first


@pytest.mark.parametrize("factor", [(), (3.0,)], ids=["last", "before a number"])
@pytest.mark.parametrize(
    ("given", "others"),
    [
        ([X, X, X], ([X], [X] * 4, (X, X, X), {"a": X}, None, X)),
        ((X, X), ((X,), [X, X], None)),
        ({"a": X, "b": X}, ({"a": X}, {"a": X, "c": X}, [X, X], None)),
    ],
    ids=["list", "tuple", "dict"],
)
def test_another_structure_is_an_error(given: Any, others: tuple[Any, ...], factor: tuple[float, ...]) -> None:
    model = Before().eval()
    captured = utc.capture(model, (X, given, *factor))
    assert torch.equal(captured(X, given, *factor), model(X, given, *factor))
    for other in others:
        with pytest.raises(utc.UtcError, match="parts"):
            captured(X, other, *factor)


class Outputs(nn.Module):
    """Assigns the keys of an output in another order than the fields of its class have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: T) -> BaseModelOutputWithPooling:
        out = BaseModelOutputWithPooling(last_hidden_state=self.layer(x))
        out["hidden_states"] = (x, x + 1)
        out["pooler_output"] = x.mean(0)
        return out


def test_the_keys_of_an_output_keep_their_order() -> None:
    model = Outputs().eval()
    captured = utc.capture(model, X)
    for found in (captured(X), pickle.loads(pickle.dumps(captured))(X)):
        assert type(found) is BaseModelOutputWithPooling and list(found) == list(model(X))
        assert torch.equal(found.to_tuple()[2], model(X).to_tuple()[2])

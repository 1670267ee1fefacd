"""A model's child or parameter has no name that a captured or tuned module uses itself: it would be hidden."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import utcompile as utc
from utcompile.recording.capture_model import _RESERVED


@pytest.mark.parametrize("cls", [utc.CapturedModule, utc.TunedModule])
def test_every_attribute_of_ours_is_reserved(cls: type[nn.Module]) -> None:
    mine = [c for c in cls.__mro__ if c.__module__.startswith("utcompile.")]
    names = {n for c in mine for n in (*vars(c), *vars(c).get("__annotations__", {})) if not n.startswith("__")}
    assert names - set(dir(nn.Module)) - set(vars(fx.GraphModule)) <= _RESERVED


@pytest.mark.parametrize("name", ["memory", "task", "tuner"])
def test_a_child_with_such_a_name_is_refused(name: str) -> None:
    model = nn.Module()
    model.add_module(name, nn.Linear(2, 2))
    model.forward = lambda x: model.get_submodule(name)(x)  # type: ignore[method-assign, assignment]
    with pytest.raises(utc.UtcError, match=f"has a part named '{name}'"):
        utc.capture(model, torch.randn(2, 2))

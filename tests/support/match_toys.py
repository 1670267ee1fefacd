"""What the tests of matching share: captured models by name, rules in few words, and the message of a refusal."""

from __future__ import annotations

from functools import lru_cache

import pytest
import timm
import torch

import utcompile as utc
from utcompile.cli.sources import source_of

VIT = "vit_tiny_patch16_224"
ADAPT = "{parallel: x -> y, tuner: {kind: adapter}}"


@lru_cache
def captured_of(name: str, classes: int = 1000) -> utc.CapturedModule:
    if ".py:" in name:  # a factory, from the root of the repository
        return utc.capture(source_of(name).build(None, False, (3, 32, 32)), torch.randn(2, 3, 32, 32), verify="shapes")
    model = timm.create_model(name, num_classes=classes).eval()
    return utc.capture(model, torch.randn(2, *model.default_cfg["input_size"]), verify="shapes")


def rule(match: str, insert: str = "{sequential: y, tuner: {kind: adapter, dim: 1}}", **more: str) -> str:
    text = (
        f"    match: {match}\n"
        if "\n" not in match
        else "    match: |\n" + "".join(f"      {n}\n" for n in match.strip().splitlines())
    )
    lines = "".join(f"    {k}: {v}\n" for k, v in more.items())
    return f"version: 1\nname: t\nrules:\n  - name: r\n{text}{lines}    insert: {insert}\n"


def error(text: str, model: str = VIT) -> str:
    with pytest.raises(utc.UtcError) as caught:
        utc.match(captured_of(model), text)
    return str(caught.value)

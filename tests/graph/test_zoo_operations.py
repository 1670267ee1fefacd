"""The table of operations knows everything that the zoo's models are made of."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
import timm
import torch
from support import models as zoo
from zoo_operations import known_spellings, spelling_of

import utcompile as utc
from tools.zoo.hugging_face import names as transformers_names
from tools.zoo.rows import Task
from tools.zoo.specimen import Specimen
from tools.zoo.work import specimen_of
from utcompile.graph import GraphView
from utcompile.graph.spellings import FUNCTIONS, METHODS, spelling_of_module


@pytest.mark.parametrize("line", sorted(known_spellings()))
def test_every_operation_seen_in_the_zoo_is_in_the_table(line: str) -> None:
    kind, _, name = line.partition(" ")
    if kind == "method":
        assert name in METHODS
    elif kind == "module":
        assert spelling_of_module(object.__new__(getattr(torch.nn, name)))
    else:
        home, _, last = name.rpartition(".")
        assert getattr(import_module(home), last) in FUNCTIONS


def captured_of(specimen: Specimen) -> utc.CapturedModule:
    return utc.capture(specimen.model, specimen.inputs, dynamic=specimen.dynamic, verify="shapes")


def unlisted(captured: utc.CapturedModule) -> set[str]:
    """The spellings in a model that the list lacks; every one of them must be in the table all the same."""
    view = GraphView(captured.graph, captured)
    seen = {node: spelling_of(node, captured) for node in view.nodes}
    unknown = {text for node, text in seen.items() if text and "." in view.operations[node].name}
    assert not unknown, f"in no row of utcompile/ops: {', '.join(sorted(unknown))}"
    assert all("." in view.operations[n].name for n, text in seen.items() if text is None and n.op == "call_module")
    return {text for text in seen.values() if text} - known_spellings()


@pytest.mark.parametrize("kind", ["convnext", "efficientnet", "swin"])
def test_small_models(kind: str) -> None:
    assert not unlisted(zoo.captured(kind))


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "wav2vec2"])
def test_small_transformers(name: str) -> None:
    assert not unlisted(captured_of(specimen_of(Task("transformers", name))))


def _smallest_of_each_module() -> Iterator[str]:
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                try:
                    sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
                except (RuntimeError, NotImplementedError):  # its initialisation computes
                    continue
        if sizes:
            yield min(sizes, key=sizes.__getitem__)


@pytest.mark.full
def test_the_list_is_complete() -> None:
    """A model of each file of timm and each architecture of transformers; what cannot be captured has no graph."""
    tasks = [
        *(Task("timm", n) for n in _smallest_of_each_module()),
        *(Task("transformers", n) for n in transformers_names()),
    ]
    missing: set[str] = set()
    captured = 0
    for task in tasks:
        try:
            missing |= unlisted(captured_of(specimen_of(task)))
        except AssertionError:
            raise
        except Exception:  # whatever a library raises
            continue
        captured += 1
    assert not missing, "add to tests/graph/zoo_operations.txt:\n" + "\n".join(sorted(missing))
    assert captured > 400

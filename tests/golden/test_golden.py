"""What the pipeline makes of thirteen pairs of model and rules, as text: a reviewer reads every change in the diff.

pytest tests/golden --update-golden     writes the texts anew
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.architectures import make
from support.train import shake

import utcompile as utc
from utcompile.graph.show import show, show_changes

_FOLDER = Path(__file__).parent
_OWN = """
version: 1
name: own
rules:
  - name: twice
    match: {op: linear}
    except: head
    where: [h.channels == 8]
    insert: {weight: h, tuner: {kind: lora, r: 2, alpha: 2}}
  - name: scale
    match: {parameter: scale}
    insert: {weight: h, tuner: {kind: ia3}}
  - name: late
    match: |
      y = relu(x)
    insert: {sequential: y, tuner: {kind: rep_adapter, dim: 2, groups: 1}}
  - name: attention
    match: attention
    insert: {parallel: x -> y, tuner: {kind: adapter, dim: 2}}
    expect: {optional: true}
train: ["module:head"]
"""


@dataclass(frozen=True)
class Pair:
    """An architecture and rules for it.

    Attributes:
        fold: options of `utc.fold`.
        exports: whether the folded model's ONNX file is looked at.
    """

    model: str
    rules: str
    vars: Mapping[str, Any] = field(default_factory=dict)
    fold: Mapping[str, Any] = field(default_factory=dict)
    exports: bool = False


# how it computes shapes, which differs from version to version
_OF_THE_EXPORTER = frozenset(
    "Cast Concat Constant Expand Gather Identity Reshape Shape Slice Squeeze Unsqueeze".split()
)
_SMALL = {"dim": 2}
PAIRS = {
    "convnet_residual_parallel": Pair("convnet", "convnet/residual_parallel", _SMALL, {"batch_norms": True}),
    "convnet_ssf": Pair("convnet", "ssf/all_layers"),
    "mobilenet_inverted_residual_foldable": Pair("mobilenet", "convnet/inverted_residual_foldable", {"dim": 2, "r": 2}, exports=True),
    "vit_dual_foldable": Pair("vit", "u_tuning/dual_foldable", {"dim": 2, "r": 2}, exports=True),
    "vit_vpt_deep": Pair("vit", "prompt/vpt_deep", {"length": 2}),
    "vit_vpt_shallow": Pair("vit", "prompt/vpt_shallow", {"length": 2}, exports=True),
    "vit_bypass": Pair("vit of two blocks", "res_tuning/bypass", _SMALL),
    "swin_houlsby": Pair("swin", "adapter/houlsby", _SMALL),
    "bert_prefix": Pair("bert", "prefix/prefix", {"length": 2}),
    "gpt2_qv": Pair("gpt2", "lora/qv", {"r": 2}),
    "llama_ia3": Pair("llama", "ia3/keys_values_ffn"),
    "unet_scedit": Pair("unet", "scedit/skip", _SMALL),
    "toy_own": Pair("toy", _OWN, fold={"constants": True}),
}  # fmt: skip


@lru_cache
def _captured(name: str) -> utc.CapturedModule:
    model, inputs = make(name)
    return utc.capture(model, inputs, verify="shapes")


def _text(pair: Pair, folder: Path) -> str:
    """Sections from capture to ONNX; what rewriting and folding change is shown against the captured graph."""
    captured = _captured(pair.model)
    before = show(captured)
    plan = utc.match(captured, pair.rules, vars=pair.vars)
    tuned = plan.apply()
    shake(tuned)
    folded, report = utc.fold(tuned, **pair.fold)
    sections = {
        "capture": before,
        "plan": str(plan),
        "explain": re.sub(r" \(architectures\.py:\d+ in \w+\)", "", plan.explain()),
        "rewrite": show_changes(before, show(tuned)),
        "fold": "\n".join([*_report(report), show_changes(before, show(folded))]),
    }
    if pair.exports:
        sections["onnx"] = "\n".join(_structure(utc.export_onnx(folded, folder / "x.onnx", make(pair.model)[1]).path))
    return "".join(f"== {name}\n{_trimmed(text)}\n\n" for name, text in sections.items())


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def _report(report: utc.FoldReport) -> Iterator[str]:
    """The parts of a report that are no measured error."""
    for site in (*report.sites, *report.base):
        before, after = site.parameters
        yield f"{site.id}: {site.status}, parameters {before} -> {after}, FLOPs {site.flops}{': ' * bool(site.reason)}{site.reason}"
    yield f"parameters {report.parameters}, FLOPs {report.flops}"
    yield from (f"renamed: {why}" for why in report.renamed)


def _structure(path: Path) -> Iterator[str]:
    graph = onnx.load(str(path)).graph
    for kind, entries in (("input", graph.input), ("output", graph.output)):
        for entry in entries:
            axes = [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]
            yield f"{kind} {entry.name} {axes}"
    kinds = Counter(node.op_type for node in graph.node if node.op_type not in _OF_THE_EXPORTER)
    yield ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
    shapes = [(entry.name.startswith("val_"), entry.name, list(entry.dims)) for entry in graph.initializer]
    yield from sorted(f"initializer {name} {shape}" for anonymous, name, shape in shapes if not anonymous)
    yield from sorted(
        f"initializer without a name {shape}" for anonymous, _, shape in shapes if anonymous and len(shape) > 1
    )


@pytest.mark.parametrize("name", PAIRS)
def test_the_text_is_as_it_was(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found, file = _text(PAIRS[name], tmp_path), _FOLDER / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(found)
    assert found == file.read_text(), (
        f"{file.name} says otherwise; if this is meant: pytest tests/golden --update-golden"
    )


def test_every_text_has_its_pair() -> None:
    assert {file.stem for file in _FOLDER.glob("*.txt")} == PAIRS.keys()

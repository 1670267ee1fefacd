"""How long matching and rewriting take, once a model is captured."""

from __future__ import annotations

import time
from collections.abc import Iterator

import timm
import torch
from torch import nn

import utcompile as utc
from benchmarks.measure import Row, repeated
from utcompile.graph import GraphView, collector_paused
from utcompile.matching import Engine
from utcompile.matching.index import KEPT
from utcompile.rules import RuleSet, library_patterns, shipped_rules


def run(quick: bool) -> Iterator[Row]:
    """Every shipped rule file on ViT-B/16, or on EfficientNet-Lite0 where it is one for ConvNets."""
    models = {
        "vit_base_patch16_224": ("u_tuning", "lora/all_linear"),
        "efficientnet_lite0": ("convnet", "lora/all_conv"),
    }
    for model_name, prefixes in models.items():
        captured = utc.capture(timm.create_model(model_name).eval(), (torch.randn(2, 3, 224, 224),), verify="shapes")
        for rules in shipped_rules():
            if not rules.startswith(prefixes) or (quick and rules not in ("u_tuning/dual", "lora/all_conv")):
                continue
            plan = utc.match(captured, rules)
            rounds, where = (2 if quick else 5), f"{rules} on {model_name}"
            note = f"{len(plan.sites)} sites"
            yield repeated("match", where, lambda c=captured, r=rules: utc.match(c, r), rounds, note)
            yield repeated("rewrite", where, plan.apply, rounds, note)
    vit = utc.capture(timm.create_model("vit_base_patch16_224").eval(), SHAPE, verify="shapes")
    yield from _again(vit, "ViT-B/16")
    yield from _twenty(vit, "ViT-B/16", 9)
    for blocks in (200,) if quick else (200, 2_000, 10_000):
        model = nn.Sequential(*(Block() for _ in range(blocks))).eval()
        started = time.perf_counter()
        captured = utc.capture(model, (torch.randn(2, 5, 4),), dynamic=(), verify="shapes")
        taken = 1e3 * (time.perf_counter() - started)
        yield Row("capture", f"{len(captured.graph.nodes):,} nodes, verify=shapes", taken, taken, taken, 1)
        yield from _twenty(captured, f"a graph of {len(captured.graph.nodes):,} nodes", 1 if quick else 3)


SHAPE = (torch.randn(2, 3, 224, 224),)
TWENTY = """version: 1
name: twenty
tuners: {u: {kind: adapter, dim: 4}}
rules:
""" + "".join(
    f"  - {{name: {name}-{i}, match: {name}, insert: {{sequential: y, tuner: u}}, expect: {{optional: true}}}}\n"
    for i in (1, 2)
    for name in sorted({*library_patterns()} - {"head", "gated_ffn"})
)


def _again(captured: utc.CapturedModule, where: str) -> Iterator[Row]:
    """One rule file on a capture that was not matched before, and on one that was: CPU time of the thread."""
    for rules in ("u_tuning/dual", "lora/all_linear", "adapter/houlsby", "prefix/prefix"):

        def first(name: str = rules) -> None:
            captured.__dict__.pop(KEPT, None)
            utc.match(captured, name)

        def again(name: str = rules) -> None:
            utc.match(captured, name)

        for what, call in (("first", first), ("again", again)):
            yield repeated("match", f"{rules} on {where}, {what}", call, 7, "CPU time", time.thread_time)


class Block(nn.Module):
    """A pre-norm ffn with its residual: five nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The ffn, and the sum."""
        result: torch.Tensor = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return result


def _twenty(captured: utc.CapturedModule, where: str, rounds: int) -> Iterator[Row]:
    """Ten patterns twice: found on a graph that is indexed, and as `utc.match`, with all that belongs to it."""
    rules = RuleSet.load(TWENTY)
    view = GraphView(captured.graph, captured)
    assert view.by_class and view.layouts  # the index, made once

    @collector_paused()  # as utc.match does
    def find() -> None:
        engine = Engine(view, library_patterns())
        for rule in rules.rules:
            pattern = library_patterns()[rule.name.rpartition("-")[0]]
            for anchor in engine.anchors(pattern):
                next(engine.solve(pattern, anchor), None)

    yield repeated("match", f"20 rules on {where}, found on an indexed graph", find, rounds)
    note = f"{len(utc.match(captured, rules).sites)} sites"
    yield repeated("match", f"20 rules on {where}, utc.match", lambda: utc.match(captured, rules), rounds, note)

"""A plan is data: it can be pickled, copied and saved, and what comes back is the plan."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.transformer_toys import RULES, Transformer
from torch import nn

import utcompile as utc
from utcompile.matching import PlanData


@pytest.fixture(scope="module")
def captured() -> utc.CapturedModule:
    return utc.capture(Transformer().eval(), torch.randn(2, 5, 6))


def _saved(plan: utc.Plan) -> utc.Plan:
    buffer = io.BytesIO()
    torch.save(plan, buffer)
    buffer.seek(0)
    loaded: utc.Plan = torch.load(buffer, weights_only=False)
    return loaded


WAYS: dict[str, Callable[[utc.Plan], utc.Plan]] = {
    "pickle": lambda plan: pickle.loads(pickle.dumps(plan)),
    "copy": copy.deepcopy,
    "torch.save": _saved,
}


@pytest.mark.parametrize("form", RULES)
def test_a_pickled_plan_is_the_plan(captured: utc.CapturedModule, form: str) -> None:
    plan = utc.match(captured, RULES[form])
    again = WAYS["pickle"](plan)
    assert type(again) is utc.Plan and str(again) == str(plan) and not plan.diff(again)
    assert again.to_dict() == plan.to_dict() and again.explain() == plan.explain()
    assert again.module is not plan.module
    own = set(again.module.graph.nodes)  # its sites are in its own graph, not in one that came along with it
    assert all(n in own for s in again.sites for n in (s.source, *s.targets, *s.bindings.values()))
    x = torch.randn(3, 5, 6)
    outputs = []
    for one in (plan, again):
        torch.manual_seed(0)
        outputs.append(one.apply()(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_keep_a_plan_keeps_its_settings(captured: utc.CapturedModule, way: str) -> None:
    text = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, on_refusal: skip, insert: {sequential: h, tuner: {kind: ssf}}}\n"
    plan = utc.match(captured, text, train=["module:head", "parameter:norm.*"])
    again = WAYS[way](plan)
    assert (again.trained, again.untied, again.notes, again.skipped) == (
        plan.trained,
        plan.untied,
        plan.notes,
        plan.skipped,
    )
    assert again.parameters == plan.parameters and again.tuner_dtype == plan.tuner_dtype == "float32"


def test_data_alone_has_no_verbs(captured: utc.CapturedModule) -> None:
    """What rewriting needs of a plan is its data; `utc.Plan` adds what is asked of it."""
    plan = utc.match(captured, "lora/all_linear")
    data = PlanData(sites=plan.sites, trained=(), ruleset=plan.ruleset, module=captured)
    assert not hasattr(data, "apply") and str(utc.Plan.of(data)).startswith("rule")
    with pytest.raises(utc.UtcError, match="tuner_dtype is 'half'"):
        plan.apply("half")  # type: ignore[arg-type]


class Tagger(nn.Module):
    """A recurrent layer over padded sequences, packed or not."""

    def __init__(self, kind: type[nn.Module], packed: bool) -> None:
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(4, 6), kind(6, 6, batch_first=True), nn.Linear(6, 2)
        self.packed = packed

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h: Any = torch.tanh(self.into(x))
        if self.packed:
            h = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.layer(h)
        return self.out(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0] if self.packed else y)


@pytest.mark.parametrize(("kind", "packed"), [(nn.LSTM, True), (nn.LSTM, False), (nn.GRU, True), (nn.RNN, False)])
def test_a_recurrent_layer_that_no_rule_tunes_is_left_out_by_name(kind: type[nn.Module], packed: bool) -> None:
    rules = """
    version: 1
    name: t
    rules:
      - {name: v, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 1}}}
    train: []
    """
    model, given = Tagger(kind, packed).eval(), (torch.randn(3, 5, 4), torch.tensor([5, 3, 2]))
    plan = utc.match(utc.capture(model, given, verify="shapes"), rules)
    assert plan.left_out == ("layer.weight_ih_l0", "layer.weight_hh_l0") and "layer.weight" in str(plan)

"""What a match keeps with the captured model: the next match is as if nothing had been kept, and quicker."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from support.match_toys import rule
from torch import fx, nn

import utcompile as utc
from utcompile.matching.index import index_of
from utcompile.tuners import Tuner, TunerConfig, TunerSite, base


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.fc2(self.act(self.fc1(self.norm(x))))
        return y + self.conv(y.transpose(1, 2)).transpose(1, 2)


@pytest.fixture
def captured() -> utc.CapturedModule:
    return utc.capture(Mlp().eval(), torch.randn(2, 5, 8))


def test_matches_of_one_capture_share_an_index(captured: utc.CapturedModule) -> None:
    first, second = utc.match(captured, rule("ffn")), utc.match(captured, "lora/all_linear")
    assert first.view is second.view is index_of(captured).view
    assert index_of(copy.deepcopy(captured)).view is not first.view  # whose nodes are others


def _another_argument(module: utc.CapturedModule) -> None:
    node = next(n for n in module.graph.nodes if "act" in n.name)
    node.replace_input_with(node.all_input_nodes[0], next(n for n in module.graph.nodes if n.name == "fc1"))
    node.args = (node.args[0],)


def _a_new_node(module: utc.CapturedModule) -> None:
    node = next(n for n in module.graph.nodes if n.op == "output")
    with module.graph.inserting_before(node):
        made = module.graph.call_function(torch.relu, (node.args[0],))
    made.meta = dict(node.all_input_nodes[0].meta)


def _another_layer(module: utc.CapturedModule) -> None:
    module.fc1 = nn.Linear(8, 16)


def _another_parameter(module: utc.CapturedModule) -> None:
    module.fc1.weight = nn.Parameter(torch.randn(16, 8))


def _another_setting(module: utc.CapturedModule) -> None:
    module.conv.padding_mode = "reflect"


def _a_layer_less(module: utc.CapturedModule) -> None:
    del module.zzz


def _another_graph(module: utc.CapturedModule) -> None:
    graph, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
    output = graph.graph_copy(module.graph, mapping)
    for old, new in mapping.items():
        new.meta = dict(old.meta)
    graph.output(output).meta = dict(module.graph.output_node().meta)
    module.graph = graph


@pytest.mark.parametrize(
    "change",
    [
        _another_argument,
        _a_new_node,
        _another_layer,
        _another_parameter,
        _another_setting,
        _another_graph,
        _a_layer_less,
    ],
)
def test_what_is_replaced_is_read_again(captured: utc.CapturedModule, change: object) -> None:
    captured.add_module("zzz", nn.Linear(1, 1))
    known = index_of(captured)
    change(captured)  # type: ignore[operator]
    assert index_of(captured) is not known
    assert index_of(captured) is index_of(captured)


def test_numbers_that_change_in_place_need_no_new_index(captured: utc.CapturedModule) -> None:
    known = index_of(captured)
    with torch.no_grad():
        captured.fc1.weight.add_(1)
    captured.requires_grad_(False)
    assert index_of(captured) is known


def test_rules_that_come_and_go_find_what_they_would_alone(captured: utc.CapturedModule) -> None:
    """Patterns of rules are known by identity while they live; the next file's may stand at the same address."""
    lines = ["h = linear(x)", "h = gelu(x)", "h = layer_norm(x)", "h = conv1d(x)", "h = relu(x)", "h = add(x, b)"]
    texts = [rule(f'"{line}"', "{sequential: h, tuner: {kind: ssf}}", expect="{optional: true}") for line in lines]
    alone = [[s.id for s in utc.match(copy.deepcopy(captured), text).sites] for text in texts]
    for _ in range(5):
        for text, expected in zip(texts, alone, strict=True):
            assert [s.id for s in utc.match(captured, text).sites] == expected
            gc.collect(0)  # the rules of this match, and not all that other tests keep


def test_a_match_that_breaks_off_leaves_nothing_half_searched(
    captured: utc.CapturedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = __import__("sys").modules["utcompile.matching.engine"]
    with monkeypatch.context() as inside:
        inside.setattr(engine, "CAP", 3)
        for _ in range(2):
            with pytest.raises(utc.UtcError, match="needs more than 3 attempts"):
                utc.match(captured, rule("ffn"))
    assert len(utc.match(captured, rule("ffn")).sites) == 1


def test_a_tuner_that_is_registered_again_is_tried_again(
    captured: utc.CapturedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook's cell does that is run twice."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    class GainConfig(TunerConfig):
        kind: str = "gain_of_test_index"

    def register(size: int) -> None:
        @utc.register_tuner("gain_of_test_index")
        class Gain(Tuner):
            config_class = GainConfig
            forms = ("sequential",)

            def __init__(self) -> None:
                super().__init__()
                self.gain = nn.Parameter(torch.ones(size))

            @classmethod
            def build(cls, config: object, site: TunerSite) -> Gain:
                return cls()

            def forward(self, v: torch.Tensor) -> torch.Tensor:
                return v * self.gain

    text = rule("{op: gelu}", "{sequential: h, tuner: {kind: gain_of_test_index}}")
    register(1)
    assert utc.match(captured, text).parameters == 1
    register(16)
    assert utc.match(captured, text).parameters == 16


def test_a_plan_whose_node_is_gone_is_not_applied(captured: utc.CapturedModule) -> None:
    plan = utc.match(captured, rule("{op: conv1d}", "{sequential: h, tuner: {kind: ssf}}"))
    node = plan.sites[0].source
    node.replace_all_uses_with(node.all_input_nodes[0])
    captured.graph.erase_node(node)
    with pytest.raises(utc.UtcError, match="has changed since the plan was made") as refused:
        plan.apply()
    assert "utc.match" in str(refused.value)

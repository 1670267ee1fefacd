"""Custom kernels that are registered: read, matched, followed, counted; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import utcompile as utc
from utcompile.graph import GraphView, flops
from utcompile.graph.register import forget
from utcompile.ops import ROWS, Trait, having
from utcompile.rules.names import RESERVED


@torch.library.custom_op("utctests::fused", mutates_args=())
def fused(x: torch.Tensor, weight: torch.Tensor, slope: float = 0.1) -> torch.Tensor:
    return nn.functional.leaky_relu(x * weight, slope)


@fused.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, slope: float = 0.1) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("utctests::writes", mutates_args=("x",))
def writes(x: torch.Tensor) -> None:
    x.zero_()


class Model(nn.Module):
    """A linear, the kernel with its own parameter, a linear."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gain, self.spelling = nn.Parameter(torch.ones(12)), spelling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        if self.spelling == "object":
            a = fused(h, self.gain, 0.2)
        elif self.spelling == "packet":
            a = torch.ops.utctests.fused(h, self.gain, slope=0.2)
        else:
            a = torch.ops.utctests.fused.default(h, weight=self.gain, slope=0.2)
        return self.down(a)


@pytest.fixture
def registered() -> Iterator[None]:
    utc.register_operation(
        "fused", "leaky_relu of a product", "x, weight, slope=0.1", [fused], traits=["activation", "counted"],
        axes="keep", flops=lambda read, made: 3 * made[0] * len(read),
    )  # fmt: skip
    yield
    forget("fused")


RULE = """
version: 1
name: t
rules:
  - name: behind
    match: |
      h = linear(x)
      a = fused(h, slope=0.2)
      y = linear(a)
    insert: {sequential: a, tuner: {kind: adapter, dim: 2}}
"""


@pytest.mark.parametrize("spelling", ["object", "packet", "overload"])
def test_a_kernel_is_an_operation_in_every_spelling(registered: None, spelling: str) -> None:
    captured = utc.capture(Model(spelling).eval(), torch.randn(2, 3, 6))
    view = GraphView(captured.graph, captured)
    (node,) = view.by_class["fused"]
    op = view.operations[node]
    assert (op.attributes, op.parameters) == ({"slope": 0.2}, {"weight": "gain"})
    assert op.operands["x"] is op.inputs[0] and op.operands["weight"].target == "gain"
    assert "activation" in view.classes[node]
    layout = view.layouts[node]
    assert layout is not None and layout.kind == "tokens" and [m.name for m in layout.made_by] == ["up"]
    assert flops(node, op, batch=4) == 3 * 4 * 2
    plan = utc.match(captured, RULE)
    assert [site.rule for site in plan.sites] == ["behind"]
    assert "fused" in having(Trait.COUNTED)


def test_without_its_row_a_kernel_keeps_its_full_name() -> None:
    captured = utc.capture(Model("packet").eval(), torch.randn(2, 3, 6))
    assert "fused" not in RESERVED and "fused" not in ROWS
    with pytest.raises(utc.UtcError, match="fused"):
        utc.match(captured, RULE)


def test_a_leaf_module_is_a_spelling_too() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy() ** self.power)

    utc.register_operation("cubed", "x * x * x", "input, power", [Opaque], axes="keep")
    try:
        graph = torch.fx.Graph()
        graph.call_module("0", (graph.placeholder("x"),))
        module = nn.Sequential(Opaque())
        node = next(n for n in graph.nodes if n.op == "call_module")
        assert GraphView(graph, module).operations[node].attributes == {"power": 3}
    finally:
        forget("cubed")


def test_the_same_row_again_takes_the_place_of_the_first(registered: None) -> None:
    utc.register_operation(
        "fused", "leaky_relu of a product", "x, weight, slope=0.1", "torch.ops.utctests.fused",
        traits=["activation", "counted"], axes="keep",
    )  # fmt: skip
    assert ROWS["fused"].flops is None


GIVEN = {"name": "other", "gloss": "a kernel", "signature": "x, weight, slope=0.1", "spellings": [fused]}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"name": "gelu"}, "the operation 'gelu' exists already"),
        ({"name": "arange"}, "the operation 'arange' exists already"),
        ({"name": "ffn"}, "a named pattern has it"),
        ({"name": "norm"}, "it is a word of patterns"),
        ({"name": "Fused-1"}, "cannot be the name"),
        ({"name": 3}, "name must be a text"),
        ({"gloss": ""}, "one line"),
        ({"spellings": [torch.relu]}, "it is the operation 'relu'"),
        ({"spellings": [nn.GELU]}, "it is the operation 'gelu'"),
        ({"spellings": []}, "has no spelling"),
        ({"spellings": ["torch.ops.utctests.unknown"]}, "there is no 'torch.ops.utctests.unknown'"),
        ({"spellings": ["mine.fused"]}, "does not begin with 'torch.'"),
        ({"spellings": [3]}, "3 cannot be called"),
        ({"spellings": [lambda x: x]}, "is Python"),
        ({"spellings": [writes], "signature": "x"}, "writes into its arguments"),
        ({"signature": "x, weight, slope="}, "is no signature"),
        ({"signature": "x, weight, slope=f()"}, "is no signature"),
        ({"signature": "x, gain, slope=0.1"}, "it takes (x, weight, slope), not (x, gain, slope)"),
        ({"traits": ["activatoin"]}, "did you mean 'activation'?"),
        ({"axes": "kept"}, "did you mean 'keep'?"),
    ],
)  # fmt: skip
def test_refused(changed: dict[str, object], what: str) -> None:
    before = dict(ROWS)
    with pytest.raises(utc.UtcError) as error:
        utc.register_operation(**{**GIVEN, **changed})  # type: ignore[arg-type]
    assert what in str(error.value)
    assert dict(ROWS) == before and "other" not in RESERVED


def test_a_spelling_that_is_taken_by_a_registered_operation(registered: None) -> None:
    with pytest.raises(utc.UtcError, match="it is the operation 'fused'"):
        utc.register_operation(**GIVEN)  # type: ignore[arg-type]

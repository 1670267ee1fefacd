"""What holds for the matcher on any graph: it finds what a search over all assignments finds, in any order of nodes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations, product

import pytest
import timm
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.draws import examples
from torch import fx, nn

import utcompile as utc
from utcompile.graph import GraphView, info, is_state
from utcompile.matching import Engine
from utcompile.rules import Call, Expression, Name, Pattern, RuleSet, Step, library_patterns

UNARY, BINARY = ("linear", "relu", "gelu", "layer_norm"), ("add", "mul")
HEADS = (*UNARY, "activation", "norm", "pointwise")
Program = list[tuple[str, int, int]]
Found = set[tuple[tuple[str, str], ...]]


class Programmed(nn.Module):
    """Runs a list of operations, each on earlier values."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        layers = {"linear": lambda: nn.Linear(4, 4), "layer_norm": lambda: nn.LayerNorm(4)}
        self.layers = nn.ModuleDict({str(i): layers[op]() for i, (op, *_) in enumerate(program) if op in layers})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for i, (op, a, b) in enumerate(self.program):
            if op in BINARY:
                values.append(getattr(torch, op)(values[a], values[b]))
            elif op in ("linear", "layer_norm"):
                values.append(self.layers[str(i)](values[a]))
            else:
                values.append(getattr(nn.functional, op)(values[a]))
        return torch.stack(values[1:]).sum(0)  # every value is read


@st.composite
def programs(draw: st.DrawFn) -> Program:
    result: Program = []
    for i in range(draw(st.integers(2, 6))):
        operand = st.integers(0, i)
        result.append((draw(st.sampled_from(UNARY + BINARY)), draw(operand), draw(operand)))
    return result


@st.composite
def expressions(draw: st.DrawFn, names: tuple[str, ...], depth: int = 1) -> str:
    def operand() -> str:
        if depth and draw(st.integers(0, 3)) == 0:
            return draw(expressions(names, depth - 1))
        return draw(st.sampled_from(names))

    if draw(st.booleans()):
        return f"{draw(st.sampled_from(BINARY))}({operand()}, {operand()})"
    heads = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2, unique=True))
    heads += ["skip"] * draw(st.integers(0, 1))
    return f"({' | '.join(heads)})({operand()})"


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """One or two spellings of one or two lines, over the free names x and z."""
    spellings = []
    for _ in range(draw(st.integers(1, 2))):
        lines = []
        if draw(st.booleans()):
            lines.append(f"h = {draw(expressions(('x',)))}")
            lines.append(f"y = {draw(expressions(('h', 'x', 'z')))}")
        else:
            lines.append(f"y = {draw(expressions(('x', 'z')))}")
        spellings.append("\n".join(lines))
    return "".join("    - |\n" + "".join(f"      {line}\n" for line in s.splitlines()) for s in spellings)


def parsed(text: str) -> Pattern:
    rules = (
        f"version: 1\nname: t\npatterns:\n  p:\n{text}rules:\n"
        "  - {name: r, match: p, insert: {sequential: y, tuner: {kind: adapter}}}\n"
    )
    return RuleSet.load(rules).patterns["p"]


def captured(program: Program) -> utc.CapturedModule:
    return utc.capture(Programmed(program), torch.randn(2, 3, 4), verify="shapes")


def found_by_engine(graph: fx.Graph, module: nn.Module, pattern: Pattern) -> Found:
    engine = Engine(GraphView(graph, module), {**library_patterns(), "p": pattern})
    return {_key(env) for anchor in engine.anchors(pattern) for env in engine.solve(pattern, anchor)}


def _key(env: dict[str, fx.Node]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, node.name) for name, node in env.items()))


def found_by_search(view: GraphView, pattern: Pattern) -> Found:
    """Every assignment of values to names under which every line of a spelling is true."""
    values = [n for n in view.nodes if info(n).value is not None and not is_state(n)]
    result: Found = set()
    for spelling in pattern.spellings:
        names = sorted(spelling.names)
        for nodes in product(values, repeat=len(names)):
            env = dict(zip(names, nodes, strict=True))
            if all(_is_true(step, env, view) for step in spelling.steps):
                result.add(_key(env))
    return result


def _is_true(step: Step, env: dict[str, fx.Node], view: GraphView) -> bool:
    return _is_value(step.value, env[step.targets[0]], env, view)


def _is_value(expression: Expression, node: fx.Node, env: dict[str, fx.Node], view: GraphView) -> bool:
    if isinstance(expression, Name):
        return env[expression.name] is node
    assert isinstance(expression, Call)
    stands = [h for h in expression.heads if h.name in view.classes[node]]
    if expression.heads[-1].is_skip and not stands:
        return _is_value(expression.arguments[0], node, env, view)
    return bool(stands) and any(
        all(_is_value(a, v, env, view) for a, v in zip(expression.arguments, operands, strict=False))
        for operands in _operands(node, view)
        if len(operands) >= len(expression.arguments)
    )


def _operands(node: fx.Node, view: GraphView) -> Iterator[tuple[fx.Node, ...]]:
    inputs = view.operations[node].inputs
    yield from permutations(inputs) if view.operations[node].name in BINARY else [inputs]


slow = settings(max_examples=examples(10, full=50), deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(programs(), st.lists(patterns(), min_size=6, max_size=6))
def test_the_engine_finds_what_a_search_over_all_assignments_finds(program: Program, texts: list[str]) -> None:
    """So every constraint is true on every match, none is missed, and no binding leaks between alternatives."""
    module = captured(program)
    view, tried = GraphView(module.graph, module), 0
    for text in texts:
        try:
            pattern = parsed(text)
        except utc.UtcError:  # a line that is never read, or a name that no spelling shares
            continue
        assert found_by_engine(module.graph, module, pattern) == found_by_search(view, pattern)
        tried += 1
    assume(tried)


@slow
@given(programs(), patterns(), st.integers(0, 10**6))
def test_matches_do_not_depend_on_the_order_of_nodes(program: Program, text: str, seed: int) -> None:
    module = captured(program)
    try:
        pattern = parsed(text)
    except utc.UtcError:
        assume(False)
        return
    other = reordered(module.graph, random.Random(seed))
    assert found_by_engine(other, module, pattern) == found_by_engine(module.graph, module, pattern)


def reordered(graph: fx.Graph, rng: random.Random) -> fx.Graph:
    """The same nodes in another order in which each still follows what it reads."""
    result, copies, left = fx.Graph(), dict[fx.Node, fx.Node](), list(graph.nodes)
    while left:
        ready = [
            n for n in left if all(i in copies for i in n.all_input_nodes) and (n.op != "output" or len(left) == 1)
        ]
        inputs = [n for n in ready if n.op == "placeholder"]
        node = inputs[0] if inputs else rng.choice(ready)
        copies[node] = result.node_copy(node, copies.__getitem__)
        left.remove(node)
    return result


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "mixer_s32_224"])
@pytest.mark.parametrize("pattern", sorted(library_patterns()))
def test_named_patterns_do_not_depend_on_the_order_of_nodes(name: str, pattern: str) -> None:
    module = _model(name)
    mine = library_patterns()[pattern]
    first = found_by_engine(module.graph, module, mine)
    assert found_by_engine(reordered(module.graph, random.Random(1)), module, mine) == first


_MODELS: dict[str, utc.CapturedModule] = {}


def _model(name: str) -> utc.CapturedModule:
    if name not in _MODELS:
        model = timm.create_model(name).eval()
        _MODELS[name] = utc.capture(model, torch.randn(2, 3, 224, 224), dynamic=(), verify="shapes")
    return _MODELS[name]


@pytest.mark.parametrize("rules", ["u_tuning/dual", "lora/all_linear"])
def test_compiling_twice_gives_the_same_graph_and_names(rules: str) -> None:
    module = _model("vit_tiny_patch16_224")
    one, two = (utc.match(module, rules).apply() for _ in range(2))
    assert str(one.graph) == str(two.graph) and list(one.state_dict()) == list(two.state_dict())
    assert [s.id for s in one.sites] == [s.id for s in two.sites] and one.code == two.code

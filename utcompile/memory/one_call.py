"""Which linears and convolutions with LoRA become one operation in a planned graph, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

from torch import fx, nn
from torch.fx.node import Argument

from utcompile.graph import Role, info, is_state, more_than_its_class, tensor, value_of
from utcompile.memory.reading import Reading
from utcompile.memory.recipe import Recipe
from utcompile.memory.tuned_call import TunedCall
from utcompile.ops import Trait, having
from utcompile.rewrite.functional import to_function
from utcompile.tuners import Lora, recomputed
from utcompile.tuners.forms import cheapest_form
from utcompile.tuners.gradients import Sides

_CONVS = having(Trait.CONV)
_OPERATIONS = _CONVS | {"linear"}
_DEFAULTS = (1, 0, 1, 1)  # stride, padding, dilation, groups


@dataclass(frozen=True)
class OneCall:
    """A site whose operation and tuner become one.

    Attributes:
        operation: the node of the linear or convolution.
        tuner: the node that calls the tuner: on its result, or on its weight.
        path: of the tuner.
        name: of the operation.
    """

    operation: fx.Node
    tuner: fx.Node
    path: str
    name: str

    def write(self, graph: fx.Graph, root: nn.Module) -> set[str]:
        """Let the operation's node be both; returns the paths of the modules that are not called any more."""
        layers = {str(n.target) for n in (self.operation, self.tuner) if n.op == "call_module"}
        if info(self.tuner).role is Role.BRANCH:
            self._join_branch(graph, root)
        else:
            self._join_weight(graph)
        return layers

    def _join_branch(self, graph: fx.Graph, root: nn.Module) -> None:
        node, branch = self.operation, self.tuner
        recipe = getattr(branch.target, "recipe", None)
        starts = branch.args[3:] if recipe is not None else ()
        if node.op == "call_module":
            to_function(graph, node, root)
        x, weight, *rest = node.args
        self._put(graph, node, recipe, (x, weight), rest, starts)
        branch.op, branch.target, branch.args, branch.kwargs = "call_function", as_it_is, (node,), {}

    def _join_weight(self, graph: fx.Graph) -> None:
        node = self.operation
        recipe = getattr(node.target, "recipe", None)
        x, _, *rest = node.args[1:] if recipe is None else _sequence(node.args[1])
        self._put(graph, node, recipe, (x, self.tuner.args[0]), rest, node.args[3:] if recipe is not None else ())
        changed = self.tuner  # it may be the first node of a unit, so it stays, and computes nothing
        changed.op, changed.target, changed.args, changed.kwargs = "call_function", _nothing, (), {}

    def _put(
        self,
        graph: fx.Graph,
        node: fx.Node,
        recipe: Recipe | None,
        tensors: tuple[Argument, Argument],
        rest: Sequence[Argument],
        starts: Sequence[Argument],
    ) -> None:
        bias, *settings = rest or [None]
        is_conv = self.name in _CONVS
        given = cast(tuple[Sides, ...], (*settings, *_DEFAULTS[len(settings) :])[:3]) if is_conv else ()
        with graph.inserting_before(node):
            tuner = graph.get_attr(self.path)
        node.op, node.target, node.kwargs = "call_function", _function(TunedCall(self.name, given, recipe)), {}
        node.args = (tuner, *tensors, bias, *starts)


def one_calls(reading: Reading) -> Iterator[OneCall]:
    """The sites at which one operation is the cheapest form."""
    for node in reading.operations:
        found = _of_weight(reading, node) if node.target is recomputed else _of_branch(reading, node)
        if found is not None and node not in reading.regions and _is_cheapest(reading, found):
            yield found


def _of_branch(reading: Reading, node: fx.Node) -> OneCall | None:
    tuner = reading.tuner(node)
    if info(node).role is not Role.BRANCH or type(tuner) is not Lora or tuner.branch is None or len(node.args) != 2:
        return None
    x, operation = node.args
    if not isinstance(operation, fx.Node) or set(operation.users) != {node} or operation.args[:1] != (x,):
        return None
    op = reading.operations[operation]
    if (
        op.name != tuner.branch.name
        or op.name not in _OPERATIONS
        or not reading.is_frozen(operation)
        or operation.kwargs
    ):
        return None
    if operation.op == "call_module" and more_than_its_class(reading.root.get_submodule(str(operation.target))):
        return None
    if operation.op not in ("call_module", "call_function") or not has_plain_settings(op.attributes):
        return None
    return OneCall(operation, node, str(node.target), op.name)


def _of_weight(reading: Reading, node: fx.Node) -> OneCall | None:
    name, changed = node.args[0], node.args[2] if len(node.args) > 2 else None  # a weight may be named
    if name not in _OPERATIONS or node.kwargs or not isinstance(changed, fx.Node) or set(changed.users) != {node}:
        return None
    tuner = reading.tuner(changed)
    if type(tuner) is not Lora or tuner.stack or tuner.turned or len(changed.args) != 1 or changed.kwargs:
        return None
    weight, others = changed.args[0], [n for n in node.all_input_nodes if n is not changed and is_state(n)]
    if (
        not isinstance(weight, fx.Node)
        or weight.op != "get_attr"
        or any(n in reading.trains for n in (weight, *others))
    ):
        return None
    settings = dict(zip(("stride", "padding", "dilation", "groups"), node.args[4:], strict=False))
    return OneCall(node, changed, str(changed.target), str(name)) if has_plain_settings(settings) else None


def has_plain_settings(attributes: Mapping[str, object]) -> bool:
    """Whether a convolution has one group, and pads with a known number of zeros."""
    mode, padding, groups = (
        attributes.get(n, d) for n, d in (("padding_mode", "zeros"), ("padding", 0), ("groups", 1))
    )
    return mode == "zeros" and not isinstance(padding, str) and groups == 1


def _is_cheapest(reading: Reading, found: OneCall) -> bool:
    x = next((n for n in found.operation.all_input_nodes if value_of(n) is not None and not is_state(n)), None)
    tuner = reading.tuner(found.tuner)
    assert isinstance(tuner, Lora)
    if tuner.as_one is not None:
        return tuner.as_one
    if x is None or value_of(found.operation) is None:
        return False
    read, written = (prod(tensor(n).sizes(8)) for n in (x, found.operation))
    return cheapest_form(tuner.weight_shape, tuner.rank * tuner.slice_count, read, written) == "one"


def _function(call: TunedCall) -> Callable[..., object]:
    def tuned_call(*args: object) -> object:
        return call(*args)  # type: ignore[arg-type]

    tuned_call.__module__ = __name__
    tuned_call.__qualname__ = "tuned_call"
    return tuned_call


def _sequence(value: Argument) -> Sequence[Argument]:
    assert isinstance(value, (tuple, list))
    return value


def as_it_is(value: object) -> object:
    return value


def _nothing() -> None:
    return None

"""What a base computes, in lines that do not depend on node names, batch or image size: how two bases are compared.

    4 conv2d <- 3, stem.weight; dilation=(1, 1) groups=1 padding=(1, 1) stride=(2, 2)

Listed are the operations that make a model what it is: those with weights, activations, norms, attention, arithmetic.
Layouts, padding, sizes and checks are left out, because they may differ between two image sizes of one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import fx

from utcompile.graph import GraphView, Operation, Role, info, is_state, state_name, value_of
from utcompile.ops import Trait, having
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite, TunedWeight

_LISTED = having(Trait.ACTIVATION | Trait.NORM | Trait.LISTED)
# modes, and sizes that the shapes of the weights have, of which those of a head may differ
_OF_NO_MATTER = frozenset(
    "training inplace in_features out_features in_channels out_channels num_embeddings embedding_dim".split()
)
_BY_MODE = frozenset(["use_input_stats"])  # of a layer: whether it has statistics is seen in what it reads
_known: WeakKeyDictionary[fx.Graph, Wiring] = WeakKeyDictionary()


class Wiring:
    """The operations of a graph as lines, and what each node is computed from.

    Attributes:
        lines: one per listed operation, in graph order.
    """

    def __init__(self, tuned: TunedModule) -> None:
        view = GraphView(tuned.base_graph, tuned)
        self.lines: list[str] = []
        self.sources: dict[str, tuple[str, ...]] = {}  # by the node's name
        for node in view.nodes:
            op = view.operations[node]
            if node.op == "placeholder":
                found: tuple[str, ...] = (str(node.target),)
            elif _is_listed(node, op):
                found = (str(len(self.lines)),)
                self.lines.append(self._line(node, op))
            else:
                found = self._before(node.all_input_nodes)
            self.sources[node.name] = found

    def _before(self, nodes: list[fx.Node]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for n in nodes for s in self.sources[n.name]))

    def _line(self, node: fx.Node, op: Operation) -> str:
        state = [state_name(n) or "computed" for n in node.all_input_nodes if is_state(n)]
        names = dict.fromkeys([*op.parameters.values(), *state])
        reads = ", ".join([*self._before([n for n in op.inputs if not is_state(n)]), *names])
        return f"{op.name} <- {reads}; {_attributes(op, is_layer=node.op == 'call_module')}".removesuffix("; ")


def wiring(tuned: TunedModule) -> Wiring:
    """The wiring of a tuned module's base; graphs are not changed, so it is found once."""
    if tuned.base_graph not in _known:
        _known[tuned.base_graph] = Wiring(tuned)
    return _known[tuned.base_graph]


def place_of_site(tuned: TunedModule, site: TunedSite) -> list[str]:
    """What a site's nodes read, in terms of the base's operations; of a weight tuner, the parameters it changes."""
    if isinstance(site.place, TunedWeight) and site.place.tunes:
        return [f"{role} {name}" for role, name in sorted(site.place.tunes.items())]
    sources = wiring(tuned).sources
    nodes = [n for n in tuned.graph.nodes if info(n).site == site.id and info(n).role in (Role.TUNER, Role.SUM)]
    reads = [[_of_base(n) for n in node.all_input_nodes] for node in nodes]
    return [
        f"{info(node).role} {', '.join(s for n in before for s in sources.get(n.name, (n.op,)))}"
        for node, before in zip(nodes, reads, strict=True)
    ]


def _of_base(node: fx.Node) -> fx.Node:
    """The value of the base that a value has grown from."""
    while info(node).site is not None and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_listed(node: fx.Node, op: Operation) -> bool:
    if node.op in ("get_attr", "output") or is_state(node):
        return False
    return bool(op.parameters) or (op.name in _LISTED and value_of(node) is not None)


def _attributes(op: Operation, *, is_layer: bool) -> str:
    kinds: tuple[type, ...] = (str, bool, float)
    if op.parameters or op.name in ("pool", "softmax", "log_softmax"):
        kinds = (*kinds, int)
    left_out = _OF_NO_MATTER | (_BY_MODE if is_layer else frozenset())
    return " ".join(f"{k}={v}" for k, v in sorted(op.attributes.items()) if k not in left_out and _plain(v, kinds))


def _plain(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_plain(v, kinds) for v in value)
    return type(value) in kinds


def first_difference(theirs: list[str], mine: list[str], shown: Mapping[str, str]) -> str | None:
    """The first operation in which two wirings differ, as a sentence; None where they are equal.

    Args:
        shown: the two words for the sides, `theirs` and `mine`.
    """
    for i, (a, b) in enumerate(zip(theirs, mine, strict=False)):
        if a != b:
            return f"operation {i} is {a!r} {shown['theirs']}, {b!r} {shown['mine']}"
    if len(theirs) != len(mine):
        return f"there are {len(theirs)} operations {shown['theirs']}, {len(mine)} {shown['mine']}"
    return None

"""The model being folded: its graph, and a root whose changed weights are float64 on the CPU until a site is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.folding.execute import in_float64, in_precision
from utcompile.folding.inputs import ProofInputs
from utcompile.folding.patch import Home
from utcompile.graph import (
    GraphView,
    Operation,
    descendants,
    every_name,
    is_parameter,
    is_state,
    owner_path,
    replace_state,
    run_node,
    state_at,
)


class Unfoldable(Exception):
    """Why a site cannot be folded."""


@dataclass(frozen=True)
class Options:
    """The options of a fold: parts of the base that are folded too, and how; see `fold`."""

    float32: bool = False
    constants: bool = False
    batch_norms: bool = False
    dequantize: bool = False


@dataclass
class Folding:
    """The model being folded, as folds read it; only a `Trial` changes it.

    Attributes:
        graph, root: a copy of the tuned model.
        inputs: what the proofs run on.
        options: of the fold.
        original: the names of the parameters before folding.
        seen_as: nodes that were copied from the tuned graph -> their names there.
        changed: parameter name -> the dtype and device that it has in the end.
        gone: nodes that a patch on trial has taken out; they are erased when it is kept.
        rescaling: for the nodes that were asked, whether each scales its weight down in place, in each call.
    """

    graph: fx.Graph
    root: nn.Module
    inputs: ProofInputs
    options: Options = Options()
    original: frozenset[str] = frozenset()
    seen_as: dict[fx.Node, str] = field(default_factory=dict)
    changed: dict[str, Home] = field(default_factory=dict)
    gone: dict[fx.Node, None] = field(default_factory=dict)
    rescaling: dict[fx.Node, bool] = field(default_factory=dict)
    _view: GraphView | None = None
    _is_rewired: bool = False
    _others: set[fx.Node] = field(default_factory=set)  # whose operation the view does not know
    _read: dict[str, torch.Tensor] = field(default_factory=dict)  # in float64, until the site is done
    _rounded: dict[str, torch.Tensor] = field(default_factory=dict)

    # --- the graph ----------------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[fx.Node]:
        """The nodes of the graph, without those that a patch on trial has taken out."""
        return (n for n in self.graph.nodes if n not in self.gone) if self.gone else iter(self.graph.nodes)

    def view(self) -> GraphView:
        """An index of the graph as it is."""
        if self._view is None or self._others:
            self._view = GraphView(self.graph, self.root)
        elif self._is_rewired:
            self._view = self._view.rewritten()
        self._is_rewired = False
        self._others.clear()
        return self._view

    def known(self, nodes: Iterable[fx.Node]) -> GraphView:
        """An index that has some nodes, whose values are still what they were: an earlier one, where there is one."""
        found = self._view
        return found if found is not None and all(n in found.position for n in nodes) else self.view()

    def outdate(self, others: Collection[fx.Node]) -> None:
        """The graph has been rewired; some of its nodes have become other operations."""
        self._is_rewired = True
        self._others |= set(others)
        for node in others:
            self.rescaling.pop(node, None)

    def observed(self, node: fx.Node, draw: int) -> object:
        """What a node that chooses yields in the tuned model, on the CPU and in float64; None where it was not seen."""
        found = self.inputs.observed(self.seen_as.get(node, ""), draw)
        return pytree.tree_map(lambda t: in_float64("", t) if isinstance(t, torch.Tensor) else t, found)

    def evaluate(self, node: fx.Node) -> torch.Tensor:
        """The value of a node computed from parameters alone, in float64."""
        result = self._evaluate(node)
        assert isinstance(result, torch.Tensor)
        return result

    def _evaluate(self, node: fx.Node) -> object:
        return run_node(self.root, node, self._evaluate, in_float64)

    @property
    def batch(self) -> int:
        """The batch size of the proofs."""
        return self.inputs.batch

    def stamp(self) -> Stamp:
        """What the model is, to be compared with what it is later."""
        return Stamp.of(self)

    # --- parameters and buffers ---------------------------------------------------------------------------------------

    @property
    def home(self) -> Home:
        """The dtype and device of the base's first floating-point parameter."""
        named = ((n, p) for n, p in self.root.named_parameters() if not n.startswith(("tuners.", "base_values.")))
        found = next((n for n, p in named if p.is_floating_point()), None)
        return self.home_of(found) if found else (torch.get_default_dtype(), torch.device("cpu"))

    def home_of(self, name: str) -> Home:
        """The dtype and device that a parameter has in the end."""
        if name in self.changed:
            return self.changed[name]
        found = self.raw(name)
        return found.dtype, found.device

    def state(self, name: str) -> torch.Tensor:
        """A parameter or buffer in float64."""
        found = self.raw(name)
        if found.dtype == torch.float64:
            return found.detach().cpu()
        if name not in self._read:
            self._read[name] = in_float64(name, found)
        return self._read[name]

    def raw(self, name: str) -> torch.Tensor:
        """A parameter or buffer as it is now."""
        return state_at(self.root, name)

    def is_parameter(self, name: str) -> bool:
        """Whether a name is a parameter's, and not a buffer's or that of a value computed from several."""
        return is_parameter(self.root, name)

    def cast(self, name: str, state: torch.Tensor) -> torch.Tensor:
        """For `run_node`: everything in float64; a tuner's own state is not kept."""
        is_number = state.is_floating_point() or state.is_complex()
        return self.state(name) if is_number and not name.startswith("tuners.") else in_float64(name, state)

    def rounded(self, name: str, state: torch.Tensor, into: torch.dtype | None = None) -> torch.Tensor:
        """For `run_node`: everything as it is in the end, and then in another dtype, on the CPU."""
        state = state.detach().cpu()
        if not (state.is_floating_point() or state.is_complex()):
            return state
        if name in self.changed:
            if name not in self._rounded:
                self._rounded[name] = state.to(self.changed[name][0])
            state = self._rounded[name]
        return state if into is None else in_precision(state, into)

    def forget(self, names: Iterable[str]) -> None:
        """Parameters or buffers have other values now."""
        for name in names:
            self._read.pop(name, None)
            self._rounded.pop(name, None)

    def settle(self, all: bool = False) -> None:
        """A site is done: round what it changed to the dtype it had, where it was; what is half only at last.

        In float32 a second rounding is none that counts, and the memory of a large model in float64 is one that does.
        """
        self._read.clear()
        for name, (dtype, device) in list(self.changed.items()):
            if dtype.itemsize < 4 and not all:
                continue
            del self.changed[name]
            value = self._rounded.pop(name, self.raw(name).detach())
            replace_state(self.root, name, value.to(device, dtype))
        self._rounded.clear()

    # --- conditions ---------------------------------------------------------------------------------------------------

    def check_read_once(self, node: fx.Node, name: str) -> None:
        """Refuse a parameter or buffer that anything but one node reads, or that has a second name."""
        owner = owner_path(name)
        readers = [n for n in self.nodes() if n.op == "call_module" and str(n.target) == owner]
        read = [n for n in self.nodes() if n.op == "get_attr" and str(n.target) == name]
        readers += [n for n in descendants(read, until=lambda n: not is_state(n)) if not is_state(n)]
        tensor = self.raw(name)
        others = [r.name for r in readers if r is not node]
        others += [n for n, t in every_name(self.root) if t is tensor and n != name]
        if others:
            raise Unfoldable(f"{name} is shared with {others[0]}")

    def check_unshared(self, node: fx.Node, op: Operation) -> None:
        """Refuse a weight that another operation reads too."""
        readers = [n for n in self.nodes() if n is not node and n.op == "call_module" and n.target == node.target]
        if node.op == "call_function":
            state = [a for a in node.all_input_nodes if is_state(a)]
            readers += [u for a in state for u in a.users if u is not node]
        weight = self.raw(op.parameters["weight"])
        named = [n for n, p in self.root.named_parameters(remove_duplicate=False) if p is weight]
        if readers or len(named) > 1:
            other = readers[0].name if readers else named[1]
            raise Unfoldable(f"the weight {op.parameters['weight']} is shared with {other}")


@dataclass(frozen=True)
class Stamp:
    """The objects that a graph and its parameters are made of."""

    objects: tuple[object, ...]

    @classmethod
    def of(cls, model: Folding) -> Stamp:
        """Those of a model, as it is."""
        nodes = (o for n in model.graph.nodes for o in (n, n.target, n.args, n.kwargs))
        return cls((*nodes, *model.root.parameters(), *model.root.buffers()))

    def is_of(self, model: Folding) -> bool:
        """Whether a model is still made of the same objects."""
        now = Stamp.of(model).objects
        return len(now) == len(self.objects) and all(a is b for a, b in zip(now, self.objects, strict=True))

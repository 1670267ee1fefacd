"""Read and write the weights of linears and convolutions, whether modules or functions, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.fold.execute import in_float64, in_precision
from utcompile.fold.inputs import ProofInputs
from utcompile.graph import (
    GraphView,
    Operation,
    every_name,
    info,
    inserted,
    is_parameter,
    is_state,
    module_of,
    owner_path,
    replace_state,
    run_node,
    set_operand,
    set_parameter,
    state_at,
)


class Unfoldable(Exception):
    """Why a site cannot be folded."""


@dataclass
class Work:
    """The model being folded: a graph, and a root whose changed weights are float64 on the CPU until `finish`.

    Attributes:
        inputs: what the proofs run on.
        seen_as: nodes that were copied from the tuned graph -> their names there.
        changed: parameter name -> the dtype and device that it has in the end.
        touched: what the site that is being folded has changed so far.
    """

    graph: fx.Graph
    root: nn.Module
    inputs: ProofInputs
    seen_as: dict[fx.Node, str] = field(default_factory=dict)
    changed: dict[str, tuple[torch.dtype, torch.device]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    _view: GraphView | None = None
    _read: dict[str, torch.Tensor] = field(default_factory=dict)  # in float64, until the site is done
    _rounded: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def home(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and device of the base's first floating-point parameter."""
        named = ((n, p) for n, p in self.root.named_parameters() if not n.startswith(("tuners.", "base_values.")))
        found = next((n for n, p in named if p.is_floating_point()), None)
        return self.home_of(found) if found else (torch.get_default_dtype(), torch.device("cpu"))

    @property
    def batch(self) -> int:
        """The batch size of the proofs."""
        return self.inputs.batch

    def observed(self, node: fx.Node, draw: int) -> Any:
        """What a node that chooses yields in the tuned model, on the CPU and in float64; None where it was not seen."""
        found = self.inputs.observed(self.seen_as.get(node, ""), draw)
        return pytree.tree_map(lambda t: in_float64("", t) if isinstance(t, torch.Tensor) else t, found)

    def view(self) -> GraphView:
        """An index of the graph, as it was when the last site had been folded."""
        if self._view is None:
            self._view = GraphView(self.graph, self.root)
        return self._view

    def forget_view(self, layouts: bool = False) -> None:
        """The graph has changed; and the layout of its values, or what its operations are."""
        if self._view is not None:
            self._view = None if layouts else self._view.rewritten()

    def state(self, name: str) -> torch.Tensor:
        """A parameter or buffer in float64."""
        found = state_at(self.root, name)
        if found.dtype == torch.float64:
            return found.detach().cpu()
        if name not in self._read:
            self._read[name] = in_float64(name, found)
        return self._read[name]

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

    def home_of(self, name: str) -> tuple[torch.dtype, torch.device]:
        """The dtype and device that a parameter has in the end."""
        if name in self.changed:
            return self.changed[name]
        found = state_at(self.root, name)
        return found.dtype, found.device

    def raw(self, name: str) -> torch.Tensor:
        """A parameter or buffer as it is now."""
        return state_at(self.root, name)

    def add(self, name: str, value: torch.Tensor, dtype: torch.dtype) -> None:
        """Register a new parameter, given in float64, that has a dtype in the end."""
        device = next((t.device for t in self.root.parameters()), torch.device("cpu"))
        set_parameter(self.root, name, None)
        self.changed[name] = dtype, device
        self._forget(name)
        replace_state(self.root, name, in_float64(name, value))

    def is_parameter(self, name: str) -> bool:
        """Whether a name is a parameter's, and not a buffer's or that of a value computed from several."""
        return is_parameter(self.root, name)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Replace a parameter or buffer by a float64 value."""
        self.changed[name] = self.home_of(name)
        self._forget(name)
        replace_state(self.root, name, in_float64(name, value))

    def _forget(self, name: str) -> None:
        self.touched.add(name)
        for known in (self._read, self._rounded):
            known.pop(name, None)

    def in_float32(self, name: str) -> None:
        """Let a parameter or buffer be float32 in the end."""
        self.put(name, self.state(name))
        self.changed[name] = (torch.float32, self.changed[name][1])

    def settle(self, all: bool = False) -> None:
        """A site is done: round what it changed to the dtype it had, where it was; what is half only at last.

        In float32 a second rounding is none that counts, and the memory of a large model in float64 is one that does.
        """
        self._read.clear()
        self.touched.clear()
        for name, (dtype, device) in list(self.changed.items()):
            if dtype.itemsize < 4 and not all:
                continue
            del self.changed[name]
            value = self._rounded.pop(name, state_at(self.root, name).detach())
            replace_state(self.root, name, value.to(device, dtype))
        self._rounded.clear()

    def remove_scale(self, node: fx.Node) -> None:
        """Take a frozen affine map out; its readers read what it read."""
        node.replace_all_uses_with(next(n for n in node.all_input_nodes if not is_state(n)))
        self.graph.erase_node(node)

    def drop_bias(self, node: fx.Node, name: str) -> None:
        """Take away the bias of a linear or convolution."""
        set_parameter(self.root, name, None)
        self.changed.pop(name, None)
        self._read.pop(name, None)
        for read in [n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) == name]:
            node.args = tuple(None if a is read else a for a in node.args)
            node.kwargs = {k: v for k, v in node.kwargs.items() if v is not read}
            if not read.users:
                self.graph.erase_node(read)

    def evaluate(self, node: fx.Node) -> torch.Tensor:
        """The value of a node computed from parameters alone, in float64."""
        result = self._evaluate(node)
        assert isinstance(result, torch.Tensor)
        return result

    def _evaluate(self, node: fx.Node) -> Any:
        return run_node(self.root, node, self._evaluate, in_float64)

    def check_read_once(self, node: fx.Node, name: str) -> None:
        """Refuse a parameter or buffer that anything but one node reads, or that has a second name."""
        owner = owner_path(name)
        readers = [n for n in self.graph.nodes if n.op == "call_module" and str(n.target) == owner]
        stack = [n for n in self.graph.nodes if n.op == "get_attr" and str(n.target) == name]
        while stack:
            for user in stack.pop().users:
                (stack if is_state(user) else readers).append(user)
        tensor = state_at(self.root, name)
        every = every_name(self.root)
        others = [r.name for r in readers if r is not node] + [n for n, t in every if t is tensor and n != name]
        if others:
            raise Unfoldable(f"{name} is shared with {others[0]}")

    def check_unshared(self, node: fx.Node, op: Operation) -> None:
        """Refuse a weight that another operation reads too."""
        readers = [n for n in self.graph.nodes if n is not node and n.op == "call_module" and n.target == node.target]
        if node.op == "call_function":
            state = [a for a in node.all_input_nodes if is_state(a)]
            readers += [u for a in state for u in a.users if u is not node]
        weight = state_at(self.root, op.parameters["weight"])
        named = [n for n, p in self.root.named_parameters(remove_duplicate=False) if p is weight]
        if readers or len(named) > 1:
            other = readers[0].name if readers else named[1]
            raise Unfoldable(f"the weight {op.parameters['weight']} is shared with {other}")


@dataclass(frozen=True)
class Planned:
    """A fold that has been found possible, and not yet been done.

    Attributes:
        sources: values that it leaves alone, from which everything that it changes is computed.
        outputs: the nodes whose values must stay the same.
        commit: does it; returns the nodes that then yield the values of `outputs`.
        retained: the share of the tuner's effect that rounding to the model's dtype leaves; None where it is measured.
    """

    sources: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    commit: Callable[[], Sequence[fx.Node]]
    retained: float | None = None


@dataclass
class Layer:
    """A linear or convolution node, its weight `(out, in/groups, *kernel)` and bias `(out,)` in float64."""

    work: Work
    node: fx.Node
    op: Operation

    @property
    def weight(self) -> torch.Tensor:
        """The weight in float64."""
        return self.work.state(self.op.parameters["weight"])

    @property
    def bias(self) -> torch.Tensor:
        """The bias in float64; zeros where there is none."""
        name = self.op.parameters.get("bias")
        return self.work.state(name) if name else self.weight.new_zeros(self.weight.shape[0])

    def outputs_bias(self, count: int) -> torch.Tensor:
        """The bias in float64, in its own shape; zeros of a number of outputs where there is none."""
        name = self.op.parameters.get("bias")
        return self.work.state(name) if name else self.weight.new_zeros(count)

    def change(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace weight and bias by others of the same sizes; a bias of zeros is not added."""
        name = self.op.parameters["weight"]
        home, existing = self.work.home_of(name), self.op.parameters.get("bias")
        self.work.put(name, weight)
        if existing:
            self.work.put(existing, bias)
        elif bool(bias.any()):
            owner = owner_path(name)
            if self.node.op == "call_function":
                self._add_bias(owner, bias)
            added = f"{owner}.bias".lstrip(".")
            self.work.changed[added] = home
            self.work.put(added, bias)

    def check(self) -> None:
        """Refuse what cannot be rewritten."""
        computed = [n.name for n in self.node.all_input_nodes if is_state(n) and n.op != "get_attr"]
        if computed:
            raise Unfoldable(f"{computed[0]}, a parameter of {self.node.name}, is computed from others")
        self.work.check_unshared(self.node, self.op)

    def put(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace weight and bias, which may have other sizes; the layer keeps its name."""
        name = self.op.parameters["weight"]
        owner = owner_path(name)
        home = self.work.home_of(name)
        if self.node.op == "call_module":
            self._replace_module(weight.shape, owner)
        elif not self.op.parameters.get("bias"):
            self._add_bias(owner, bias)
        names = {"weight": name, "bias": self.op.parameters.get("bias") or f"{owner}.bias".lstrip(".")}
        self.work.put(names["weight"], weight)
        self.work.put(names["bias"], bias)
        self.work.changed.update(dict.fromkeys(names.values(), home))
        self.op = Operation(self.op.name, self.op.inputs, self.op.attributes, names)

    def _replace_module(self, shape: torch.Size, path: str) -> None:
        old = self.work.root.get_submodule(path)
        new: nn.Module
        if self.op.name == "linear":
            new = nn.Linear(shape[1], shape[0], device="meta")
        else:
            a = self.op.attributes
            grouped = a["groups"] != 1
            make: Any = module_of(self.op.name)
            new = make(
                shape[0] if grouped else shape[1],
                shape[0],
                tuple(shape[2:]),
                a["stride"],
                a["padding"],
                a["dilation"],
                shape[0] if grouped else 1,
                padding_mode=a.get("padding_mode", "zeros"),
                device="meta",
            )
        new.train(old.training)
        parent, _, child = path.rpartition(".")
        self.work.root.get_submodule(parent).add_module(child, new)
        new.requires_grad_(False)

    def _add_bias(self, owner: str, bias: torch.Tensor) -> None:
        """A function without a bias gets one."""
        name = f"{owner}.bias".lstrip(".")
        self.work.root.get_submodule(owner).register_parameter("bias", nn.Parameter(bias, requires_grad=False))
        with self.work.graph.inserting_before(self.node):
            node = self.work.graph.get_attr(name)
        inserted(node, info(self.node).origin, state=True)
        set_operand(self.node, "bias", node)


def widen_groups(node: fx.Node, groups: int) -> None:
    """Set the groups of a depthwise convolution that is a function; a module was rebuilt with them."""
    if node.op == "call_function":
        set_operand(node, "groups", groups)

"""What proofs run on: the example that a model was captured with, calls drawn like it, and a user's samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.errors import GuardError, UtcError
from utcompile.graph import UtcGraphModule, full_precision, value_of
from utcompile.graph.likeness import Likeness, batch_of, tables_of, without_example
from utcompile.graph.structure import named_state
from utcompile.graph.values_kept import values_kept
from utcompile.modes import evaluating

_BATCH = 2
_DRAWS = 3  # of calls with integers or booleans: what they choose differs from call to call
_REAL_DRAWS = 2
Call = tuple[str, tuple[object, ...], dict[str, object]]
Sample = torch.Tensor | tuple[object, ...] | Mapping[str, object]
Samples = Sample | list[Sample] | None


class ProofInputs:
    """Calls of one tuned model.

    Args:
        tuned: the model.
        check_inputs: real samples, each as `example_inputs` of `capture`; one, or a list of them.
    """

    def __init__(self, tuned: UtcGraphModule, check_inputs: Samples = None) -> None:
        self.tuned = tuned
        found = tuned.example_inputs
        if found is None:
            self.whole, batch = without_example(tuned.graph, _BATCH), _BATCH
        else:
            arguments = found.arguments(tuned.dtype, tuned.device)
            self.whole = Likeness.of(arguments, tuned.batch_inputs)
            batch = batch_of(arguments, tuned.batch_inputs) or _BATCH
        self.example = self.whole.at(_BATCH)
        if batch != _BATCH and tuned.guards and self._is_refused(self.example):
            self.example = self.whole.at(batch)
        self.batch = self.example.batch or _BATCH
        self.tables = tables_of(tuned.graph, tuned)
        self.given = [_call_of(i, sample) for i, sample in enumerate(_samples(check_inputs))]
        leaves = pytree.tree_leaves(dict(self.example.arguments))
        chosen = any(isinstance(t, torch.Tensor) and not t.is_floating_point() for t in leaves)
        self.draws = _DRAWS if chosen else _REAL_DRAWS
        self._observed: dict[int, dict[str, object]] = {}

    def _is_refused(self, call: Likeness) -> bool:
        """Whether a guard refuses a call."""
        try:
            with evaluated(self.tuned):
                self.tuned(**call.on(self.tuned.device))
        except GuardError:
            return True
        except Exception:  # the proof says why
            return False
        return False

    def calls(self) -> Iterator[tuple[Call, bool]]:
        """Every call of the whole model, and whether it must run: what is drawn may not fit the model."""
        for draw in range(self.draws):
            yield self.call(draw), draw == 0
        for name, args, kwargs in self.given:
            moved = pytree.tree_map(self._moved, (args, kwargs))
            yield (name, *moved), True

    def call(self, draw: int) -> Call:
        """Call 0 is the example, the others are drawn like it."""
        made = self.example if draw == 0 else self.whole.drawn(draw, self.tables, self.example.batch)
        name = "on the example inputs" if draw == 0 else f"on inputs drawn like the example (draw {draw})"
        return name, (), made.on(self.tuned.device)

    def sizes_read(self, call: Call) -> list[float]:
        """For each floating-point output, the largest finite number that the operation behind it reads."""
        _, args, kwargs = copy_of(call)
        bound = inspect.signature(self.tuned.forward).bind(*args, **kwargs).arguments
        sizes = _Sizes(self.tuned)
        torch.manual_seed(0)
        with values_kept(self.tuned):
            sizes.run(*_in_order(self.tuned.graph, bound))
        return sizes.found

    def _moved(self, leaf: object) -> object:
        return leaf.to(self.tuned.device) if isinstance(leaf, torch.Tensor) else leaf

    def observed(self, name: str, draw: int) -> object:
        """What a node of the tuned model yields in a call: no floating-point numbers; None where it was not seen."""
        if draw not in self._observed:
            self._observed[draw] = {}
            _, _, arguments = self.call(draw)
            watcher = _Watcher(self.tuned, self._observed[draw])
            try:
                with evaluated(self.tuned):
                    watcher.run(*_in_order(self.tuned.graph, arguments))
            except Exception:  # of draw 0, the proof of the whole model says why
                pass
        return self._observed[draw].get(name)


class _Watcher(fx.Interpreter):
    """Runs a graph, and keeps what chooses: integers, booleans, sizes and packed sequences."""

    def __init__(self, module: UtcGraphModule, kept: dict[str, object]) -> None:
        super().__init__(module)
        self.kept = kept
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> object:
        """As fx runs it."""
        result = super().run_node(n)
        if n.op in ("placeholder", "call_module", "call_function", "call_method") and _chooses(n, result):
            self.kept[n.name] = pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, result)
        return result


class _Sizes(fx.Interpreter):
    """Runs a graph, and measures what the operations behind its outputs read."""

    def __init__(self, module: UtcGraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.behind = {n for n in pytree.tree_leaves(_returned(module.graph)) if isinstance(n, fx.Node)}
        self.read: dict[fx.Node, float] = {}
        self.found: list[float] = []

    def run_node(self, n: fx.Node) -> object:
        """As fx runs it."""
        if n in self.behind:
            self.read[n] = _largest(self.map_nodes_to_values(n.all_input_nodes, n))
        if n.op == "output":
            for leaf in pytree.tree_leaves(n.args[0]):
                values = pytree.tree_leaves(self.env[leaf]) if isinstance(leaf, fx.Node) else []
                self.found += [self.read.get(leaf, 0.0) for v in values if _is_real(v)]
        return super().run_node(n)


def _returned(graph: fx.Graph) -> object:
    return next(n for n in graph.nodes if n.op == "output").args[0]


def _is_real(value: object) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _largest(values: object) -> float:
    real = [t.abs() for t in pytree.tree_leaves(values) if _is_real(t)]
    return max((t[t.isfinite()].max().item() for t in real if t.isfinite().any()), default=0.0)


def _chooses(node: fx.Node, result: object) -> bool:
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return True
    tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    is_number = value_of(node) is None or bool(tensors)
    return is_number and not any(t.is_floating_point() or t.is_complex() for t in tensors)


def _in_order(graph: fx.Graph, arguments: Mapping[str, object]) -> list[object]:
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    return [arguments.get(str(n.target), n.args[0] if n.args else None) for n in inputs]


@contextmanager
def evaluated(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval, in full precision; nothing that runs inside leaves a trace in them or in random numbers."""
    devices = {t.device for m in modules for t in named_state(m).values()}
    gpus = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    with evaluating(*modules), full_precision(), torch.random.fork_rng(gpus), values_kept(*modules):
        yield


def outputs_of(module: nn.Module, call: Call) -> list[torch.Tensor]:
    """The floating-point and complex outputs of a call, with the same random numbers and state in every one."""
    _, args, kwargs = copy_of(call)
    torch.manual_seed(0)
    with values_kept(module):  # a folded model may share the state that the tuned one writes into
        found = [t.clone() for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    return [t for t in found if t.is_floating_point() or t.is_complex()]


def copy_of(call: Call) -> Call:
    """A call whose tensors a model may write into."""
    name, args, kwargs = call
    copied = pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, (args, kwargs))
    return (name, *copied)


def _samples(check_inputs: Samples) -> Sequence[Sample]:
    if check_inputs is None:
        return ()
    return check_inputs if isinstance(check_inputs, list) else [check_inputs]


def _call_of(number: int, sample: Sample) -> Call:
    name = f"on check_inputs[{number}]"
    if isinstance(sample, torch.Tensor):
        return name, (sample,), {}
    if isinstance(sample, Mapping):
        return name, (), dict(sample)
    if isinstance(sample, tuple):
        return name, sample, {}
    raise UtcError(
        f"check_inputs[{number}] is a {type(sample).__name__}",
        fix="give a tensor, a tuple of positional arguments or a dict of keyword arguments, or a list of such samples",
        code="fold/inputs",
    )

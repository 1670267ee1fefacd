"""What proofs run on: the example that a model was captured with, calls drawn like it, and a user's samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, full_precision, value_of
from utcompile.graph.likeness import Likeness, tables_of, without_example
from utcompile.graph.memory import KeptMemory
from utcompile.graph.structure import named_state
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
            self.whole = without_example(tuned.graph, _BATCH)
        else:
            self.whole = Likeness.of(found.arguments(tuned.dtype, tuned.device), tuned.batch_inputs)
        self.example = self.whole.at(_BATCH)
        self.batch = self.example.batch or _BATCH
        self.tables = tables_of(tuned.graph, tuned)
        self.given = [_call_of(i, sample) for i, sample in enumerate(_samples(check_inputs))]
        leaves = pytree.tree_leaves(dict(self.example.arguments))
        chosen = any(isinstance(t, torch.Tensor) and not t.is_floating_point() for t in leaves)
        self.draws = _DRAWS if chosen else _REAL_DRAWS
        self._observed: dict[int, dict[str, object]] = {}

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
    state = [named_state(m).values() for m in modules]
    memory = KeptMemory([t for found in state for t in found])
    gpus = sorted({t.device.index or 0 for found in state for t in found if t.device.type == "cuda"})
    try:
        with evaluating(*modules), full_precision(), torch.random.fork_rng(gpus), memory:
            yield
    finally:
        memory.put_back()


def outputs_of(module: nn.Module, call: Call) -> list[torch.Tensor]:
    """The floating-point and complex outputs of a call, with the same random numbers in every one."""
    _, args, kwargs = copy_of(call)
    torch.manual_seed(0)
    found = [t for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    return [t.clone() for t in found if t.is_floating_point() or t.is_complex()]


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
    )

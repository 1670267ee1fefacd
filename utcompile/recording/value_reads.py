"""Reads of values of tensors by Python: a choice that is recorded and checked in calls, or a reason not to record."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from utcompile.graph import Seen, info
from utcompile.graph.nested import flat
from utcompile.recording.active import Args, Function
from utcompile.recording.derived import same_choice
from utcompile.recording.recorded import holds_numbers
from utcompile.recording.source import source_line
from utcompile.recording.unrecordable import READS_DATA, READS_SIZES, Unrecordable
from utcompile.recording.writer import Writer

T = torch.Tensor
# operations that keep the numbers of an input readable, element by element
_ELEMENTWISE = frozenset(
    "getitem getattr unbind select reshape view flatten squeeze unsqueeze split chunk to long int cpu clone contiguous "
    "detach mul prod floordiv add sub __get__".split()
)


class ValueReads:
    """The values that the Python code of one recording reads.

    Args:
        writer: writes the graph.
        fixed: inputs whose values are part of the graph; Python may read them.
        wide: modules too large to be one node: a choice by values in their own code is recorded, and checked in calls.

    Attributes:
        choices: the lines that read a value which every call checks.
    """

    def __init__(self, writer: Writer, fixed: frozenset[str], wide: frozenset[str]) -> None:
        self._writer, self._fixed, self._wide = writer, fixed, wide
        self.choices: dict[str, None] = {}

    def vary(self, args: object) -> bool:
        """Whether values may differ in another call: by an input whose values are not fixed, or by a size."""
        return not self._sources(args) <= self._fixed or any(info(n).sized for n in self._writer.cone(args))

    def choice(self, func: Function, args: Args) -> object:
        """Read a value that is recorded and checked in calls.

        Raises:
            Unrecordable: the module is not a wide one, or what is read is no choice; the module stays one node then.
        """
        holders = self._holders(func, args)
        value = func(*args) if self._writer.path in self._wide else None
        if holders or isinstance(value, float) or value is None or func is T.numpy:
            raise self._writer.unrecordable("Python reads the values of a tensor", data=True, holders=holders)
        return self.same_choice(args[0], value)

    def same_choice(self, tensor: object, value: object) -> object:
        """Python read a value that may differ in another call: it is recorded, and checked in calls."""
        line = source_line()
        self._writer.call(same_choice, (self._writer.argument(tensor), self._writer.argument(value), line))
        self.choices[line] = None
        return value

    def error(self, func: Function, args: Args, error: Exception) -> Unrecordable:
        """The error of a call that needs numbers which a fake tensor does not have; the caller raises it."""
        if isinstance(error, DynamicOutputShapeException) and func not in READS_DATA:
            return self._writer.unrecordable("a size depends on the values of a tensor", shape=True)
        if not self._sources(args):
            return self._writer.unrecordable("Python reads the values of a weight", shape=True)
        reason = f"Python depends on the values of a tensor ({type(error).__name__})"
        return self._writer.unrecordable(reason, data=True, holders=self._holders(func, args))

    def _sources(self, args: object) -> set[str]:
        """The inputs that tensors are computed from; a leaf counts as one."""
        return {str(n.target) for n in self._writer.cone(args) if n.op in ("placeholder", "call_module")}

    def _holders(self, func: Function, args: Args) -> tuple[str, ...]:
        """The inputs that Python reads numbers from: sizes, element by element (`grid_thw.tolist()`), or one number."""
        if func not in READS_SIZES and func is not T.__float__:
            return ()
        nodes = self._writer.known(flat(args))
        found: dict[str, None] = {}
        while nodes:
            node = nodes.pop()
            seen = info(node).seen
            if node.op == "placeholder" and isinstance(seen, Seen) and holds_numbers(seen):
                found[str(node.target)] = None
            elif node.op == "placeholder" or getattr(node.target, "__name__", node.target) not in _ELEMENTWISE:
                return ()
            nodes += node.all_input_nodes
        return tuple(found)

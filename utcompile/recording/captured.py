"""`CapturedModule`: a frozen model as a torch.fx graph."""

from __future__ import annotations

from dataclasses import dataclass

from utcompile.graph import UtcGraphModule
from utcompile.recording.guards import Guard
from utcompile.recording.unrecordable import Opaque


@dataclass(frozen=True)
class CaptureReport:
    """The findings of a capture.

    Attributes:
        operations: number of graph nodes.
        unreachable: parameters and buffers that the graph never reads.
        barriers: writes into shared memory that stay in place; no tuner crosses them.
        verified: the comparison that was made with the model: `values at the example inputs`, `shapes`.
        opaque: modules that are one node, each with its reason and source line.
        pinned: sizes that the model keeps at the example's, each with its reason and source line.
        guards: decisions of the model's Python code by sizes and properties of inputs; each call must agree.
        by_mode: where the mode decides, under `base="follow"`.
        state: attributes and other Python state that `forward` assigns and no later call reads.
        random: random numbers of Python or NumPy, and clocks, that `forward` reads: their values are constants.
        notes: modules that are recorded in another form, and effects that are dropped, each with its consequence.
    """

    operations: int
    unreachable: tuple[str, ...]
    barriers: tuple[str, ...]
    verified: str
    opaque: tuple[Opaque, ...] = ()
    pinned: tuple[str, ...] = ()
    by_mode: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    state: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.operations} operations, verified: {self.verified}"]
        lines += [f"opaque: {one}; it runs as it is, and nothing inside it is matched" for one in self.opaque]
        for kind in ("pinned", "guards", "notes", "unreachable", "barriers", "state", "random"):
            lines += [f"{kind.removesuffix('s')}: {one}" for one in getattr(self, kind)]
        return "\n".join(lines)


class CapturedModule(UtcGraphModule):
    """A frozen model as a graph; it shares the model's memory and none of its flags.

    Attributes:
        report: the findings of the capture (`CaptureReport`).
        batch_inputs: names of the inputs whose dimension 0 is the batch.
        guards: conditions that every call must meet; a call that does not is a `UtcError`.
    """

    report: CaptureReport
    kept_attributes = (*UtcGraphModule.inherited, "report")

    def __str__(self) -> str:
        parameters = sum(p.numel() for p in self.parameters())
        head = f"CapturedModule of {type(self).__name__}: {parameters:,} parameters, {self.report}"
        return f"{head}\n{self.code.strip()}"

    def extra_repr(self) -> str:
        """One line in `repr`."""
        return f"operations={self.report.operations}"

"""The part of `utcompile explain` on memory: how much work a training step takes in less and less memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utcompile.cli import output

if TYPE_CHECKING:
    from utcompile.memory import MemoryPlan

_BAR = 24  # columns


def show_curve(plan: MemoryPlan, batch: int) -> None:
    """Print the curve of a plan as a table with a row per point."""
    from rich.table import Table

    from utcompile.memory import shown

    before = plan.before
    assert before is not None
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("a training step", no_wrap=True)
    for name in ("peak", "share", "kept", "work", "again"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("peak", no_wrap=True)
    for i, point in enumerate((before, *plan.curve)):
        name = ("as torch keeps it", "planned")[i] if i < 2 else f"memory={point.peak / before.peak:.2f}"
        share, work = point.peak / before.peak, point.flops / max(before.flops, 1)
        bar = "#" * max(round(_BAR * share), 1)
        table.add_row(name, shown(point.peak), f"{share:.2f}", shown(point.kept), f"{work:.2f}", str(point.units), bar)
    output.say("")
    output.stdout().print(table)
    output.say(f"batch {batch}, without {shown(plan.others)} of parameters, buffers and inputs")
    output.say("work: FLOPs of products and convolutions, which the time follows")
    output.say("again: blocks that run again in backward")

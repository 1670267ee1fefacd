"""What a tuned module knows beyond its graph and tensors."""

from __future__ import annotations

from torch import fx

from utcompile.graph import UtcGraphModule
from utcompile.rewrite.memory_protocol import Memory
from utcompile.rewrite.tasks import Tasks
from utcompile.rewrite.tuned_site import TunedSite
from utcompile.rules import RuleSet


class TunedState(UtcGraphModule):
    """The attributes of a tuned module, and of each of its regions.

    Attributes:
        sites: the tuners in place, in file order.
        trained: names of the backbone's parameters that train too.
        ruleset: the rules it was compiled with.
        base_graph: the graph without tuners.
        proven: what was compared with the base when the tuners were inserted, or why nothing was.
        tasks: which task is in place, and those that wait.
        memory: how a call keeps less for backward (`utcompile.memory.MemoryPlan`); None: it keeps what torch keeps.
    """

    sites: tuple[TunedSite, ...]
    trained: tuple[str, ...]
    ruleset: RuleSet
    base_graph: fx.Graph
    tasks: Tasks
    proven: str = "unproven"
    memory: Memory | None = None

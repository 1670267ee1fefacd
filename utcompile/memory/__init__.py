"""What a tuned module keeps in memory for backward: less, and exactly what its gradients need."""

from utcompile.memory.execution import Planned, planned_forward
from utcompile.memory.plan import MemoryPlan
from utcompile.memory.planned import Saving
from utcompile.memory.prefix import split_prefix
from utcompile.memory.sizes import read_bound, read_budget, shown

__all__ = ["MemoryPlan", "Planned", "Saving", "planned_forward", "read_bound", "read_budget", "shown", "split_prefix"]

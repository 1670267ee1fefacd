"""The table of operations: names, glosses, signatures, spellings and traits, without torch."""

from utcompile.ops.row import Row
from utcompile.ops.table import GLOSSES, GROUPS, ROWS, add, callables, callables_with, having, remove, words
from utcompile.ops.traits import Axes, Trait

__all__ = [
    "GLOSSES",
    "GROUPS",
    "ROWS",
    "Axes",
    "Row",
    "Trait",
    "add",
    "callables",
    "callables_with",
    "having",
    "remove",
    "words",
]

"""Rules × graph -> `Plan`, and the nearest misses."""

from utcompile.match.engine import Engine
from utcompile.match.match import match
from utcompile.match.plan import Plan
from utcompile.match.sites import Site

__all__ = ["Engine", "Plan", "Site", "match"]

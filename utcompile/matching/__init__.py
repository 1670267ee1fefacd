"""Rules × graph -> `PlanData`, and the nearest misses."""

from utcompile.matching.engine import Engine
from utcompile.matching.forms import ChainPlace, Place, TokensPlace, ValuePlace, WeightPlace
from utcompile.matching.found import require_sites
from utcompile.matching.match_rules import match
from utcompile.matching.plan import PlanData, TunerDtype
from utcompile.matching.projection import Projection
from utcompile.matching.sites import Site
from utcompile.matching.tokens import Attention

__all__ = [
    "Attention",
    "ChainPlace",
    "Engine",
    "Place",
    "PlanData",
    "Projection",
    "Site",
    "TokensPlace",
    "TunerDtype",
    "ValuePlace",
    "WeightPlace",
    "match",
    "require_sites",
]

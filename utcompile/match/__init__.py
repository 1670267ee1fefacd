"""Rules × graph -> `PlanData`, and the nearest misses."""

from utcompile.match.engine import Engine
from utcompile.match.forms import ChainPlace, Place, TokensPlace, ValuePlace, WeightPlace
from utcompile.match.found import require_sites
from utcompile.match.match import match
from utcompile.match.plan import PlanData, TunerDtype
from utcompile.match.projection import Projection
from utcompile.match.sites import Site
from utcompile.match.tokens import Attention

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

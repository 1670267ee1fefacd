"""`TunedModule` -> plain module, with a proof a site."""

from utcompile.fold.fold import fold
from utcompile.fold.report import FoldedSite, FoldReport

__all__ = ["FoldReport", "FoldedSite", "fold"]

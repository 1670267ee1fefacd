"""`TunedModule` -> plain module, with a proof per site; and what folds are made of."""

from utcompile.fold.base import Case, Fold, register_fold, registered_folds
from utcompile.fold.fold import fold
from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.patch import Added, Argument, Arguments, Edit, New, Patch, Redirect, Remove, Replace, Retype, Unread
from utcompile.fold.report import FoldedSite, FoldReport
from utcompile.fold.site import Site

__all__ = [
    "Added",
    "Argument",
    "Arguments",
    "Case",
    "Edit",
    "Fold",
    "FoldReport",
    "FoldedSite",
    "Folding",
    "New",
    "Patch",
    "Redirect",
    "Remove",
    "Replace",
    "Retype",
    "Site",
    "Unfoldable",
    "Unread",
    "fold",
    "register_fold",
    "registered_folds",
]

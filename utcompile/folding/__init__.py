"""`TunedModule` -> plain module, with a proof per site; and what folds are made of."""

from utcompile.folding.base import Fold, register_fold, registered_folds
from utcompile.folding.case import Case
from utcompile.folding.fold_model import fold
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import (
    Added,
    Argument,
    Edit,
    New,
    Patch,
    Redirect,
    Remove,
    Replace,
    Retype,
    Unread,
)
from utcompile.folding.report import FoldedSite, FoldReport
from utcompile.folding.site import Site

__all__ = [
    "Added",
    "Argument",
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

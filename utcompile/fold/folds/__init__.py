"""The folds of tuners, in the order in which they are tried, and those of the base."""

from utcompile.fold.base import register_fold
from utcompile.fold.folds.absorb_map import AbsorbMap
from utcompile.fold.folds.absorb_weight import AbsorbWeight
from utcompile.fold.folds.batch_norms import BatchNorms
from utcompile.fold.folds.biases import MoveBiases
from utcompile.fold.folds.constants import Constants
from utcompile.fold.folds.dequantize import Dequantize
from utcompile.fold.folds.tokens import ConstantTokens
from utcompile.fold.folds.widen import Widen

register_fold("absorb_weight")(AbsorbWeight)
register_fold("dequantize")(Dequantize)
register_fold("constant_tokens")(ConstantTokens)
register_fold("absorb_map")(AbsorbMap)
register_fold("widen")(Widen)

BASE_FOLDS = (MoveBiases(), BatchNorms(), Constants())

__all__ = ["BASE_FOLDS"]

"""The folds of tuners, in the order in which they are tried, and those of the base."""

from utcompile.folding.base import register_fold
from utcompile.folding.folds.absorb_map import AbsorbMap
from utcompile.folding.folds.absorb_weight import AbsorbWeight
from utcompile.folding.folds.batch_norms import BatchNorms
from utcompile.folding.folds.biases import MoveBiases
from utcompile.folding.folds.constants import Constants
from utcompile.folding.folds.dequantize import Dequantize
from utcompile.folding.folds.tokens import ConstantTokens
from utcompile.folding.folds.widen import Widen

register_fold("absorb_weight")(AbsorbWeight)
register_fold("dequantize")(Dequantize)
register_fold("constant_tokens")(ConstantTokens)
register_fold("absorb_map")(AbsorbMap)
register_fold("widen")(Widen)

BASE_FOLDS = (MoveBiases(), BatchNorms(), Constants())

__all__ = ["BASE_FOLDS"]

"""A thin trainer for models with tuners: data, a loop on accelerate and timm, metrics, runs that resume exactly."""

from utcompile.train.dataset import Data
from utcompile.train.load import load_data
from utcompile.train.loop import TrainResult, fit
from utcompile.train.metrics import accuracy

__all__ = ["Data", "TrainResult", "accuracy", "fit", "load_data"]

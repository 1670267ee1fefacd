"""A thin trainer for models with tuners: data, a loop on accelerate and timm, metrics, runs that resume exactly."""

from utcompile.train.dataset import Data
from utcompile.train.hugging_face import trainer_of_tuners
from utcompile.train.load import load_data
from utcompile.train.loop import fit
from utcompile.train.metrics import accuracy
from utcompile.train.result import TrainResult
from utcompile.train.tasks import make_task

__all__ = ["Data", "TrainResult", "accuracy", "fit", "load_data", "make_task", "trainer_of_tuners"]

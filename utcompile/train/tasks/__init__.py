"""What a model is trained for: the loss, the metrics, and what the model must return."""

from utcompile.train.tasks.base import Meter, Task
from utcompile.train.tasks.classify import Classify
from utcompile.train.tasks.custom import Custom
from utcompile.train.tasks.make import METRICS, TASKS, make_task
from utcompile.train.tasks.multilabel import Multilabel
from utcompile.train.tasks.regress import Regress
from utcompile.train.tasks.segment import IGNORED, Segment

__all__ = [
    "IGNORED",
    "METRICS",
    "TASKS",
    "Classify",
    "Custom",
    "Meter",
    "Multilabel",
    "Regress",
    "Segment",
    "Task",
    "make_task",
]

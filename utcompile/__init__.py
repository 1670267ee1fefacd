"""utcompile: a model-graph compiler that inserts tuners by itself.

captured = utc.capture(model, example_inputs)
plan = utc.match(captured, "u_tuning/dual")
tuned = plan.apply()
"""

from utcompile.api import compile, match
from utcompile.capture import CapturedModule, capture
from utcompile.deploy import ExportResult, export_onnx
from utcompile.errors import UtcError
from utcompile.fold import FoldReport, fold
from utcompile.match import Plan
from utcompile.rewrite import TunedModule, disable_tuners, load_tuners, save_tuners
from utcompile.rules import RuleSet
from utcompile.tuners import register_tuner

__all__ = [
    "CapturedModule",
    "ExportResult",
    "FoldReport",
    "Plan",
    "RuleSet",
    "TunedModule",
    "UtcError",
    "capture",
    "compile",
    "disable_tuners",
    "export_onnx",
    "fold",
    "load_tuners",
    "match",
    "register_tuner",
    "save_tuners",
]

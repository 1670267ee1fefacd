"""utcompile: a model-graph compiler that inserts tuners by itself.

    captured = utc.capture(model, example_inputs)
    plan = utc.match(captured, "u_tuning/dual")
    tuned = plan.apply()

The names are loaded when they are first used, so that `utcompile --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utcompile.api import compile, match
    from utcompile.deploy import ExportResult, OnnxModel, add_task, export_onnx
    from utcompile.errors import UtcError
    from utcompile.folding import FoldReport, fold, register_fold
    from utcompile.memory import split_prefix
    from utcompile.parts import CapturedParts, capture_parts
    from utcompile.plan import Plan
    from utcompile.plan_of_parts import PartsPlan
    from utcompile.recording import CapturedModule, capture
    from utcompile.register import register_operation
    from utcompile.rewrite import (
        TunedModule,
        disable_tuners,
        load_peft,
        load_task,
        load_tuners,
        peft_rules,
        save_peft,
        save_tuners,
        set_task,
    )
    from utcompile.rules import RuleSet
    from utcompile.tuners import register_tuner

_HOMES = {
    "CapturedModule": "recording",
    "CapturedParts": "parts",
    "ExportResult": "deploy",
    "FoldReport": "folding",
    "OnnxModel": "deploy",
    "PartsPlan": "plan_of_parts",
    "Plan": "plan",
    "RuleSet": "rules",
    "TunedModule": "rewrite",
    "UtcError": "errors",
    "add_task": "deploy",
    "capture": "recording",
    "capture_parts": "parts",
    "compile": "api",
    "disable_tuners": "rewrite",
    "export_onnx": "deploy",
    "fold": "folding",
    "load_peft": "rewrite",
    "load_task": "rewrite",
    "load_tuners": "rewrite",
    "match": "api",
    "peft_rules": "rewrite",
    "register_fold": "folding",
    "register_operation": "register",
    "register_tuner": "tuners",
    "save_peft": "rewrite",
    "save_tuners": "rewrite",
    "set_task": "rewrite",
    "split_prefix": "memory",
}

__all__ = [
    "CapturedModule",
    "CapturedParts",
    "ExportResult",
    "FoldReport",
    "OnnxModel",
    "PartsPlan",
    "Plan",
    "RuleSet",
    "TunedModule",
    "UtcError",
    "add_task",
    "capture",
    "capture_parts",
    "compile",
    "disable_tuners",
    "export_onnx",
    "fold",
    "load_peft",
    "load_task",
    "load_tuners",
    "match",
    "peft_rules",
    "register_fold",
    "register_operation",
    "register_tuner",
    "save_peft",
    "save_tuners",
    "set_task",
    "split_prefix",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'utcompile' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"utcompile.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

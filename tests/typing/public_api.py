"""Types of the public API, as a type checker sees them: `make check` reads this file, and nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_type

import torch
from torch import nn
from torch.utils.data import DataLoader

import utcompile as utc
from utcompile.deploy import Latency, ParityReport, accuracy_onnx, latency, verify_onnx
from utcompile.folding import Fold, FoldedSite, Patch
from utcompile.rewrite import TunedSite
from utcompile.train import Data, TrainResult, fit, load_data
from utcompile.tuners import Tuner, TunerConfig, TunerSite

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
x = torch.randn(2, 3, 3, 3)

captured = utc.capture(model, (x,), dynamic={"input": {0: "B"}}, verify="full")
assert_type(captured, utc.CapturedModule)
rules = utc.RuleSet.load("lora/all_linear", vars={"r": 2})
assert_type(rules, utc.RuleSet)
plan = utc.match(captured, rules)
assert_type(plan, utc.Plan)
assert_type(plan.apply(), utc.TunedModule)

tuned = utc.compile(model, "lora/all_linear", {"input": x}, vars={"r": 2})
assert_type(tuned, utc.TunedModule)
assert_type(tuned.sites, tuple[TunedSite, ...])
assert_type(tuned.trainable_parameters(), tuple[int, int])
with utc.disable_tuners(tuned) as inside:
    assert_type(inside, utc.TunedModule)

folded, report = utc.fold(tuned)
module: nn.Module = folded
assert_type(report, utc.FoldReport)
assert_type(report.kept, tuple[FoldedSite, ...])
assert_type(report.is_original, bool)

assert_type(utc.export_onnx(folded, "model.onnx", (x,)), utc.ExportResult)
assert_type(verify_onnx("model.onnx", folded, (x,)), ParityReport)
assert_type(latency({"a": Path("model.onnx")}, (x,)), dict[str, Latency])

data = load_data("photos/")
assert_type(data, Data)
assert_type(accuracy_onnx("model.onnx", DataLoader(data.validation)), float)
result = fit(tuned, data, out="run/", save=lambda folder: None, load=lambda folder: None)
assert_type(result, TrainResult)

error = utc.UtcError("what", where="where", why="why", fix="fix", code="mine/own")
assert_type(error.code, str)
assert_type(error.within("rule 'a'"), utc.UtcError)


class ScaleConfig(TunerConfig):
    """The options of a custom tuner."""

    kind: Literal["typed_scale"] = "typed_scale"
    start: float = 1.0


@utc.register_tuner("typed_scale")
class Scale(Tuner):
    """A custom tuner type-checks as one."""

    config_class = ScaleConfig
    forms = ("sequential",)

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(config.start))

    @classmethod
    def build(cls, config: ScaleConfig, site: TunerSite) -> Scale:
        """Make one for a site."""
        return cls(config)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`s · x`."""
        return self.scale * value


assert_type(Scale(ScaleConfig()), Scale)
folds: tuple[type[Fold], ...] = ()
patch: Patch | None = None

"""The source line of a node is the model's own; where torch's containers call one another, it is the container's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import utcompile as utc
from utcompile.graph import origin_of


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 2


MODELS = {
    "a sequence": (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2))), {"container.py"}),
    "a transformer of torch": (
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True),
        {"transformer.py"},
    ),
    "its own code": (Own(), {"test_source_lines.py"}),
    "its own code in a sequence": (nn.Sequential(Own(), nn.Linear(4, 2)), {"test_source_lines.py", "container.py"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_line_is_of_the_model_or_of_torchs_container(kind: str) -> None:
    model, files = MODELS[kind]
    captured = utc.capture(model.eval(), torch.randn(2, 3, 4))
    lines = [origin_of(n).source for n in captured.graph.nodes if n.op == "call_module" and origin_of(n).source]
    assert lines and {line.partition(":")[0] for line in lines} == files

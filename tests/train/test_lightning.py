"""Lightning, the real package: a tuned model is an attribute of a `LightningModule`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from support.transformer_toys import Transformer
from torch.utils.data import DataLoader, TensorDataset

import utcompile as utc

lightning = pytest.importorskip("lightning")
pytestmark = [pytest.mark.filterwarnings("ignore")]  # of lightning, about workers and loggers


def tuned_of() -> utc.TunedModule:
    torch.manual_seed(0)
    tuned = utc.compile(Transformer().eval(), "lora/all_linear", torch.randn(2, 5, 6))
    zoo.shake(tuned, 0.1)
    return tuned


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 5, 6, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2)) > 0).long()), batch_size=4)


def test_lightning_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, tuned: utc.TunedModule) -> None:
            super().__init__()
            self.tuned = tuned

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return F.cross_entropy(self.tuned(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    mine = tuned_of()
    start, theirs = copy.deepcopy(mine), copy.deepcopy(mine)
    optimizer = torch.optim.AdamW([p for p in mine.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        for x, y in data():
            optimizer.zero_grad()
            F.cross_entropy(mine(x), y).backward()
            optimizer.step()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(Module(theirs), data())
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value)
    utc.save_tuners(theirs, tmp_path / "run")
    x = torch.randn(2, 5, 6)
    assert not torch.equal(start(x), theirs(x))
    utc.load_tuners(start, tmp_path / "run")
    assert torch.equal(start(x), theirs(x))

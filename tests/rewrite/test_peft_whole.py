"""Reading and writing PEFT's checkpoints is all or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.peft_toys import WARNINGS, compiled, written_to
from torch import nn

import utcompile as utc

pytestmark = WARNINGS


@pytest.fixture
def written(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    return written_to(tmp_path)


def test_loading_is_all_or_nothing(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model, x, folder = written
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tuned = compiled(model, utc.peft_rules(folder), x)

    def refused(changed: dict[str, torch.Tensor], into: utc.TunedModule = tuned) -> str:
        before = {k: v.clone() for k, v in into.state_dict().items()}
        save_file({k: v.clone() for k, v in changed.items()}, file)  # without the fingerprint, as PEFT writes it
        with pytest.raises(utc.UtcError, match="does not fit the model") as caught:
            utc.load_peft(into, folder)
        assert all(torch.equal(v, before[k]) for k, v in into.state_dict().items())
        return str(caught.value)

    a, b = "base_model.model.block.fc.lora_A.weight", "base_model.model.block.fc.lora_B.weight"
    assert "lora/block.fc/0: the checkpoint has nothing for it" in refused(
        {k: v for k, v in tensors.items() if k not in (a, b)}
    )
    assert "block.fd: the model has no site there" in refused(
        tensors | {a.replace("fc", "fd"): tensors[a], b.replace("fc", "fd"): tensors[b]}
    )
    assert "lora/block.fc/0:lora_B: [4, 2] in the checkpoint, [4, 3] here" in refused(
        tensors | {b: tensors[b][:, :2].clone()}
    )
    head = "base_model.model.head.bias"
    assert "head.bias: it is trained here, and not in the checkpoint" in refused(
        {k: v for k, v in tensors.items() if k != head}
    )
    assert "head.bias: [3] in the checkpoint, [4] here" in refused(tensors | {head: torch.ones(3)})
    assert "neck.weight: the model has no such parameter" in refused(
        tensors | {"base_model.model.neck.weight": torch.ones(3)}
    )
    frozen = {"base_model.model.block.fc.base_layer.weight": model.block.fc.weight + 1}
    assert "block.fc.weight: it is frozen here, and other than the checkpoint's" in refused(tensors | frozen)
    scaled = compiled(model, utc.RuleSet.load(tuned.ruleset.text.replace("alpha: 5", "alpha: 6")), x)
    assert "its rank is 3 and its scale 2, in the checkpoint 3 and 1.66667" in refused(tensors, scaled)
    dora = compiled(model, utc.RuleSet.load(tuned.ruleset.text.replace("kind: lora", "kind: dora")), x)
    assert "it is dora, the checkpoint lora" in refused(tensors, dora)
    save_file(tensors | {"base_model.model.block.fc.base_layer.weight": model.block.fc.weight.detach()}, file)
    utc.load_peft(tuned, folder)  # frozen and the same


def test_a_failed_write_leaves_nothing(
    written: tuple[nn.Module, torch.Tensor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, folder = written
    tuned = compiled(model, utc.peft_rules(folder), x)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(utc.UtcError, match="cannot be written"):
            utc.save_peft(tuned, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(utc.UtcError, match="a checkpoint is a folder"):
        utc.save_peft(tuned, tmp_path / "file")

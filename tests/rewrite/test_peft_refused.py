"""What PEFT's checkpoints cannot say, or utcompile cannot read, is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.peft_toys import LORA, WARNINGS, Named, compiled, made, rules, written_to
from torch import nn

import utcompile as utc

pytestmark = WARNINGS


@pytest.fixture
def written(tmp_path: Path) -> tuple[nn.Module, torch.Tensor, Path]:
    return written_to(tmp_path)


class Doubling(nn.Linear):
    """A linear whose call is not that of a linear."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(2 * x, self.weight, self.bias)


class Odd(nn.Module):
    """One of each that PEFT leaves untuned, refuses or computes otherwise, and two that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(8, 8)
        self.grouped, self.dilated = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.reflect = nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect")
        self.transposed = nn.ConvTranspose1d(8, 8, 1)
        self.read, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)
        self.doubling = Doubling(8, 8)
        self.again = self.alias = nn.Linear(8, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.own = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.transposed(self.reflect(self.dilated(self.grouped(self.doubling(self.fine(x)).mT)))).mT
        y = F.linear(self.alias(self.again(self.twice(self.twice(y)))), self.read.weight) @ self.own
        return self.mha(y, y, y, need_weights=False)[0]


def test_what_peft_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    tuned = compiled(
        made(Odd), rules("linear | conv | conv_transpose | matmul", LORA).replace("    except: [head]\n", ""), x
    )
    with pytest.raises(utc.UtcError) as refused:
        utc.save_peft(tuned, tmp_path / "none")
    text = str(refused.value)
    for words in (
        "l/grouped/0: its groups=2, and PEFT's A reads all channels in each group",
        "l/dilated/0: its dilation=(2,), which PEFT's A does not have",
        "l/reflect/0: its padding_mode='reflect', and PEFT's A pads with zeros",
        "l/transposed/0: PEFT does not tune ConvTranspose1d",
        "l/again/0: it has two names in the model, and PEFT tunes the first alone",
        "l/doubling/0: Doubling computes with its weight in its own code",
        ": its weight is read without a call of the module, where PEFT's tuner has no effect",
        "it tunes own, and PEFT the weights of modules",
        "it tunes mha.in_proj_weight, and PEFT the weights of modules",
    ):
        assert words in text
    for site in tuned.sites:
        assert (site.id in text) == (site.path not in ("fine", "twice"))
    assert not (tmp_path / "none").exists()


TWO = """
version: 1
name: t
rules:
  - {name: a, match: {op: linear}, where: [h.path == 'fc'], insert: {weight: h, tuner: {kind: lora%s}}}
  - {name: b, match: {op: linear}, where: [h.path == 'block.fc'], insert: {%s}}
train: [%s]
"""


@pytest.mark.parametrize(
    ("first", "second", "train", "words"),
    [
        ("", "weight: h, tuner: {kind: dora}", "", "b/block.fc/0: its tuner is dora, others' lora, and PEFT has one for all"),
        (", dropout: 0.1", "weight: h, tuner: {kind: lora}", "", "b/block.fc/0: its dropout is 0.0, others' 0.1"),
        ("", "weight: h, tuner: {kind: ssf}", "", "b/block.fc/0: its tuner is weight ssf, and only lora and dora"),
        ("", "sequential: h, tuner: {kind: ia3}", "", "b/block.fc/0: its tuner is sequential ia3"),
        ("", "weight: h, tuner: {kind: lora, slices: [1/2]}", "", "b/block.fc/0: it tunes slices of a packed weight"),
        ("", "weight: h, tuner: {kind: lora}", "'parameter:fc.bias'", "a/fc/0, b/block.fc/0: it is in fc, which is trained itself"),
        ("", "weight: h, tuner: {kind: lora}", "'module:block.conv'", ""),
    ],
)  # fmt: skip
def test_what_peft_says_once(first: str, second: str, train: str, words: str, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    tuned = compiled(made(Named), TWO % (first, second, train), x)
    if not words:
        utc.save_peft(tuned, tmp_path)
        return
    with pytest.raises(utc.UtcError, match="PEFT cannot hold these sites") as refused:
        utc.save_peft(tuned, tmp_path)
    assert words in str(refused.value) and not list(tmp_path.iterdir())


class Bare(nn.Module):
    """A parameter of the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


def test_what_no_module_owns_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    how = rules("linear", LORA, "train: ['parameter:scale']").replace("    except: [head]\n", "")
    with pytest.raises(utc.UtcError, match="PEFT cannot hold") as refused:
        utc.save_peft(compiled(made(Bare), how, x), tmp_path)
    assert "scale: it is trained itself, and no module owns it" in str(refused.value)
    with pytest.raises(utc.UtcError, match="save_peft takes a TunedModule, not Linear"):
        utc.save_peft(nn.Linear(2, 2), tmp_path)
    with pytest.raises(utc.UtcError, match="load_peft takes a TunedModule, not Linear"):
        utc.load_peft(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "ADALORA"}, "ADALORA is not read"),
        ({"bias": "boft_only"}, 'bias: "boft_only"'),
        ({"lora_bias": True}, "the tensors of block.fc are not a whole tuner"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights: "pissa"'),
        ({"target_parameters": ["fc.weight", "fc.bias"]}, "which parameters of block.fc are tuned is unclear"),
        ({"target_parameters": "fc.weight"}, "target_parameters is no list of names"),
        ({"rank_pattern": ["fc"], "target_parameters": ["fc.weight"]}, "rank_pattern is no table"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"of_a_later_version": True}, "of_a_later_version: true"),
        ({"lora_alpha": "8}"}, "is no number"),
        ({"alpha_pattern": {"(": 2}}, "is no regular expression"),
        ({"use_dora": True}, "the tensors of block.fc are not a whole tuner"),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    written: tuple[nn.Module, torch.Tensor, Path], change: dict[str, Any], words: str
) -> None:
    file = written[2] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(utc.UtcError) as refused:
        utc.peft_rules(written[2])
    assert words in str(refused.value)


def test_broken_files_are_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    folder = written[2]
    tensors = load_file(folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="there is no PEFT checkpoint here"):
        utc.peft_rules(folder / "none")
    save_file({k: v for k, v in tensors.items() if "lora" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="no tensors of LoRA"):
        utc.peft_rules(folder)
    save_file({"base_model.model.fc.lora_C.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(utc.UtcError, match="no tensor of a plain LoRA or DoRA"):
        utc.peft_rules(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(utc.UtcError, match="cannot be read") as refused:
        utc.peft_rules(folder)
    assert "save it again with save_pretrained" in str(refused.value)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(utc.UtcError, match="no configuration of PEFT"):
        utc.peft_rules(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(utc.UtcError, match="no JSON"):
        utc.peft_rules(folder)


def test_tuners_inside_tuners_are_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    file = written[2] / "adapter_model.safetensors"
    tensors = load_file(file)
    for inner in ("block.fc.base_layer", "fc.base_layer.in_proj"):
        inside = {f"base_model.model.{inner}.lora_{n}.weight": torch.ones(3, 3) for n in "AB"}
        save_file(tensors | inside, file)
        with pytest.raises(utc.UtcError, match="no tensor of a plain LoRA or DoRA") as refused:
            utc.peft_rules(written[2])
        assert inner in str(refused.value)


class Leaking(nn.Module):
    """Parameters that are also read outside of the calls in which PEFT changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.mha, self.own = nn.MultiheadAttention(8, 2, batch_first=True), Own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.mha(x, x, x)[0] @ self.mha.in_proj_weight[:8]) @ self.own.weight


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    "options", [{"target_modules": ["mha"]}, {"target_modules": [], "target_parameters": ["own.weight"]}]
)
def test_a_parameter_that_is_read_outside_of_its_module_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = made(Leaking), torch.randn(2, 5, 8, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match="does not fit the model") as refused:
        utc.load_peft(tuned, tmp_path)
    assert "where PEFT's tuner has no effect" in str(refused.value)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.tanh(self.conv(x)))


def test_a_grouped_convolution_that_is_called_twice_is_refused(tmp_path: Path) -> None:
    model, x = made(Twice), torch.randn(2, 8, 5, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["conv"])).save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match="its module is called several times"):
        utc.load_peft(tuned, tmp_path)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_statistics_that_peft_trained_are_refused(tmp_path: Path) -> None:
    """LayerNorm tuning of a BatchNorm moves its running statistics, which are frozen here."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LNTuningConfig(target_modules=["1"])).train()
    theirs(x)
    theirs.save_pretrained(tmp_path)
    tuned = compiled(model, utc.peft_rules(tmp_path), x)
    with pytest.raises(utc.UtcError, match=r"1\.running_mean.*it is frozen here, and other than the checkpoint's"):
        utc.load_peft(tuned, tmp_path)


@pytest.mark.parametrize("inputs", [False, True])
def test_factors_of_ia3_that_do_not_fit_are_refused(inputs: bool, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"] if inputs else [])
    model, x = nn.Sequential(nn.Linear(4, 6)).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path)
    other = f"kind: ia3, inputs: {str(not inputs).lower()}"
    tuned = compiled(model, rules("linear", other).replace("    except: [head]\n", ""), x)
    with pytest.raises(utc.UtcError, match="the checkpoint scales what its module"):
        utc.load_peft(tuned, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"feedforward_modules": [] if inputs else ["0"]}))
    with pytest.raises(utc.UtcError, match="are not on what it"):
        utc.peft_rules(tmp_path)


def test_another_base_is_refused(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model, x, folder = written
    other = copy.deepcopy(model)
    nn.init.ones_(other.block.xfc.bias)
    with pytest.raises(utc.UtcError, match="trained on another base"):
        utc.load_peft(compiled(other, utc.peft_rules(folder), x), folder)


def test_modules_that_the_model_lacks_are_named(written: tuple[nn.Module, torch.Tensor, Path]) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double()
    with pytest.raises(utc.UtcError, match="matched 0 places, expected at least 3") as refused:
        compiled(model, utc.peft_rules(written[2]), torch.randn(2, 4, dtype=torch.float64))
    assert "nothing matches at fc, block.fc, block.xfc" in str(refused.value).replace(
        "block.fc, block.xfc, fc", "fc, block.fc, block.xfc"
    )
    assert "the model has: 0" in str(refused.value)

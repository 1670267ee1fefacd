"""Small models of the kinds that PEFT's own tests of custom models have, and the configurations that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Mlp(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.lin0, self.norm, self.drop = nn.Linear(10, 20, bias=bias), nn.LayerNorm(20), nn.Dropout(0.5)
        self.lin1, self.head = nn.Linear(20, 8, bias=bias), nn.Linear(8, 2, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.lin1(self.drop(torch.relu(self.norm(self.lin0(x)))))))


class Batched(nn.Module):
    """Norms with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.bn, self.lin1 = nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(torch.relu(self.bn(self.lin0(x))))


class Words(nn.Module):
    """An embedding, and the Conv1D of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv1d, self.lin0 = nn.Embedding(100, 5), Conv1D(6, 5), nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lin0(torch.relu(self.conv1d(self.emb(ids))))


class Tied(nn.Module):
    """A head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lin0, self.head = nn.Embedding(30, 6), nn.Linear(6, 6), nn.Linear(6, 30, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.lin0(self.emb(ids))))


class Convs(nn.Module):
    """Two convolutions of some dimension, and a linear."""

    def __init__(self, n: int, groups: int = 1, **more: Any) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
        self.conv0 = conv(4, 8, 3, padding=1)
        self.conv1 = conv(8, 8, 3, stride=2, groups=groups, **{"padding": 1} | more)
        self.lin0 = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin0(self.conv1(torch.relu(self.conv0(x))).flatten(2).mean(2))


class Attends(nn.Module):
    """`nn.MultiheadAttention` between linears; of itself or of another sequence."""

    def __init__(self, crosses: bool = False) -> None:
        super().__init__()
        self.lin0, self.mha, self.lin1 = (
            nn.Linear(10, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 2),
        )
        self.crosses = crosses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin0(x)
        keys = torch.tanh(y.flip(1)) if self.crosses else y
        return self.lin1(self.mha(y, keys, keys)[0])


class OwnLinear(nn.Module):
    """A matrix that no layer owns."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(i, o) / i**0.5), nn.Parameter(torch.randn(o))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """Two stacks of matrices, `(E, out, in)`, or transposed ones; read in another order than they are made."""

    def __init__(self, is_transposed: bool, square: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        width = 6 if square else 5
        down, up = (3, 6, width), (3, width, 6)
        self.down = nn.Parameter(torch.randn(up if is_transposed else down))
        self.up = nn.Parameter(torch.randn(down if is_transposed else up))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, down = (self.up, self.down) if self.is_transposed else (self.up.mT, self.down.mT)
        return torch.tanh(x.unsqueeze(1) @ up) @ down


class Bare(nn.Module):
    """Parameters that are read by their names, next to layers."""

    def __init__(self, is_transposed: bool = False, square: bool = False) -> None:
        super().__init__()
        self.lin0, self.own = nn.Linear(10, 6), OwnLinear(6, 6)
        self.experts, self.lin1 = Experts(is_transposed, square), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(self.experts(torch.tanh(self.own(self.lin0(x)))).sum(1))


def rows(*shape: int) -> Callable[[], torch.Tensor]:
    """Draws an input of numbers."""
    return lambda: torch.randn(*shape, dtype=torch.float64)


def ids(top: int) -> Callable[[], torch.Tensor]:
    """Draws an input of indices."""
    return lambda: torch.randint(top, (3, 7))


@dataclass(frozen=True)
class Case:
    """A model, inputs, and a configuration.

    Attributes:
        refused: why it is not loaded, in words of the error; empty where it is.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[], torch.Tensor]
    config: Callable[..., Any]
    options: dict[str, Any]
    refused: str = ""

    def peft_config(self) -> Any:
        """What PEFT is given."""
        return self.config(**self.options)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (Mlp, rows(3, 10)),
    "mlp no bias": (lambda: Mlp(bias=False), rows(3, 10)),
    "batched": (Batched, rows(4, 10)),
    "words": (Words, ids(100)),
    "tied": (Tied, ids(30)),
    **{f"conv{n}d": (lambda n=n: Convs(n), rows(2, 4, *[6] * n)) for n in (1, 2, 3)},
    **{f"conv{n}d grouped": (lambda n=n: Convs(n, groups=2), rows(2, 4, *[6] * n)) for n in (1, 2, 3)},
    "conv2d depthwise": (lambda: Convs(2, groups=8), rows(2, 4, 6, 6)),
    "conv2d reflect": (lambda: Convs(2, padding_mode="reflect"), rows(2, 4, 6, 6)),
    "conv2d same": (lambda: Convs(2, groups=2, padding_mode="circular"), rows(2, 4, 6, 6)),
    "attends": (Attends, rows(2, 5, 10)),
    "crosses": (lambda: Attends(crosses=True), rows(2, 5, 10)),
    "bare": (Bare, rows(3, 10)),
    "bare transposed": (lambda: Bare(is_transposed=True), rows(3, 10)),
    "bare square": (lambda: Bare(square=True), rows(3, 10)),
}
LORA = {"r": 4, "lora_alpha": 10}
_LORA: dict[str, list[dict[str, Any]]] = {
    "mlp": [
        {"target_modules": ["lin0"]},
        {"target_modules": ["lin1"]},
        {"target_modules": ["lin0", "lin1"], "use_rslora": True},
        {"target_modules": ["lin0"], "modules_to_save": ["head"]},
        {"target_modules": ["lin0"], "modules_to_save": ["head", "norm"], "lora_dropout": 0.1},
        {"target_modules": ["lin0"], "bias": "all"},
        {"target_modules": ["lin0", "lin1"], "bias": "lora_only"},
        {"target_modules": ["lin0"], "bias": "all", "modules_to_save": ["norm"]},
        {"target_modules": ["lin0", "lin1"], "lora_bias": True},
        {"target_modules": ["lin0"], "lora_bias": True, "bias": "lora_only"},
        {"target_modules": ["lin0", "lin1"], "lora_bias": True, "bias": "all", "use_rslora": True},
        {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin0": 2}, "alpha_pattern": {"lin1": 3}},
        {"target_modules": ["lin0", "lin1"], "use_dora": True},
        {"target_modules": ["lin0"], "use_dora": True, "bias": "all"},
        {"target_modules": ["lin0"], "init_lora_weights": False},
        {"target_parameters": ["lin0.weight"], "target_modules": []},
        {"target_parameters": ["lin0.weight", "lin1.weight"], "target_modules": ["head"]},
    ],
    "mlp no bias": [
        {"target_modules": ["lin0"], "lora_bias": True},
        {"target_modules": ["lin0", "lin1"], "bias": "all"},
    ],
    "batched": [{"target_modules": ["lin0"], "bias": "all"}, {"target_modules": ["lin0"], "modules_to_save": ["bn"]}],
    "words": [
        {"target_modules": ["conv1d"]},
        {"target_modules": ["emb"]},
        {"target_modules": ["emb", "conv1d", "lin0"], "bias": "all"},
        {"target_modules": ["conv1d", "lin0"], "lora_bias": True},
        {"target_modules": ["conv1d"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["emb"], "use_dora": True},
        {"target_parameters": ["emb.weight"], "target_modules": []},
    ],
    "tied": [
        {"target_modules": ["lin0"], "modules_to_save": ["head"]},
        {"target_modules": ["lin0"], "modules_to_save": ["emb"]},
        {"target_modules": ["emb"]},
        {"target_modules": ["lin0", "head"]},
    ],
    **{
        f"conv{n}d": [
            {"target_modules": ["conv0"]},
            {"target_modules": ["conv0", "conv1"], "use_rslora": True, "lora_dropout": 0.1},
            {"target_modules": ["conv1", "lin0"], "bias": "all"},
            {"target_modules": ["conv0", "conv1"], "lora_bias": True},
            {"target_modules": ["conv0", "conv1"], "use_dora": True},
        ]
        for n in (1, 2, 3)
    },
    **{
        f"conv{n}d grouped": [
            {"target_modules": ["conv1"]},
            {"target_modules": ["conv0", "conv1", "lin0"], "use_rslora": True, "bias": "all"},
            {"target_modules": ["conv1"], "lora_bias": True, "lora_dropout": 0.1},
        ]
        for n in (1, 2, 3)
    },
    "conv2d depthwise": [{"target_modules": ["conv1"], "r": 8}, {"target_modules": ["conv0", "conv1"], "r": 16}],
    "conv2d same": [{"target_modules": ["conv1"]}],
    "attends": [
        {"target_modules": ["mha"]},
        {"target_modules": ["mha", "lin0"], "use_rslora": True, "lora_dropout": 0.1},
        {"target_modules": ["mha"], "bias": "all"},
        {"target_modules": ["mha", "lin1"], "bias": "lora_only", "alpha_pattern": {"mha": 3}, "rank_pattern": {"mha": 2}},
        {"target_modules": ["lin0"], "modules_to_save": ["mha"]},
        {"target_modules": [], "target_parameters": ["mha.in_proj_weight"]},
    ],
    "crosses": [{"target_modules": ["mha"]}, {"target_modules": ["mha", "lin0"], "bias": "all"}],
    "bare": [
        {"target_modules": [], "target_parameters": ["own.weight"]},
        {"target_modules": ["lin0"], "target_parameters": ["own.weight"], "use_rslora": True},
        {"target_modules": [], "target_parameters": ["experts.up"]},
        {"target_modules": ["lin1"], "target_parameters": ["experts.down", "experts.up"]},
        {"target_modules": [], "target_parameters": ["experts.up", "experts.down", "own.weight", "lin0.weight"],
         "rank_pattern": {"experts.up": 2}, "alpha_pattern": {"own.weight": 3}},
        {"target_modules": ["lin0"], "bias": "all"},
    ],
    "bare transposed": [{"target_modules": [], "target_parameters": ["experts.up", "experts.down"]}],
}  # fmt: skip
_IA3: dict[str, list[dict[str, Any]]] = {
    "mlp": [
        {"target_modules": ["lin0"], "feedforward_modules": []},
        {"target_modules": ["lin0"], "feedforward_modules": ["lin0"]},
        {"target_modules": ["lin0", "lin1"], "feedforward_modules": ["lin1"]},
        {"target_modules": ["lin0", "lin1"], "feedforward_modules": ["lin0", "lin1"], "modules_to_save": ["head"]},
        {"target_modules": ".*lin[01]", "feedforward_modules": ".*lin1"},
    ],
    "mlp no bias": [{"target_modules": ["lin0", "lin1"], "feedforward_modules": ["lin1"]}],
    "words": [
        {"target_modules": ["conv1d"], "feedforward_modules": [], "fan_in_fan_out": True},
        {"target_modules": ["conv1d", "lin0"], "feedforward_modules": ["conv1d"], "fan_in_fan_out": True},
    ],
    **{
        f"conv{n}d{more}": [
            {"target_modules": ["conv0"], "feedforward_modules": []},
            {"target_modules": ["conv0", "conv1"], "feedforward_modules": ["conv1"]},
            {"target_modules": ["conv1", "lin0"], "feedforward_modules": ["conv1", "lin0"]},
        ]
        for n in (2, 3)
        for more in ("", " grouped")
    },
    "conv2d depthwise": [{"target_modules": ["conv0", "conv1"], "feedforward_modules": ["conv1"]}],
    "conv2d reflect": [{"target_modules": ["conv0", "conv1"], "feedforward_modules": ["conv1"]}],
}
_NORMS: dict[str, list[dict[str, Any]]] = {
    "mlp": [
        {"target_modules": ["norm"]},
        {"target_modules": ["lin0"]},
        {"target_modules": ["norm", "lin1"], "modules_to_save": ["head"]},
    ],
    "batched": [{"target_modules": ["bn"]}],
    "tied": [{"target_modules": ["head"]}],
    "conv2d": [{"target_modules": ["conv0"]}],
    "attends": [{"target_modules": ["mha"]}],
}
# what is not read, with the words of the reason
_REFUSED: list[tuple[str, Callable[..., Any], dict[str, Any], str]] = [
    ("mlp", peft.AdaLoraConfig, {"target_modules": ["lin0"], "total_step": 1}, "ADALORA is not read"),
    ("mlp", peft.LoHaConfig, {"target_modules": ["lin0"]}, "LOHA is not read"),
    ("mlp", peft.LoKrConfig, {"target_modules": ["lin0"]}, "LOKR is not read"),
    ("mlp", peft.VeraConfig, {"target_modules": ["lin0"], "save_projection": False}, "VERA is not read"),
    ("mlp", peft.FourierFTConfig, {"target_modules": ["lin0"], "n_frequency": 10}, "FOURIERFT is not read"),
    ("mlp", peft.HRAConfig, {"target_modules": ["lin0"]}, "HRA is not read"),
    ("mlp", peft.VBLoRAConfig, {"target_modules": ["lin0"], "vector_length": 2}, "VBLORA is not read"),
    ("mlp", peft.LoraConfig, {**LORA, "target_modules": ["lin0"], "init_lora_weights": "pissa"}, "no plain LoRA"),
    ("mlp", peft.LoraConfig, {**LORA, "target_modules": ["lin0"], "init_lora_weights": "olora"}, "no plain LoRA"),
    ("words", peft.LoraConfig, {**LORA, "target_modules": ["lin0"], "trainable_token_indices": {"emb": [0]}}, "no plain"),
    ("conv2d reflect", peft.LoraConfig, {**LORA, "target_modules": ["conv1"]}, "padding_mode='reflect'"),
    ("attends", peft.LoraConfig, {**LORA, "target_modules": ["mha"], "lora_bias": True}, "lora_bias of mha"),
    ("attends", peft.LoraConfig, {**LORA, "target_modules": ["out_proj"]}, "nothing matches at mha.out_proj"),
    ("bare square", peft.LoraConfig, {**LORA, "target_modules": [], "target_parameters": ["experts.up"]}, "are square"),
]  # fmt: skip


def _cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for method, config, table, common in (
        ("lora", peft.LoraConfig, _LORA, LORA),
        ("ia3", peft.IA3Config, _IA3, {}),
        ("norms", peft.LNTuningConfig, _NORMS, {}),
    ):
        for model, every in table.items():
            for i, options in enumerate(every):
                found[f"{method} {model} {i}"] = Case(*MODELS[model], config, common | options)
    for i, (model, config, options, why) in enumerate(_REFUSED):
        found[f"refused {model} {i}"] = Case(*MODELS[model], config, options, why)
    return found


CASES = _cases()

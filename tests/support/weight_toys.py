"""Small modules, one for each kind of operation that has a weight, with an input and the words that match it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Toy:
    """A model, its input, and what a rule writes to find the operation.

    Attributes:
        make: builds the model.
        x: its input.
        op: for `match: {op: …}`, or a whole match in braces.
        lacks: words of the kinds that do not apply, with a part of the message.
    """

    make: Callable[[], nn.Module]
    x: tuple[int, ...] | torch.Tensor
    op: str
    lacks: dict[str, str]

    @property
    def match(self) -> str:
        """The rule's `match:`."""
        return self.op if self.op.startswith("{") else f"{{op: {self.op}}}"

    def given(self) -> torch.Tensor:
        """The input."""
        return self.x if isinstance(self.x, torch.Tensor) else torch.randn(self.x)


class SpelledNorm(nn.Module):
    """RMSNorm as Llama writes it, or LayerNorm by mean and variance."""

    def __init__(self, centred: bool, bias: bool) -> None:
        super().__init__()
        self.w, self.centred = nn.Parameter(torch.randn(4)), centred
        self.b = nn.Parameter(torch.randn(4)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        y = self.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return y if self.b is None else y + self.b


class Functional(nn.Module):
    """`F.linear` and `F.conv2d` with parameters of its own."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.conv = conv
        self.w = nn.Parameter(torch.randn((6, 4, 3, 3) if conv else (6, 4)))
        self.b = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.w, self.b, padding=1) if self.conv else F.linear(x, self.w, bias=self.b)


class Borrowed(nn.Module):
    """Reads a module's weight without calling it, sliced or whole: PEFT leaves it untuned in silence."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.l, self.part = nn.Linear(4, 6), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.l.weight[:3] if self.part else self.l.weight)


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight at every call, as BiT's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, eps=1e-6)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Product(nn.Module):
    """`x @ W`, an einsum, or one matrix an expert."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w = nn.Parameter(torch.randn((3, 4, 6) if how in ("experts", "einsum experts") else (4, 6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "matmul":
            return x @ self.w
        if self.how == "einsum":
            return torch.einsum("bnc,cd->bnd", x, self.w)
        if self.how == "einsum experts":
            return torch.einsum("bnc,ecd->bend", x, self.w)
        return torch.bmm(x.mean(0).unsqueeze(0).expand(3, -1, -1), self.w).sum(0) + x.sum((1, 2))[:, None, None]


class Added(nn.Module):
    """`torch.addmm`, as transformers' `Conv1D` of GPT-2 is written: the weight is `(in, out)`."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.b, x.reshape(-1, 4), self.w).reshape(*x.shape[:-1], 6)


class Recurrent(nn.Module):
    """An LSTM or GRU; two layers, both directions."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.layer = cls(4, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class Stateful(nn.Module):
    """An LSTM or GRU that is given its first state."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.fc, self.layer, self.is_lstm = nn.Linear(4, 6), cls(4, 6), cls is nn.LSTM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.tanh(self.fc(x.mean(1)))[None]
        return self.layer(x.transpose(0, 1), (state, state) if self.is_lstm else state)[0].transpose(0, 1)


class Steps(nn.Module):
    """A cell that is called step by step; the first call has no state."""

    def __init__(self, cls: Any, bias: bool = True) -> None:
        super().__init__()
        self.cell, self.is_lstm = cls(4, 6, bias=bias), cls is nn.LSTMCell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, steps = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            steps.append(state[0] if self.is_lstm else state)
        return torch.stack(steps, 1)


class Position(nn.Module):
    """A parameter that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pos = nn.Linear(4, 6), nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.pos


class Attention(nn.Module):
    """`nn.MultiheadAttention`, whose projections are functions when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class RmsNorm(nn.Module):
    """A norm without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def alone(layer: nn.Module) -> Callable[[], nn.Module]:
    """A model of one layer, its parameters and statistics off their defaults."""

    def make() -> nn.Module:
        own = copy.deepcopy(layer)
        for name, state in [*own.named_parameters(), *own.named_buffers()]:
            if state.is_floating_point():
                nn.init.uniform_(state, 0.5, 1.5) if "var" in name else nn.init.normal_(state)
        return nn.Sequential(own)

    return make


NORM = {"lora": "needs a matrix", "dora": "needs a matrix", "vera": "needs a matrix", "oft": "have no blocks"}
LAYER = {"norm_affine": "norm_affine does not apply to"}
NO_BIAS = {"ssf": "adds no bias", "bias": "takes none", **LAYER}
RAW = {**LAYER, "ssf": "the weight of this|adds no bias", "ia3": "the weight of this"}
EACH = {
    "ssf": "does not apply to the weights of",
    "ia3": "does not apply to the weights of",
    "norm_affine": "does not apply",
}

TOYS = {
    "linear": Toy(alone(nn.Linear(4, 6)), (2, 5, 4), "linear", LAYER),
    "conv1d": Toy(alone(nn.Conv1d(4, 6, 3, padding=1)), (2, 4, 7), "conv", LAYER),
    "conv2d strided": Toy(alone(nn.Conv2d(4, 6, 3, stride=2, padding=1)), (2, 4, 7, 7), "conv", LAYER),
    "conv2d dilated": Toy(alone(nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=2)), (2, 4, 7, 7), "conv", LAYER),
    "conv2d pointwise": Toy(alone(nn.Conv2d(4, 6, 1)), (2, 4, 3, 3), "conv", LAYER),
    "conv3d": Toy(alone(nn.Conv3d(4, 6, 2)), (2, 4, 3, 3, 3), "conv", LAYER),
    "grouped": Toy(alone(nn.Conv2d(4, 6, 3, groups=2)), (2, 4, 5, 5), "conv", LAYER),
    "depthwise": Toy(alone(nn.Conv2d(4, 4, 3, padding=1, groups=4)), (2, 4, 5, 5), "depthwise_conv", LAYER),
    "reflect": Toy(alone(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")), (2, 4, 5, 5), "conv", LAYER),
    "replicate": Toy(alone(nn.Conv1d(4, 6, 4, padding="same", padding_mode="replicate")), (2, 4, 9), "conv", LAYER),
    "circular": Toy(alone(nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular", groups=2)), (2, 4, 3, 4, 5), "conv", LAYER),
    "transposed": Toy(alone(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1)), (2, 4, 4, 4), "conv_transpose", LAYER),
    "transposed grouped": Toy(alone(nn.ConvTranspose1d(4, 6, 3, 2, groups=2)), (2, 4, 5), "conv_transpose", LAYER),
    "embedding": Toy(alone(nn.Embedding(9, 4)), torch.tensor([[1, 2, 8], [3, 0, 1]]), "embedding", NO_BIAS),
    "embedding padded": Toy(alone(nn.Embedding(9, 4, padding_idx=0)), torch.tensor([[1, 2, 8], [3, 0, 1]]), "embedding", NO_BIAS),
    "batch norm": Toy(alone(nn.BatchNorm2d(4)), (2, 4, 3, 3), "norm", NORM),
    "layer norm": Toy(alone(nn.LayerNorm(4)), (2, 5, 4), "norm", NORM),
    "group norm": Toy(alone(nn.GroupNorm(2, 4)), (2, 4, 3, 3), "norm", NORM),
    "instance norm": Toy(alone(nn.InstanceNorm1d(4, affine=True)), (2, 4, 5), "norm", NORM),
    "rms norm": Toy(RmsNorm, (2, 5, 4), "norm", {**NORM, "ssf": "adds no bias", "bias": "takes none"}),
    "rms norm spelled out": Toy(lambda: SpelledNorm(False, False), (2, 5, 4), "norm", {**NORM, "ssf": "adds no bias", "bias": "takes none"}),
    "layer norm spelled out": Toy(lambda: SpelledNorm(True, True), (2, 5, 4), "norm", NORM),
    "F.linear": Toy(lambda: Functional(False), (2, 5, 4), "linear", LAYER),
    "F.conv2d": Toy(lambda: Functional(True), (2, 4, 5, 5), "conv", LAYER),
    "borrowed": Toy(lambda: Borrowed(False), (2, 4), "linear", {**LAYER, "bias": "has no bias"}),
    "borrowed slice": Toy(lambda: Borrowed(True), (2, 4), "linear", {**RAW, "bias": "has no bias"}),
    "standardised": Toy(lambda: Standardised(4, 6, 3), (2, 4, 5, 5), "conv", RAW),
    "matmul": Toy(lambda: Product("matmul"), (2, 5, 4), "matmul", NO_BIAS),
    "einsum": Toy(lambda: Product("einsum"), (2, 5, 4), "einsum", NO_BIAS),
    "addmm": Toy(Added, (2, 5, 4), "addmm", LAYER),
    "experts": Toy(lambda: Product("experts"), (2, 5, 4), "matmul", NO_BIAS),
    "einsum experts": Toy(lambda: Product("einsum experts"), (2, 5, 4), "einsum", NO_BIAS),
    "lstm": Toy(lambda: Recurrent(nn.LSTM), (2, 5, 4), "lstm", EACH),
    "gru": Toy(lambda: Recurrent(nn.GRU), (2, 5, 4), "gru", EACH),
    "lstm with a state": Toy(lambda: Stateful(nn.LSTM), (2, 5, 4), "lstm", EACH),
    "gru with a state": Toy(lambda: Stateful(nn.GRU), (2, 5, 4), "gru", EACH),
    "lstm cell": Toy(lambda: Steps(nn.LSTMCell), (2, 3, 4), "lstm_cell", EACH),
    "gru cell": Toy(lambda: Steps(nn.GRUCell), (2, 3, 4), "gru_cell", EACH),
    "gru cell without a bias": Toy(lambda: Steps(nn.GRUCell, False), (2, 3, 4), "gru_cell", {**EACH, "bias": "has no bias"}),
    "parameter": Toy(Position, (2, 5, 4), "{parameter: pos}", {**NO_BIAS, "bias": "bias"}),
    "attention": Toy(Attention, (2, 5, 8), "linear", LAYER),
}  # fmt: skip

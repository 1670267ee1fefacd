"""Refusals before anything is exported."""

from __future__ import annotations

import torch
from torch import nn

from utcompile.errors import UtcError


def check_dtype(model: nn.Module) -> None:
    """Raise where a model is in bfloat16."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype is torch.bfloat16:
            raise UtcError(
                "a bfloat16 model cannot be proven: ONNX Runtime has no bfloat16 kernels on the CPU",
                where=name,
                fix="export model.float() or model.half()",
                code="export/unsupported",
            )


def check_recurrent(model: nn.Module) -> None:
    """ONNX's LSTM has no projections, and a file that leaves them out is wrong."""
    for name, _ in model.named_parameters(
        remove_duplicate=False
    ):  # where it is tuned, it is no nn.LSTM's call any more
        path, _, attribute = name.rpartition(".")
        if attribute.startswith("weight_hr_l"):
            raise UtcError(
                "an LSTM with projections (proj_size) has no ONNX operator",
                where=path or "the root module",
                fix="deploy it with torch.export, or train an nn.LSTM without proj_size and a linear after it",
                code="export/unsupported",
            )

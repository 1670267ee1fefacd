"""What a GPU does otherwise than a CPU: measured on a GPU, emulated on a CPU, so that a CPU finds these faults too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = frozenset("_local_scalar_dense nonzero masked_select equal is_nonzero item unique_dim _unique2".split())
_RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])


def tf32_convolutions(device: str) -> AbstractContextManager[Any]:
    """Convolutions in TF32, where torch allows it (its default): a GPU's own, or on a CPU rounded operands."""
    return nullcontext() if device == "cuda" else _RoundedConvolutions()


class _RoundedConvolutions(TorchDispatchMode):
    """Rounds the float32 operands of convolutions to the ten bits of mantissa that TF32 has."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and torch.backends.cudnn.allow_tf32:
            args = (*map(_rounded, args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


def _rounded(t: torch.Tensor) -> torch.Tensor:
    if t.dtype != torch.float32:
        return t
    bits = t.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def cudnn_recurrent(device: str) -> AbstractContextManager[Any]:
    """cuDNN computes no gradient of a recurrent layer in eval: a GPU's own rule, or on a CPU the same refusal."""
    return nullcontext() if device == "cuda" else _RefusedInEval()


class _RefusedInEval(TorchFunctionMode):
    """Says that every tensor is on CUDA, and refuses what cuDNN would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.is_cuda:
            return True
        if getattr(func, "__name__", "") in _RECURRENT and torch.is_grad_enabled():
            rate = next(i for i, a in enumerate(args) if isinstance(a, float))  # dropout; `train` comes after it
            wanted = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
            if wanted and not args[rate + 1]:
                raise RuntimeError("cudnn RNN backward can only be called in training mode (emulated)")
        return func(*args, **(kwargs or {}))


def waits(device: str, function: Callable[[], object]) -> int:
    """How often a call makes Python wait for the GPU; on a CPU, how many of its operations would."""
    if device == "cuda":
        with _warned() as caught:
            function()
        return sum("synchroniz" in str(w.message) for w in caught)
    with _Waits() as mode, _Lists(mode):
        function()
    return mode.count


class _Waits(TorchDispatchMode):
    """Counts the operations whose result Python or a size needs."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _WAITS
        return func(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """Counts the methods that read a tensor's memory, with or without an operation."""

    def __init__(self, waits: _Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.waits.count
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.tolist, torch.Tensor.numpy):
            self.waits.count = before + 1
        return result


@contextmanager
def _warned() -> Iterator[list[warnings.WarningMessage]]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        torch.cuda.set_sync_debug_mode("default")

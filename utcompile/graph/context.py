"""The context of an autograd function, with the types that torch leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import FunctionCtx

if TYPE_CHECKING:

    class Context(FunctionCtx):
        """What `forward` keeps for `backward`: tensors by `save_for_backward`, anything else as an attribute."""

        saved_tensors: tuple[torch.Tensor, ...]
        needs_input_grad: tuple[bool, ...]

        def save_for_backward(self, *tensors: torch.Tensor | None) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: object) -> None: ...

else:
    Context = FunctionCtx

__all__ = ["Context"]

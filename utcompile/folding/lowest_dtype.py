"""The lowest precision in which a model computes: autocast, and casts in its own code, round to less than its dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from utcompile.graph.nested import flat


class LowestDtype(TorchDispatchMode):
    """A mode that notes the floating-point dtype with the coarsest rounding among the results of operations.

    Args:
        start: the dtype where no operation yields a coarser one.

    Example:
        >>> with LowestDtype(torch.float64) as seen:
        ...     _ = torch.ones(2, dtype=torch.float64).bfloat16().float()
        >>> seen.dtype
        torch.bfloat16
    """

    supports_higher_order_operators = True  # what their functions compute is not seen

    def __init__(self, start: torch.dtype) -> None:
        super().__init__()
        self.dtype = start

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Compute an operation, and note the dtypes of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in flat(result):
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).eps > torch.finfo(self.dtype).eps:
                self.dtype = tensor.dtype
        return result

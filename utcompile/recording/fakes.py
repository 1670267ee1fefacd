"""The tensors of a recording: fakes of a model's state and inputs, in the dtype and on the device of a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from utcompile.graph.memory import memory_of

T = torch.Tensor


class Converter:
    """Makes fakes, the same one for tied weights; without a mode every tensor stays itself.

    Args:
        fake: the mode that fakes belong to.
        dtype: of floating-point tensors; None keeps theirs.
        device: of all tensors; None keeps theirs.
        home: where tensors on the meta device are taken to be.

    Example:
        >>> convert = Converter(FakeTensorMode(), torch.bfloat16, None, torch.device("cpu"))
        >>> weight = nn.Parameter(torch.zeros(2, 3), requires_grad=False)
        >>> made = convert(weight)
        >>> made.dtype, made.device, isinstance(made, nn.Parameter), convert(weight) is made
        (torch.bfloat16, device(type='cpu'), True, True)
    """

    def __init__(
        self, fake: FakeTensorMode | None, dtype: torch.dtype | None, device: torch.device | None, home: torch.device
    ) -> None:
        self._fake, self._dtype, self._device, self._home = fake, dtype, device, home
        self._known: dict[int, T] = {}
        self._alive: list[T] = []
        self._shared: frozenset[int] = frozenset()

    def expect(self, state: Iterable[T]) -> None:
        """Say what will be converted, before it is: fakes of tensors that share memory share memory too."""
        if self._fake is not None:
            counted = Counter(memory_of(t) for t in {id(t): t for t in state}.values())
            self._shared = frozenset(memory for memory, n in counted.items() if n > 1)

    def __call__(self, tensor: T) -> T:
        """The fake of a tensor."""
        if self._fake is None:
            return tensor
        if id(tensor) not in self._known:
            self._known[id(tensor)] = self._convert(tensor, self._fake)
            self._alive.append(tensor)
        return self._known[id(tensor)]

    def _convert(self, tensor: T, fake: FakeTensorMode) -> T:
        dtype = self._dtype if tensor.is_floating_point() else None
        device = self._device or (self._home if tensor.is_meta else None)
        if self._is_plain(tensor):
            return _made(tensor, fake, dtype or tensor.dtype, device or tensor.device)
        if dtype is None and device is None:
            return fake.from_tensor(tensor, static_shapes=True)
        with fake:
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=device or tensor.device
            )
        return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made

    def _is_plain(self, tensor: T) -> bool:
        """Whether a tensor fills its memory alone, so that its sizes and strides describe it completely."""
        if type(tensor) not in (T, nn.Parameter) or tensor.layout != torch.strided or tensor.requires_grad:
            return False
        if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.storage_offset() or tensor._is_view():
            return False
        return (
            memory_of(tensor) not in self._shared
            and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        )


def _made(tensor: T, fake: FakeTensorMode, dtype: torch.dtype, device: torch.device) -> T:
    """A fake by torch's constructor: `FakeTensorMode.from_tensor` gives the same in ten times the time."""
    with torch.utils._mode_utils.no_dispatch():
        made = FakeTensor(fake, torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta"), device)
    if isinstance(tensor, nn.Parameter):
        made._is_param = True
    return made

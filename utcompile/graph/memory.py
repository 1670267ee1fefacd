"""The values of tensors, kept from what a run writes: copied before the first write, put back at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

T = torch.Tensor


class KeptMemory(TorchDispatchMode):
    """A mode under which the first write into a watched tensor's memory copies it; `put_back` undoes all writes.

    Weights are copied only if something writes into them. Buffers are copied at once: they are small, and some kernels
    (BatchNorm's) write into them without saying so.

    Args:
        watched: tensors, such as parameters; those that share memory are kept together.
        buffers: tensors that are copied at once.

    Example:
        >>> weight = torch.ones(2)
        >>> with KeptMemory([weight]) as memory:
        ...     _ = weight.data.mul_(3)
        >>> weight
        tensor([3., 3.])
        >>> memory.put_back()
        >>> weight
        tensor([1., 1.])
    """

    supports_higher_order_operators = True  # writes of their functions are not seen; torch's own write nothing

    def __init__(self, watched: Iterable[T], buffers: Iterable[T] = ()) -> None:
        super().__init__()
        self._watched: dict[int, torch.UntypedStorage] = {}
        self._saved: dict[int, torch.UntypedStorage] = {}
        for tensor in watched:
            self._watch(tensor)
        for tensor in buffers:
            self._save(self._watch(tensor))

    def _watch(self, tensor: T) -> int | None:
        storage = _storage(tensor)
        if storage is None:
            return None
        self._watched[storage._cdata] = storage
        return storage._cdata

    def _save(self, key: int | None) -> None:
        if key in self._watched and key not in self._saved:
            self._saved[key] = self._watched[key].clone()

    def shares(self, tensor: T) -> bool:
        """Whether a tensor lives in watched memory."""
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._watched

    def is_written(self, tensor: T) -> bool:
        """Whether something has written into a tensor's memory, as far as torch reports it."""
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._saved

    def written(self, tensors: Mapping[str, T]) -> list[str]:
        """The names of those watched tensors whose values differ from what they were."""
        return [name for name, tensor in tensors.items() if self._differs(tensor)]

    def _differs(self, tensor: T) -> bool:
        storage = _storage(tensor)
        saved = self._saved.get(storage._cdata) if storage is not None else None
        if saved is None or storage is None or storage.nbytes() != saved.nbytes():
            return False
        now, before = (torch.tensor([], dtype=torch.uint8, device=s.device).set_(s) for s in (storage, saved))
        return not torch.equal(now, before)

    def put_back(self) -> None:
        """Give every watched tensor the values again that it had in the beginning."""
        for key, saved in self._saved.items():
            if self._watched[key].nbytes() == saved.nbytes():  # else it was resized, and nothing can be put back
                self._watched[key].copy_(saved)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for i, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._before_write(args[i] if i < len(args) else kwargs.get(argument.name))
        with torch._C.DisableTorchFunction():  # a recorder must not see what a mode calls
            return func(*args, **kwargs)

    def _before_write(self, value: object) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            storage = _storage(tensor) if isinstance(tensor, T) else None
            if storage is not None:
                self._save(storage._cdata)


def memory_of(tensor: T) -> int:
    """The address of a tensor's memory; the tensor's identity where it has none (sparse, a subclass without storage).

    Two tensors that live share memory where this is equal. An address may be used again when its owner is gone.
    """
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _storage(tensor: T) -> torch.UntypedStorage | None:
    """The memory of a tensor; None where it has none of its kind (on the meta device, sparse)."""
    if tensor.is_meta:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None

"""Which weights of parts the code around them reads: there a tuner of such a weight would not be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utcompile.graph import path_in
from utcompile.graph.memory import memory_of
from utcompile.graph.nested import flat


class ReadOutside(TorchDispatchMode):
    """A mode that notes each parameter of a part that an operation reads while no part is being called.

    Args:
        parts: by path.

    Attributes:
        found: the parameters' names in the whole model.
    """

    supports_higher_order_operators = True  # what their functions read is not seen

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        named = [(path_in(path, n), memory_of(p)) for path, part in parts.items() for n, p in part.named_parameters()]
        places = Counter(place for _, place in named)
        self._names = {place: name for name, place in named if places[place] == 1}  # else: which one is not to be seen
        self._open = 0

    def enter(self) -> None:
        """A part is called."""
        self._open += 1

    def leave(self) -> None:
        """The call of a part is over."""
        self._open -= 1

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Note what an operation reads, and compute it."""
        given = dict(kwargs or {})
        if not self._open and not _is_view(func):
            names = [self._names.get(memory_of(t)) for t in flat((args, given))]
            self.found |= dict.fromkeys(name for name in names if name is not None)
        return func(*args, **given)


def _is_view(function: Callable[..., object]) -> bool:
    """Whether an operation returns the memory that it is given, and reads no number of it."""
    schema = getattr(function, "_schema", None)
    returns = [] if schema is None else schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)

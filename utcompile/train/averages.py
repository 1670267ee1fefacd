"""An exponential moving average of what trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Averages of a model's trainable parameters; they stand in for the parameters in validation and in the best epoch.

    The average of step t is `d a + (1 - d) p` with `d = min(decay, (1 + t) / (10 + t))`, so that early steps count.

    Args:
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self) -> None:
        """Take the parameters after one more step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.parameters[name].to(average.dtype), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own parameters again afterwards."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(self.averages)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps, "averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        steps, averages = state["steps"], state["averages"]
        if not isinstance(steps, int) or not isinstance(averages, dict) or averages.keys() != self.averages.keys():
            raise ValueError("the averages are of other parameters")
        self.steps = steps
        with torch.no_grad():
            for name, average in self.averages.items():
                average.copy_(averages[name])

"""A linear from the channels of one value to those of another, with a whole stride on feature maps."""

from __future__ import annotations

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Size
from utcompile.tuners.sites import Port


class Projection(nn.Module):
    """`(B, …, C_x)` or `(B, C_x, …)` to the shape of the target: a 1×1 convolution with the stride between the two."""

    def __init__(self, source: Port, target: Port) -> None:
        super().__init__()
        stride = stride_between(source, target)
        assert source.channel_axis is not None and target.channel_axis is not None
        self.source_axis, self.target_axis = source.channel_axis, target.channel_axis
        self.strides = stride if any(s != 1 for s in stride) else ()
        self.linear = nn.Linear(source.channels, target.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, …, C_x)` or `(B, C_x, …)` -> the shape of the target."""
        x = x.movedim(self.source_axis, -1)
        if self.strides:
            x = x[(slice(None), *(slice(None, None, s) for s in self.strides))]
        y: torch.Tensor = self.linear(x)
        return y.movedim(-1, self.target_axis)


def stride_between(source: Port, target: Port) -> tuple[int, ...]:
    """The stride of a 1×1 convolution from the positions of source to those of target: `ceil(n / s)` per dimension.

    Raises:
        UtcError: no whole stride does, or the positions are tokens in a row, whose neighbours are unknown.
    """

    def positions(port: Port) -> list[int | Size]:
        return [s for i, s in enumerate(port.value.shape) if i != port.channel_axis]

    before, after = positions(source), positions(target)
    clear = len(before) == len(after) and before[:1] == after[:1]
    strides = []
    for n, m in zip(before[1:], after[1:], strict=False):
        if n == m:
            strides.append(1)
        elif isinstance(n, int) and isinstance(m, int) and m < n and -(-n // -(-n // m)) == m:
            strides.append(-(-n // m))
        else:
            clear = False
    if not clear or (source.value.rank == 3 and source.channels_last and any(s != 1 for s in strides)):
        raise UtcError(
            f"a tuner cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
            why="only the channels may differ, and on feature maps the resolution by a whole stride",
            fix="choose captures of equal positions, or exclude the site in `where:`",
        )
    return tuple(strides) or (1,)

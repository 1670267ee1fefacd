"""Through which numbers of a ReLU's result a gradient passes, in one bit each: those above zero, and NaN.

Byte j of n has the numbers j, n + j, 2n + j … 7n + j of the tensor's memory, so packing and unpacking are eight
passes over slices that lie in one piece: on a CPU that is 3 to 5 times faster than eight neighbours per byte.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pack_signs(x: torch.Tensor) -> torch.Tensor:
    """One bit per number of a tensor without gaps in its memory: whether it is above zero, or NaN as in torch's ReLU.

    Example:
        >>> pack_signs(torch.tensor([1.0, -1.0, 0.0, 2.0])), pack_signs(torch.tensor([float("nan"), -1.0]))
        (tensor([9], dtype=torch.uint8), tensor([1], dtype=torch.uint8))
    """
    signs = (x <= 0).logical_not_().as_strided((x.numel(),), (1,)).view(torch.uint8)
    if rest := -signs.numel() % 8:
        signs = F.pad(signs, (0, rest))
    planes = signs.view(8, -1)
    bits = planes[0].clone()
    for i in range(1, 8):
        bits |= planes[i] << i
    return bits


def masked(grad: torch.Tensor, bits: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A gradient where a bit is set, zero elsewhere.

    Args:
        grad: of the shape of the tensor whose signs were packed.
        bits: what `pack_signs` made.
        strides: of that tensor.

    Example:
        >>> x = torch.tensor([1.0, -1.0, 0.0, 2.0])
        >>> masked(torch.full((4,), 5.0), pack_signs(x), x.stride())
        tensor([5., 0., 0., 5.])
    """
    if grad.stride() != strides:
        grad = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device).copy_(grad)
    if torch.is_grad_enabled():  # gradients of gradients: in operations that have one
        return torch.where(_unpacked(bits, grad), grad, 0.0)
    result = torch.empty_strided(grad.shape, strides, dtype=grad.dtype, device=grad.device)
    given, found = (t.as_strided((t.numel(),), (1,)) for t in (grad, result))
    for i, part in enumerate(_parts(len(bits), grad.numel())):
        is_set = (bits[: part.stop - part.start] & (1 << i)).to(grad.dtype)
        torch.ops.aten.threshold_backward(given[part], is_set, 0, grad_input=found[part])
    return result


def _unpacked(bits: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    planes = torch.cat([bits & (1 << i) for i in range(8)])[: like.numel()]
    return planes.bool().as_strided(like.shape, like.stride())


def _parts(size: int, numbers: int) -> list[slice]:
    """The numbers of each plane that there are: the last ones may be short."""
    starts = [i * size for i in range(8) if i * size < numbers]
    return [slice(start, min(start + size, numbers)) for start in starts]


def is_dense(x: torch.Tensor) -> bool:
    """Whether a tensor has numbers, and its memory nothing but these between the first and the last."""
    sides = sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)
    expected = 1
    for stride, size in sides:
        if stride != expected:
            return False
        expected *= size
    return x.numel() > 0

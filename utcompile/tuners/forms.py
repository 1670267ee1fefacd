"""Branch or reparametrised: the two forms of a weight tuner, compared by their cost in one training step.

The cost is counted per site, in addition to the forward of the operation and the gradient of its input, which both
forms need (P positions of the result, a weight of `rows × columns`, rank r):

- *branch*: A and B, forward and twice backward, `6·P·r·(columns + rows)` FLOPs in thin products; the result is read
  and written once more, the input's gradient too; A(x), `P·r` numbers, is saved.
- *reparametrised*: the whole weight's gradient, `2·P·rows·columns` FLOPs in one thick product, and `8·r·rows·columns`
  for `BA` (twice) and the gradients of A and B; only the input is saved, as in the branch.

With `how: measured` the forms are timed instead of counted (`utcompile/measured_forms.py`).
"""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

from utcompile.tuners.sites import WeightSite

How = Literal["auto", "branch", "reparametrised", "measured"]
TimedForm = Literal["branch", "reparametrised", "one"]  # `one`: the branch, as one operation with what it tunes
TIMED_FORMS: tuple[TimedForm, ...] = get_args(TimedForm)
BATCH = 8  # the batch of the count; only the cost of `BA` does not grow with it
_THIN = 3.0  # thin products (r of 4 to 64) reach about a third of the FLOPs per second of a thick one
_THIN_ALONE = 2.5  # those of one operation, of which x has no gradient: 39 of 100 GFLOPs per second in ViT-S/16
_BYTE = 8.0  # FLOPs in the time in which one byte is moved


def cheaper_form(name: str, site: WeightSite, rank: int) -> Literal["branch", "reparametrised"]:
    """The form with the lower count.

    Args:
        name: the operation.
        site: a site whose weight the operation reads directly.
        rank: columns of B.
    """
    branch, reparametrised = costs(name, site, rank)
    return "branch" if branch <= reparametrised else "reparametrised"


def costs(name: str, site: WeightSite, rank: int) -> tuple[float, float]:
    """The cost that each form adds to a training step, branch first, in FLOPs of a thick product."""
    rows, *rest = site.weight_shape
    columns = prod(rest)
    read, written = (prod(port.value.sizes(BATCH)) for port in (site.source, site.target))
    if name == "embedding":  # a look-up multiplies nothing, and its weight's gradient is as large as the table
        return rank * written, 8.0 * rank * rows * columns
    transposed = name.startswith("conv_transpose")
    positions = (read if transposed or name == "matmul" else written) / rows
    saved = 4.0 * positions * rank
    moved = 4.0 * (2 * written + 2 * read) + saved
    branch = _THIN * 6 * positions * rank * (columns + rows) + _BYTE * moved
    return branch, 2 * positions * rows * columns + 8.0 * rank * rows * columns


def cheapest_form(weight_shape: tuple[int, ...], rank: int, read: int, written: int) -> str:
    """`branch`, `reparametrised` or `one`: the tuned operation as one, for linears and convolutions of one group.

    As one operation it makes `W + s·BA` twice, as the reparametrised form does, and takes the gradients of A and B from
    thin products, as the branch does. It makes no pass over the input's gradient or the result.

    Args:
        weight_shape: rows first.
        rank: columns of B.
        read, written: numbers of the operation's input and result.
    """
    rows, *rest = weight_shape
    columns = prod(rest)
    positions = written / rows
    thin = 2 * positions * rank * (columns + rows)
    weights = 2 * (2.0 * rank * rows * columns + _BYTE * 12 * rows * columns)
    costs = {
        "one": _THIN_ALONE * 2 * thin + weights,
        "branch": _THIN * 3 * thin + _BYTE * 4.0 * (2 * written + 2 * read),
        "reparametrised": 2 * positions * rows * columns + 4.0 * rank * rows * columns + weights,
    }
    return min(costs, key=costs.__getitem__)

"""The worst and the best predictions of tasks other than one class per sample, and odd outputs."""

from __future__ import annotations

import base64
import io
import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from utcompile.report import look
from utcompile.train.tasks import IGNORED, Multilabel, Regress, Segment


class Given(nn.Module):
    """Returns its input times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_labels_are_named_and_compared_one_by_one():
    data = [(torch.tensor([3.0, -3.0, 3.0]), torch.tensor([1.0, 0, 0])), (torch.tensor([4.0, -4, -4]), torch.zeros(3))]
    found = look(Given(), data, ("red", "round", "soft"), task=Multilabel(3))
    worst, best = found.worst
    assert (worst.truth, worst.guess, worst.share) == ("none", "red", pytest.approx(2 / 3))
    assert (best.truth, best.guess) == ("red", "red, soft")
    assert found.confusion == () and found.accuracy is None


def test_numbers_are_in_the_units_of_the_targets():
    task = Regress(1, torch.tensor([100.0]), torch.tensor([10.0]))
    data = [(torch.tensor([0.5]), torch.tensor([105.0])), (torch.tensor([2.0]), torch.tensor([90.0]))]
    found = look(Given(), data, ("weight",), task=task)
    assert [(s.truth, s.guess, s.share) for s in found.worst] == [("90", "120", None), ("105", "105", None)]


def scene(size: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Logits of two classes and a background, whose first `wrong` pixels are wrong; the last row is ignored."""
    mask = torch.arange(size * size).view(size, size) % 2 + 1
    said = mask.clone()
    said.view(-1)[:wrong] = 3 - said.view(-1)[:wrong]
    mask[-1] = IGNORED
    return 8 * nn.functional.one_hot(said, 3).permute(2, 0, 1).float(), mask


def test_masks_are_drawn_next_to_the_image():
    empty = torch.zeros(3, 4, 4), torch.full((4, 4), IGNORED)
    found = look(
        Given(), [scene(4, 0), scene(4, 6), empty], ("a", "b", "c"), task=Segment(3), mean=(0,) * 3, std=(1,) * 3
    )
    assert [round(s.share * 12) for s in found.worst] == [6, 12]  # 12 of the 16 pixels count; one sample has none
    picture = Image.open(io.BytesIO(base64.b64decode(found.worst[0].image.partition(",")[2])))
    assert picture.size == (3 * 4 + 2 * 2, 4)
    true, said = [[picture.getpixel((x, 0)) for x in range(left, left + 4)] for left in (6, 12)]
    assert true == said[1:] + said[:1] and picture.getpixel((6, 3)) == picture.getpixel((12, 3)) == (255, 255, 255)


def test_outputs_that_are_no_numbers_are_the_worst():
    data = [(torch.tensor([1.0, 0.0]), 0), (torch.tensor([math.nan, 0.0]), 0), (torch.tensor([0.0, 1.0]), 0)]
    found = look(Given(), data, ("a", "b"))
    assert found.worst[0].loss == math.inf and found.best[-1].loss == math.inf
    assert found.best[0].guess == "a"


def test_a_grey_image_takes_the_first_of_three_means():
    found = look(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        [(torch.zeros(1, 2, 2), 0)],
        ("a", "b"),
        mean=(0.5, 0, 0),
        std=(1, 9, 9),
    )
    assert Image.open(io.BytesIO(base64.b64decode(found.best[0].image.partition(",")[2]))).getpixel((0, 0)) == 128

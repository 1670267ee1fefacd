"""The page of a run: what it says of predictions, curves and costs; and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from support.browser import drive, needs_browser
from support.models import captured
from torch import Tensor, nn
from torch.utils.data import Dataset

import utcompile as utc
from utcompile.errors import UtcError
from utcompile.report import RunFacts, Speed, look, plan_page, read_history, run_page, svg_of
from utcompile.report.charts import Point, Series, line_chart, scatter


class Brightness(nn.Module):
    """Three logits of an image: how near its mean is to 0, 1 and 2."""

    def forward(self, x: Tensor) -> Tensor:
        return -10 * (x.mean((1, 2, 3))[:, None] - torch.arange(3.0)).abs()


class Grey(Dataset[object]):
    """Images of one brightness each, with labels."""

    def __init__(self, values: Sequence[float], labels: Sequence[int]) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 4, 4), float(self.values[index])), self.labels[index]


def test_confusion_and_the_worst_and_best_are_those_of_the_labels():
    data = Grey([0, 0.1, 1, 1.3, 2, 0.2], [0, 0, 1, 1, 2, 2])
    found = look(Brightness().train(), data, ("a", "b", "c"), batch_size=4)
    assert found.confusion == ((2, 0, 0, 0), (0, 2, 0, 0), (1, 0, 1, 0))
    assert found.accuracy == pytest.approx(5 / 6)
    worst = found.worst[0]
    assert (worst.truth, worst.guess) == ("c", "a") and worst.loss > 10 and worst.share < 1e-4
    assert [s.loss for s in found.worst] == sorted((s.loss for s in found.worst), reverse=True)
    assert [s.loss for s in found.best] == sorted(s.loss for s in found.best)


def test_a_picture_is_shown_without_its_normalisation():
    found = look(Brightness(), Grey([1.0], [1]), ("a", "b", "c"), mean=(0.25,) * 3, std=(0.5,) * 3)
    kind, data = found.best[0].image.split(",")
    assert kind == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.getpixel((0, 0)) == (191, 191, 191)  # 0.25 + 0.5 of 255


def test_an_output_that_is_no_class_is_counted_apart():
    found = look(Brightness(), Grey([2.0, 0.0], [1, 0]), ("a", "b"))
    assert found.confusion == ((1, 0, 0), (0, 0, 1)) and found.worst[0].guess == "2"


class Words(Dataset[object]):
    """Two texts as rows of numbers by name, as a language model takes them."""

    texts = (("a <b>good</b> day", None), ("rain", "and more rain"))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        return {"ids": torch.tensor([index, 1]), "mask": torch.ones(2)}, index


class Lengths(nn.Module):
    """Logits by name."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.stack([1 - ids[:, 0], ids[:, 0] * mask.sum(1)], 1).float()}


def test_texts_are_shown_as_texts():
    found = look(Lengths(), Words(), ("good", "bad"))
    assert [s.text for s in found.best] == ["rain / and more rain", "a <b>good</b> day"]
    page = run_page(facts(predictions=found))
    assert "a &lt;b&gt;good&lt;/b&gt; day" in page and "<b>good" not in page


def test_the_modes_of_the_model_are_restored():
    model = nn.Sequential(nn.Dropout(), Brightness()).train()
    look(model, Grey([0.0], [0]), ("a", "b", "c"))
    assert model.training and model[0].training


def test_a_history_is_read_without_the_line_that_is_being_written(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"epoch": 1, "train_loss": 2.0}\n{"epoch": 2, "tra')
    assert read_history(tmp_path) == [{"epoch": 1, "train_loss": 2.0}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "the run has no history"),
        ("", "the history is empty"),
        ("[1]\n", "the history is damaged"),
        ('{"epoch": 1, "train_loss": "much"}\n', "the history is damaged"),
        ('{"lr": 1}\n', "the history is damaged"),
        ('{"epoch": NaN, "train_loss": 1}\n', "the history is damaged"),
        ("\x00\xff\n", "the history is damaged"),
    ],
)
def test_a_run_without_a_history_that_can_be_read_is_one_error(tmp_path, text, says):
    if text is not None:
        (tmp_path / "history.jsonl").write_text(text)
    with pytest.raises(UtcError, match=says) as caught:
        read_history(tmp_path)
    assert caught.value.code == "report/history" and str(tmp_path) in str(caught.value.where)


def test_charts_leave_gaps_where_a_number_is_not_finite():
    text = line_chart("loss", [Series("a", [1.0, float("nan"), 2.0]), Series("b", [float("inf")] * 3)])
    assert "nan" not in text and "inf" not in text and text.count("<circle") == 2
    assert line_chart("loss", [Series("a", [float("nan")])]) == ""
    assert "nan" not in scatter("s", [Point("a", 1, 0.5), Point("b", 1, 0.5, 0.1), Point("c", float("nan"), 0)], "x")


def test_names_beside_a_plot_cover_no_other_name_and_stay_inside():
    points = [Point("a" * 60, 10.0, 0.9), *(Point(f"method {i}", 10.0**i, 0.9 + i / 1e4, 0.01) for i in range(1, 40))]
    text = scatter("s", points, "parameters")
    tree = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    names = [e for e in tree.iter() if e.get("class") == "name"]
    height, heights = float(tree.get("height")), sorted(float(e.get("y")) for e in names)
    assert len(names) == 40 and all(b - a >= 12.9 for a, b in pairwise(heights))
    assert heights[0] >= 30 and heights[-1] <= height - 30
    assert "…" in names[0].text and len(names[0].text) <= 34


def test_of_very_many_classes_only_pairs_that_occur_are_kept():
    count = 21_841  # a table of all pairs would take gigabytes

    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), count - 1), count).float()

    found = look(Far(), Grey([0.0, 1.0], [count - 1, 7]), [f"class {i}" for i in range(count)])
    assert found.pairs == {(count - 1, count - 1): 1, (7, count - 1): 1} and found.accuracy == 0.5
    assert "class 7</td><td>class 21840</td>" in run_page(facts(predictions=found))


def facts(**more: object) -> RunFacts:
    plan = utc.match(captured("vit"), "u_tuning/dual")
    history = [
        {
            "epoch": i,
            "train_loss": 1 / i,
            "validation_loss": 1.5 / i,
            "validation_accuracy": 1 - 0.5 / i,
            "lr": 0.1,
            "seconds": 1.0,
        }
        for i in (1, 2, 3)
    ]
    names = ("<script>alert(1)</script>", "b & c", "d")
    predictions = look(Brightness(), Grey([0, 0.1, 1, 1.3, 2, 0.2], [0, 0, 1, 1, 2, 2]), names)
    speeds = [Speed("base", 1, 0.9, 1.1, 1), Speed("tuned", 2, 1.9, 2.1, 2)]
    given = {"predictions": predictions, "speeds": speeds, "engine": "a test", **more}
    return RunFacts("Run <b>", {"model": "<i>m</i>"}, history, plan, 1_000_000, 12_000, **given)


def test_names_of_classes_and_texts_are_never_markup():
    page = run_page(facts())
    assert "<script>alert" not in page and "<i>m" not in page and "Run <b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_bytes_of_names_that_are_no_text_are_replaced():
    names = ("caf\udce9", "a\x00b", "d")  # a folder's name in another encoding, and a control character
    found = look(Brightness(), Grey([0, 1], [0, 2]), names)
    page = run_page(facts(predictions=found))
    assert "caf\ufffd" in page and "a\ufffdb" in page and page.encode()
    model = nn.Sequential()
    model.add_module("\x01", nn.Linear(3, 3))
    model.add_module("last", nn.Linear(3, 2))
    plan = utc.match(utc.capture(model, torch.randn(2, 3)), "lora/all_linear")
    assert ElementTree.fromstring(svg_of(plan)).tag.endswith("svg") and plan_page(plan).encode()


def test_a_run_without_classes_has_a_page_without_confusion():
    page = run_page(facts(predictions=None, speeds=()))
    assert "Confusion" not in page and "Latency" not in page and "Curves" in page


@pytest.mark.full
@needs_browser
def test_the_page_of_a_run_in_a_browser(tmp_path):
    steps = """
    document.querySelectorAll("details").forEach((d) => { d.open = true; });
    document.getElementById("theme").click();
    return {
      sections: [...document.querySelectorAll("section h2")].map((h) => h.textContent.split(":")[0]),
      pictures: [...document.images].filter((i) => i.complete && i.naturalWidth > 0).length,
      charts: document.querySelectorAll(".chart").length,
      links: [...document.querySelectorAll("nav a")].every((a) => document.querySelector(a.getAttribute("href"))),
      wide: document.documentElement.scrollWidth <= innerWidth,
    };"""
    found = drive(run_page(facts()), steps, tmp_path)
    assert found["sections"] == [
        "Summary", "Curves", "Parameters and memory", "Latency", "Folding", "Confusion", "Predictions", "What is inserted",
    ]  # fmt: skip
    assert found["pictures"] == 12 and found["charts"] == 3 and found["links"] and found["wide"]

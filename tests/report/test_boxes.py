"""What a drawing shows: every tuner once, where it is inserted; copies of a block once; lines that go down."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
import torch
from support.architectures import ARCHITECTURES, make
from support.models import captured
from torch import nn

import utcompile as utc
from utcompile.errors import UtcError
from utcompile.report import plan_page, svg_of
from utcompile.report.boxes import ENTRY, EXIT, Box, boxes_of
from utcompile.report.repeats import grouped
from utcompile.rules import shipped_rules

FORMS = {
    "parallel": ("vit", "u_tuning/dual"),
    "sequential": ("vit", "adapter/houlsby"),
    "weight": ("vit", "lora/all_linear"),
    "tokens": ("vit", "prefix/prefix"),
    "chain": ("vit", "res_tuning/bypass"),
    "stream_tokens": ("vit", "prompt/vpt_shallow"),
    "parallel around blocks": ("vit", "u_tuning/single_block"),
    "parallel in a ConvNet": ("resnet", "convnet/residual_parallel"),
    "chain in a ConvNet": ("resnet", "res_tuning/bypass"),
    "parameters": ("resnet", "bitfit/norms"),
}


def inside(box: Box) -> Iterator[Box]:
    """A box and all boxes in it."""
    yield box
    for child in box.children:
        yield from inside(child)


def drawn(kind: str, rules: str) -> tuple[utc.Plan, Box]:
    plan = utc.match(captured(kind), rules)
    return plan, grouped(boxes_of(plan))


@pytest.mark.parametrize("form", FORMS)
def test_every_site_is_in_the_drawing_and_lines_go_down(form):
    plan, root = drawn(*FORMS[form])
    notes = {id(n): n for box in inside(root) for n in (box.tuner, *box.attached) if n is not None}
    sites = [site for note in notes.values() for site in note.sites]
    assert sorted(sites) == sorted(site.id for site in plan.sites)
    assert {n.form for n in notes.values()} == {site.form for site in plan.sites}
    for box in inside(root):
        for line in box.lines:
            source = len(box.children) if line.source == EXIT else line.source
            assert ENTRY <= source < (len(box.children) if line.target == EXIT else line.target)
        reached = {line.target for line in box.lines}
        for index, child in enumerate(box.children):
            # what is made of parameters alone, such as a class token, reads nothing
            assert index in reached or child.word in ("expand", "prompt", "tokens"), (box.path, child.path, child.word)


@pytest.mark.parametrize("form", FORMS)
def test_the_file_is_xml_with_numbers_for_all_places(form):
    text = svg_of(utc.match(captured(FORMS[form][0]), FORMS[form][1]))
    tree = ElementTree.fromstring(text)
    assert tree.tag.endswith("svg") and "nan" not in text and "{" not in text.partition("</style>")[2]
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_copies_of_a_block_are_one_and_a_parallel_tuner_goes_around_what_it_is_parallel_to():
    _, root = drawn("vit", "u_tuning/dual")
    block = next(box for box in inside(root) if box.word == "Block")
    assert block.times == len(block.paths) == 6
    words = [child.name or child.kind for child in block.children]
    at = {word: words.index(word) for word in ("norm1", "attn", "tuner", "sum", "norm2")}
    lines = {(line.source, line.target) for line in block.lines}
    assert {(ENTRY, at["norm1"]), (ENTRY, at["tuner"]), (at["attn"], at["sum"]), (at["tuner"], at["sum"])} <= lines
    # the sum joins the residual addition, as the stream does
    after = at["sum"] + 1
    assert {(at["sum"], after), (ENTRY, after), (after, at["norm2"])} <= lines


def test_a_tuner_in_one_block_alone_separates_it_from_its_copies():
    _, root = drawn("vit", "u_tuning/dual_first")
    blocks = [box for box in inside(root) if box.word == "Block"]
    assert [(box.times, box.has_tuner) for box in blocks] == [(1, True), (5, False)]


def test_a_side_network_goes_from_copy_to_copy_and_ends_at_its_end():
    _, root = drawn("vit", "res_tuning/bypass")
    unit = next(box for box in inside(root) if box.kind == "repeat")
    stage = next(i for i, child in enumerate(unit.children) if child.kind == "tuner")
    sides = {(line.source, line.target) for line in unit.lines if line.is_side}
    assert sides == {(ENTRY, stage), (stage, EXIT)}


class Skips(nn.Module):
    """Two convolutions whose first value is read later once more."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        return self.up(torch.cat((self.middle(skip), skip), 1))


def test_a_tuner_for_one_reader_is_in_front_of_that_reader_alone():
    plan = utc.match(utc.capture(Skips(), torch.randn(2, 3, 8, 8)), "scedit/skip")
    root = grouped(boxes_of(plan))
    words = [child.name or child.word for child in root.children]
    assert words == ["down", "middle", "adapter", "cat", "up"]
    lines = {(line.source, line.target) for line in root.lines}
    assert lines == {(ENTRY, 0), (0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, EXIT)}


@pytest.mark.parametrize("insert", ["parallel: x -> h", "sequential: x"])
def test_a_tuner_that_reads_the_input_of_the_model_has_a_line_from_it(insert):
    rules = (
        "version: 1\nname: first\nrules:\n"
        "  - {name: first, match: 'h = linear(x)', select: {first: 1}, "
        f"insert: {{{insert}, tuner: {{kind: adapter, dim: 2}}}}}}\n"
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    root = grouped(boxes_of(utc.match(utc.capture(model, torch.randn(2, 4)), rules)))
    tuner = next(i for i, child in enumerate(root.children) if child.kind == "tuner")
    assert (ENTRY, tuner) in {(line.source, line.target) for line in root.lines}


def test_a_long_name_is_short_in_the_drawing_and_whole_in_its_hint():
    model: nn.Module = nn.Linear(3, 2)
    for level in range(40):
        outer = nn.Sequential()
        outer.add_module(f"level_number_{level}", model)
        model = outer
    rules = "version: 1\nname: all\nrules: [{name: all, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}]"
    text = svg_of(utc.match(utc.capture(model, torch.randn(2, 3)), rules))
    tree = ElementTree.fromstring(text)
    assert float(tree.get("width")) < 1000
    assert any("level_number_20.level_number_19" in (e.text or "") for e in tree.iter() if e.tag.endswith("title"))


def test_names_of_users_are_text_and_never_markup():
    model = nn.Sequential()
    model.add_module("<b>&</script>", nn.Linear(3, 3))
    model.add_module("last", nn.Linear(3, 2))
    plan = utc.match(utc.capture(model, torch.randn(2, 3)), "lora/all_linear")
    ElementTree.fromstring(svg_of(plan))
    page = plan_page(plan)
    assert "<b>" not in page and page.count("</script>") == 2


@pytest.mark.full
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_shipped_rule_file_on_every_architecture_has_a_drawing(name):
    """Windows, rotary embeddings, tied weights, layers that run twice: every site is drawn, and lines go down."""
    model, inputs = make(name)
    captured_ = utc.capture(model, inputs, verify="shapes")
    plans = 0
    for rules in shipped_rules():
        try:
            plan = utc.match(captured_, rules)
        except UtcError:
            continue
        plans += 1
        ElementTree.fromstring(svg_of(plan))
        root = grouped(boxes_of(plan))
        notes = [n for box in inside(root) for n in (box.tuner, *box.attached) if n is not None]
        assert {site for n in notes for site in n.sites} == {site.id for site in plan.sites}, rules
        for box in inside(root):
            assert all(line.target == EXIT or line.source < line.target for line in box.lines), (rules, box.path)
    assert plans >= 5

"""Pages in a browser: nothing is logged, nothing is loaded, and what can be clicked does what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.browser import drive, needs_browser
from support.models import captured
from torch import nn

import utcompile as utc
from utcompile.report import parts_page, plan_page
from utcompile.rules import shipped_rules

pytestmark = [pytest.mark.full, needs_browser]

_STEPS = """
const svg = document.querySelector("svg.graph"), boxes = JSON.parse(document.getElementById("boxes").textContent);
const heights = () => svg.viewBox.baseVal.height, start = heights();
const head = svg.querySelector(".container .container:not(.closed) > .head") || svg.querySelector(".container .container > .head");
const press = (part) => part.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const panel = document.getElementById("details");
const shown = (part) => part.getClientRects().length > 0 && part.getBoundingClientRect().width > 0;
const drawn = [...svg.querySelectorAll("[data-at]")].map((p) => ["d", "y", "cy", "transform"].map((a) => p.getAttribute(a)).join());
const inside = head.parentElement.querySelector(":scope > .inside");
const visibility = [shown(inside)]; press(head); visibility.push(shown(inside)); const once = heights();
press(head); visibility.push(shown(inside)); const again = heights();
const same = [...svg.querySelectorAll("[data-at]")].map((p) => ["d", "y", "cy", "transform"].map((a) => p.getAttribute(a)).join());
document.getElementById("open").click(); const opened = heights();
document.getElementById("close").click(); const closed = heights();
document.getElementById("tuners").click(); const tuners = heights();
const search = document.getElementById("search");
const find = (text) => { search.value = text; search.dispatchEvent(new Event("input")); return svg.querySelectorAll(".hit").length; };
document.getElementById("close").click();
const hits = find(WORDS), count = document.getElementById("count").textContent;
const visible = [...svg.querySelectorAll(".hit")].filter(shown).length;
const none = find("no such thing"); find("");
document.getElementById("tuners").click();
const told = [...svg.querySelectorAll(".tuner")].filter((t) => !t.closest(".legend")).map((tuner) => {
  press(tuner);
  const facts = Object.fromEntries([...panel.querySelectorAll("dt")].map((t) => [t.textContent, t.nextSibling.textContent]));
  const rule = panel.querySelector("pre.rule");
  return {...facts, text: rule ? rule.textContent : "", chosen: tuner.classList.contains("chosen"), left: tuner.getBoundingClientRect().left};
});
const leaf = svg.querySelector(".leaf.op"); let operation = {};
if (leaf) { press(leaf); operation = Object.fromEntries([...panel.querySelectorAll("dt")].map((t) => [t.textContent, t.nextSibling.textContent])); }
const theme = document.getElementById("theme"), seen = [];
for (let i = 0; i < 3; i++) { theme.click(); seen.push([document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]); }
const wrong = [...svg.querySelectorAll("path,rect,text,circle")].filter((p) => /NaN|undefined/.test(p.outerHTML)).length;
return {start, once, again, visibility, opened, closed, tuners, hits, visible, count, none, told, operation, seen, wrong, same: drawn.join() === same.join()};
"""

FORMS = [
    ("parallel", "vit", "u_tuning/dual", "mha"),
    ("parallel", "efficientnet", "convnet/inverted_residual_foldable", "adapter"),
    ("sequential", "swin", "adapter/houlsby", "sequential"),
    ("weight", "convnext", "lora/all_linear", "lora"),
    ("tokens", "swin", "prefix/prefix", "tokens"),
    ("chain", "resnet", "res_tuning/bypass", "bypass"),
    ("stream_tokens", "vit", "prompt/vpt_shallow", "prompt"),
]


@pytest.mark.parametrize(("form", "kind", "rules", "word"), FORMS)
def test_a_plan_opens_closes_finds_and_explains(form, kind, rules, word, tmp_path):
    plan = utc.match(captured(kind), rules)
    found = drive(plan_page(plan), _STEPS.replace("WORDS", f'"{word}"'), tmp_path)
    assert found["start"] == found["again"] == found["tuners"] <= found["opened"] and found["once"] != found["start"]
    before, between, after = found["visibility"]
    assert before == after != between and (found["once"] < found["start"]) == before
    assert found["closed"] <= found["tuners"] and found["closed"] < found["opened"]
    assert found["same"] and not found["wrong"]
    assert found["hits"] == found["visible"] > 0  # a search opens what is closed
    assert found["count"] == f"{found['hits']} found" and found["none"] == 0
    _check_tuners(plan, form, found["told"], str(shipped_rules()[rules]))
    assert re.match(r"\S+\.py:\d+ in \w+", found["operation"]["source line"]), found["operation"]
    assert [name for name, _ in found["seen"]] == ["light", "dark", "auto"]
    assert found["seen"][0][1] == "rgb(255, 255, 255)" != found["seen"][1][1]


def _check_tuners(plan: utc.Plan, form: str, told: list[dict[str, Any]], file: str) -> None:
    """Each tuner that is clicked names its form, its rule and the lines of the rule file and of the source."""
    assert told and all(one["chosen"] for one in told)
    assert form in {re.split(r"[,\s]", one["form"])[0] for one in told}
    assert {one["rule"] for one in told} == {site.rule for site in plan.sites}
    assert sum(int(one["sites"]) for one in told) >= len(plan.sites)
    for one in told:
        place = re.fullmatch(r"(\S+\.yaml):(\d+):\d+", one["rule line"])
        assert place is not None and file.endswith(place[1].rpartition("/")[2]), one
        number = int(place[2])
        shown = [line for line in one["text"].splitlines() if line.split(maxsplit=1)[:1] == [str(number)]]
        assert shown and re.search(r"insert|parallel|sequential|weight|tokens|chain", shown[0]), one
        assert re.match(r"\S+\.py:\d+ in \w+", one["source line"]), one


class Stack(nn.Module):
    """Three alike blocks, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))
        self.last = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


_PARTS = """
const press = (part) => part.dispatchEvent(new MouseEvent("click", {bubbles: true}));
return [...document.querySelectorAll("section")].map((section, number, all) => {
  const search = section.querySelector(".search");
  search.value = "lora"; search.dispatchEvent(new Event("input"));
  press(section.querySelector(".leaf.op, .tuner"));
  const others = all.filter((one) => one !== section);
  const found = {
    title: section.querySelector("h2").textContent,
    hits: section.querySelectorAll(".hit").length,
    told: section.querySelector(".details h3").textContent,
    others: others.map((one) => one.querySelectorAll(".hit").length),
    height: section.querySelector("svg").viewBox.baseVal.height,
  };
  search.value = ""; search.dispatchEvent(new Event("input"));
  section.querySelector(".close").click();
  found.closed = section.querySelector("svg").viewBox.baseVal.height;
  section.querySelector(".tuners").click();
  return found;
});
"""


def test_parts_of_a_model_have_a_drawing_each_and_alike_ones_one(tmp_path):
    plan = utc.match(
        utc.capture_parts(Stack(), torch.randn(2, 8), within=["blocks.*", "last"]),
        "version: 1\nname: all\nrules: [{name: all, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}]",
    )
    first, second = drive(parts_page(plan.plans, "parts"), _PARTS, tmp_path)
    assert (first["title"], second["title"]) == ("What is inserted in blocks.0…2", "What is inserted in last")
    for found in (first, second):
        assert found["hits"] >= 2 and found["others"] == [0] and found["told"]

"""Pages in a browser: nothing is logged, nothing is loaded, and what can be clicked does what it says."""

from __future__ import annotations

import pytest
from support.browser import drive, needs_browser
from support.models import captured

import utcompile as utc
from utcompile.report import plan_page

pytestmark = [pytest.mark.full, needs_browser]

_STEPS = """
const svg = document.querySelector("svg.graph"), boxes = JSON.parse(document.getElementById("boxes").textContent);
const heights = () => svg.viewBox.baseVal.height, start = heights();
const head = svg.querySelector(".container .container:not(.closed) > .head");
const press = (part) => part.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const drawn = [...svg.querySelectorAll("[data-at]")].map((p) => ["d", "y", "cy", "transform"].map((a) => p.getAttribute(a)).join());
press(head); const shut = heights();
press(head); const again = heights();
const same = [...svg.querySelectorAll("[data-at]")].map((p) => ["d", "y", "cy", "transform"].map((a) => p.getAttribute(a)).join());
document.getElementById("open").click(); const opened = heights();
document.getElementById("close").click(); const closed = heights();
document.getElementById("tuners").click(); const tuners = heights();
const search = document.getElementById("search");
search.value = WORDS; search.dispatchEvent(new Event("input"));
const hits = svg.querySelectorAll(".hit").length, count = document.getElementById("count").textContent;
search.value = "no such thing"; search.dispatchEvent(new Event("input"));
const none = svg.querySelectorAll(".hit").length;
press(svg.querySelector(".tuner"));
const details = document.getElementById("details").textContent;
const theme = document.getElementById("theme"), seen = [];
for (let i = 0; i < 3; i++) { theme.click(); seen.push([document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]); }
const wrong = [...svg.querySelectorAll("path,rect,text,circle")].filter((p) => /NaN|undefined/.test(p.outerHTML)).length;
return {start, shut, again, opened, closed, tuners, hits, count, none, details, seen, wrong, same: drawn.join() === same.join()};
"""


@pytest.mark.parametrize(
    ("kind", "rules", "word", "line"),
    [
        ("vit", "u_tuning/dual", "mha", "match: attention"),
        ("resnet", "res_tuning/bypass", "bypass", "chain"),
        ("efficientnet", "convnet/inverted_residual_foldable", "adapter", "inverted_residual"),
        ("swin", "prefix/prefix", "tokens", "match: attention"),
        ("convnext", "lora/all_linear", "lora", "linear"),
    ],
)
def test_a_plan_opens_closes_finds_and_explains(kind, rules, word, line, tmp_path):
    page = plan_page(utc.match(captured(kind), rules))
    found = drive(page, _STEPS.replace("WORDS", f'"{word}"'), tmp_path)
    assert found["shut"] < found["start"] == found["again"] == found["tuners"] <= found["opened"]
    assert found["closed"] < found["tuners"]
    assert found["same"] and not found["wrong"]
    assert found["hits"] > 0 and found["count"] == f"{found['hits']} found" and found["none"] == 0
    assert "rule line" in found["details"] and line in found["details"] and "source line" in found["details"]
    assert [name for name, _ in found["seen"]] == ["light", "dark", "auto"]
    assert found["seen"][0][1] == "rgb(255, 255, 255)" != found["seen"][1][1]

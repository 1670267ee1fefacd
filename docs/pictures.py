"""The pictures of pages under `docs/assets/pages/`: real architectures with random weights, in headless Chromium.

    python docs/pictures.py [NAME …]
    python docs/pictures.py run=RUN/report.html     a picture of the page of a run

The pages are made of `utcompile.report`; no weights are needed, and no network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import utcompile as utc
from utcompile.report import plan_page, svg_of

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "assets" / "pages"
SIZE = (1180, 860)
_CHOSEN = """<script>
document.querySelector(".tuner").dispatchEvent(new MouseEvent("click", {bubbles: true}));
document.querySelector(".canvas").scrollTop = TOP;
</script>"""


def _timm(name: str, size: int, **options: Any) -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model(name, **options), (torch.randn(2, 3, size, size),)


def _bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig())
    return model, {"input_ids": torch.randint(0, 9, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}


def _unet() -> tuple[nn.Module, Any]:
    sys.path.insert(0, str(ROOT / "rules" / "scedit"))
    from unet import diffusion

    return diffusion(), (torch.randn(2, 3, 32, 32),)


# name: how the model is made, the rules, and how far its drawing is scrolled
PAGES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str, int]] = {
    "resnet50": (lambda: _timm("resnet50", 224), "convnet/residual_parallel", 120),
    "vit_b": (lambda: _timm("vit_base_patch16_224", 224), "u_tuning/dual", 260),
    "swin": (lambda: _timm("swin_tiny_patch4_window7_224", 224), "adapter/houlsby", 120),
    "bert": (_bert, "lora/qv", 280),
    "unet": (_unet, "scedit/skip", 260),
}


def shoot(page: Path, picture: Path, size: tuple[int, int] = SIZE) -> None:
    """A picture of a page, with few colours, so that it is small."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += [f"--screenshot={picture}", f"--window-size={size[0]},{size[1]}", page.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=240)
    Image.open(picture).convert("RGB").quantize(96).save(picture, optimize=True)


def draw(name: str) -> None:
    """The page of one model, light and dark, and its drawing."""
    make, rules, top = PAGES[name]
    torch.manual_seed(0)
    model, example = make()
    plan = utc.match(utc.capture(model.eval(), example, verify="shapes"), rules)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.svg").write_text(svg_of(plan) + "\n", encoding="utf-8")
    text = plan_page(plan).replace("</body>", f"{_CHOSEN.replace('TOP', str(top))}</body>")
    with tempfile.TemporaryDirectory() as folder:
        for theme in ("light", "dark"):
            page = Path(folder) / f"{theme}.html"
            page.write_text(text.replace('data-theme="auto"', f'data-theme="{theme}"'), encoding="utf-8")
            shoot(page, OUT / f"{name}_{theme}.png")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PAGES:
        name, _, file = chosen.partition("=")
        if file:
            shoot(Path(file).resolve(), OUT / f"{name}_light.png", (1180, 1750))
        else:
            draw(name)
        print(chosen)

"""Draw `docs/assets/pipeline.svg`: one block of a real ResNet on its way from capture to an ONNX file.

    python docs/pipeline.py

The nodes, the places of the match, the parameters and the errors are those of the README's own rule on timm's resnet18.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

import timm
import torch

import utcompile as utc

ROOT = Path(__file__).resolve().parents[1]
BLOCK = "layer3.1"
WIDTH, COLUMN, BOX, ROW, TOP = 1120, 224, 150, 44, 92
INK, PALE, LINE, ORANGE, GREEN, BLUE = "#1f2933", "#6b7785", "#9aa5b1", "#e8590c", "#2b8a3e", "#3b5bdb"
KINDS = ("Conv2d", "BatchNorm2d", "ReLU")
WORDS = ("conv2d", "norm", "activation", "conv2d", "norm", "add")


def main() -> None:
    """Run the job on a small input, and write the picture."""
    torch.manual_seed(0)
    model, images = timm.create_model("resnet18", num_classes=10), torch.randn(2, 3, 64, 64)
    rules = re.search(r"^```yaml\n# late\.yaml\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert rules is not None
    captured = utc.capture(model, (images,))
    plan = utc.match(captured, rules[1])
    tuned = plan.apply().eval()
    (site,) = (s for s in tuned.sites if s.path == BLOCK)
    for s in tuned.sites:
        torch.nn.init.normal_(tuned.tuner(s.id).lora_B, std=0.01)
    folded, report = utc.fold(tuned)
    (done,) = (s for s in report.sites if s.id == site.id)
    with tempfile.TemporaryDirectory() as folder:
        exported = utc.export_onnx(folded, f"{folder}/resnet18.onnx", (images,))
    pattern = re.search(r"match: \|\n((?: {6}.*\n)+)", rules[1])
    assert pattern is not None
    lines = [line.strip() for line in pattern[1].splitlines()]
    text = "\n".join(
        [
            *_frame(),
            *_chain(0, list(_nodes(captured))),
            *_pattern(1, lines),
            *_tuner(2, sum(p.numel() for p in tuned.tuner(site.id).parameters())),
            *_folded(3, done.status, done.max_error),
            *_file(4, exported.max_error),
            "</svg>",
        ]
    )
    (ROOT / "docs" / "assets" / "pipeline.svg").write_text(text + "\n", encoding="utf-8")


def _nodes(captured: utc.CapturedModule) -> Iterator[tuple[str, str]]:
    """The nodes of the block up to its sum, each with its shape. Those that do nothing in eval are left out."""
    for node in captured.graph.nodes:
        if not node.name.startswith(BLOCK.replace(".", "_")):
            continue
        if node.op != "call_module":
            yield node.target, str(node.meta["value"])
            return
        kind = type(captured.get_submodule(node.target)).__name__
        if kind in KINDS:
            yield f"{node.target.removeprefix(f'{BLOCK}.')}: {kind}", str(node.meta["value"])


def _frame() -> Iterator[str]:
    height = TOP + 6 * ROW + 64
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" font-size="14" fill="{INK}">'
    )
    yield f"<title>How utcompile tunes {BLOCK} of a ResNet-18</title>"
    yield f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>'
    yield (
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>'
    )
    titles = ("1 capture", "2 match", "3 tune", "4 fold", "5 export")
    for column, title in enumerate(titles):
        yield _text(_middle(column), 34, title, size=19, weight=600)
        if column:
            x = column * COLUMN
            yield f'<path d="M{x - 16} 28 h28" stroke="{LINE}" stroke-width="2" marker-end="url(#tip)"/>'


def _middle(column: int) -> float:
    return column * COLUMN + COLUMN / 2


def _text(
    x: float, y: float, text: str, *, size: int = 14, fill: str = INK, weight: int = 400, mono: bool = False
) -> str:
    family = ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"' if mono else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="middle"{family}>{escape(text)}</text>'
    )


def _box(
    x: float, row: float, text: str, *, stroke: str = LINE, fill: str = "#f5f7fa", width: float = BOX
) -> Iterator[str]:
    y = TOP + row * ROW
    yield (
        f'<rect x="{x - width / 2:g}" y="{y:g}" width="{width:g}" height="28" rx="6" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )
    yield _text(x, y + 19, text, mono=True)


def _arrow(x: float, row: float) -> str:
    y = TOP + row * ROW + 29
    return f'<path d="M{x:g} {y:g} v{ROW - 30}" stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _shortcut(x: float) -> str:
    """From the input to the sum, on the left of a chain."""
    top, bottom, left = TOP - 8, TOP + 5 * ROW + 14, x - BOX / 2 - 14
    return (
        f'<path d="M{x:g} {top:g} H{left:g} V{bottom:g} H{x - BOX / 2 - 2:g}" fill="none" stroke="{LINE}" '
        f'stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def _plain(column: int, marked: dict[int, tuple[str, str, str]]) -> Iterator[str]:
    """The chain of the block; `marked` gives a row another text, outline and fill."""
    x = _middle(column)
    yield f'<path d="M{x:g} {TOP - 22} v20" stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'
    yield _shortcut(x)
    for row, word in enumerate(WORDS):
        text, stroke, fill = marked.get(row, (word, LINE, "#f5f7fa"))
        yield from _box(x, row, text, stroke=stroke, fill=fill)
        yield _arrow(x, row)


def _notes(column: int, *lines: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield _text(_middle(column), TOP + 6 * ROW + 24 + 19 * number, line, size=13, fill=PALE)


def _chain(column: int, nodes: list[tuple[str, str]]) -> Iterator[str]:
    assert len(nodes) == len(WORDS), nodes
    yield from _plain(column, {row: (name, LINE, "#f5f7fa") for row, (name, _) in enumerate(nodes)})
    yield from _notes(column, f"{BLOCK} of a ResNet-18", f"{nodes[0][1]}, B the batch")


def _pattern(column: int, lines: list[str]) -> Iterator[str]:
    """Each line of the pattern at the height of the operation that it matches."""
    x = _middle(column)
    rows = (0, 1.5, 3, 4, 5)
    yield _text(x, TOP - 14, "x", mono=True, fill=BLUE)
    for row, line in zip(rows, lines, strict=True):
        y = TOP + row * ROW
        tall = 28 + (ROW if row == 1.5 else 0)
        top = y - (ROW / 2 if row == 1.5 else 0)
        yield f'<rect x="{x - 104:g}" y="{top:g}" width="208" height="{tall:g}" rx="6" fill="#edf2ff" stroke="{BLUE}"/>'
        yield _text(x, y + 19, line, size=13, mono=True, fill=BLUE)
    yield from _notes(column, "the rule reads like the code", "and names no module")


def _tuner(column: int, parameters: int) -> Iterator[str]:
    yield from _plain(column, {3: ("conv2d  + s·BA", ORANGE, "#fff4e6")})
    yield from _notes(column, f"LoRA, {parameters:,} parameters here", "the rest is frozen, bit for bit")


def _folded(column: int, status: str, error: float) -> Iterator[str]:
    yield from _plain(column, {3: ("conv2d, W+s·BA", GREEN, "#ebfbee")})
    yield from _notes(column, f"{status}: no operation is left", f"proven in float64, error {error:.0e}")


def _file(column: int, error: float) -> Iterator[str]:
    x, y = _middle(column), TOP + ROW
    yield (
        f'<path d="M{x - 62} {y} h92 l32 32 v112 h-124 z" fill="#f5f7fa" stroke="{GREEN}" stroke-width="1.5"/>'
        f'<path d="M{x + 30} {y} v32 h32" fill="none" stroke="{GREEN}" stroke-width="1.5"/>'
    )
    yield _text(x, y + 74, "resnet18.onnx", mono=True)
    yield _text(x, y + 98, "dynamic batch", size=13, fill=PALE)
    yield from _notes(column, "equal in ONNX Runtime:", f"largest difference {error:.0e}")


if __name__ == "__main__":
    main()

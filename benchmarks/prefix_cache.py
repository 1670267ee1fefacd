"""A run of five epochs without augmentation, with the results of the frozen layers kept and without."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import utcompile as utc
from benchmarks.measure import Row
from utcompile.train import Data, fit

_EPOCHS = 5


def run(quick: bool) -> Iterator[Row]:
    """ViT-S/16 with LoRA on every linear of the last three of twelve blocks; processor time."""
    rounds, count = (1, 8) if quick else (3, 40)
    data = Data(_samples(count, 0), _samples(count // 4, 1), 5, tuple("abcde"))
    times: dict[str, list[list[float]]] = {"computed in every epoch": [], "kept": []}
    for i in range(rounds):
        for name in sorted(times, reverse=bool(i % 2)):
            times[name].append(_epochs(data, "4GB" if name == "kept" else None))
    whole, later = ({n: [sum(e[start:]) for e in t] for n, t in times.items()} for start in (0, 1))
    for name, seconds in whole.items():
        low, middle, high = statistics.quantiles(seconds, n=4) if rounds > 1 else (seconds[0],) * 3
        note = f"processor time; {_ratio(later, name):.3f} for an epoch after the first"
        yield Row("prefix_cache", name, 1e3 * middle, 1e3 * low, 1e3 * high, rounds, _ratio(whole, name), note)


def _ratio(times: dict[str, list[float]], name: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times["computed in every epoch"], strict=True))


def _samples(count: int, seed: int) -> _Images:
    made = torch.Generator().manual_seed(seed)
    return _Images(torch.randn(count, 3, 224, 224, generator=made), torch.randint(5, (count,), generator=made))


class _Images(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.tensors[0][index], int(self.tensors[1][index])


def _rules(blocks: range) -> str:
    lines = ["version: 1", "name: last_blocks", "tuners:", "  l: {kind: lora, r: 8}", "rules:"]
    for i in blocks:
        where = f'inside: {{module: "blocks.{i}"}}'
        lines += [f"  - name: block{i}", "    match: {op: linear}", f"    {where}", "    insert: {weight: h, tuner: l}"]
    return "\n".join([*lines, 'train: ["pattern:head"]', ""])


def _epochs(data: Data, cache: str | None) -> list[float]:
    """The processor seconds of each epoch; the first has what is computed once."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=5).eval()
    tuned = utc.compile(model, _rules(range(9, 12)), (torch.randn(2, 3, 224, 224),), verify="shapes")
    marks = [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:
        save = partial(_save, marks)
        fit(
            tuned, data, out=Path(folder) / "run", save=save, load=lambda _: None, epochs=_EPOCHS, batch_size=8,
            progress=False, cpu=True, prefix_cache=cache,
        )  # fmt: skip
    return [b - a for a, b in pairwise(marks)]


def _save(marks: list[float], folder: Path) -> None:
    if folder.name == "last":  # once per epoch
        marks.append(time.process_time())
    (folder / "nothing.json").write_text(json.dumps({}))

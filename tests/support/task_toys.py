"""Small data of every task, as files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# a user's file with two models, an example, a loss and metrics
NET = """
import torch
from torch import nn

def pixels(num_classes=7):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

def numbers():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

def example():
    return torch.zeros(2, 4)

def loss(output, target):
    return (output - target).abs().mean()

def metrics(outputs, targets):
    return {"worst": (outputs - targets).abs().max()}
"""
GREYS = {"dark": 40, "light": 200}


def write_images(folder: Path, count: int = 12, size: tuple[int, int] = (12, 10)) -> list[str]:
    """Images, every second one light; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    names = []
    for i in range(count):
        pixels = random.integers(0, 40, (size[1], size[0], 3)) + tuple(GREYS.values())[i % 2]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        names.append(f"{i}.png")
    return names


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """A table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_scenes(folder: Path, count: int = 12, values: tuple[int, int] = (0, 1)) -> Path:
    """Dark images with a light square, and masks of it."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = random.integers(0, 40, (16, 16, 3))
        mask = np.full((16, 16), values[0])
        row, column = random.integers(0, 8, 2)
        pixels[row : row + 8, column : column + 8] += 180
        mask[row : row + 8, column : column + 8] = values[1]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{i}.png")
    return folder


def write_reviews(path: Path, count: int = 24) -> Path:
    """Texts of a few words, whose label one of them decides."""
    words = ("fine", "poor")
    rows = [(f"the film was {words[i % 2]} {'and long ' * (i % 3)}", ("good", "bad")[i % 2]) for i in range(count)]
    return write_csv(path, ("text", "label"), rows)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the film was fine poor and long".split()


def write_bert(folder: Path, words: Sequence[str] = WORDS, vocabulary: int | None = None) -> Path:
    """A folder with a tiny BERT of random weights and its tokenizer.

    Args:
        vocabulary: how many embeddings the model has; as many as there are words by default.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(str(folder))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=vocabulary or len(words), max_position_embeddings=40, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(str(folder))
    return folder

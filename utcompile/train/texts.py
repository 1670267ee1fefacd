"""Texts with labels from tables, cut into tokens by a tokenizer from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.damaged import Bad, refuse
from utcompile.train.dataset import Data
from utcompile.train.tables import Table, is_missing
from utcompile.train.targets import check_cells, columns_of, make_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT = ("text", "sentence", "review", "content", "sentence1", "premise", "question")
_PAIR = ("text_pair", "sentence2", "hypothesis")


class Texts(Dataset[tuple[Mapping[str, object], int]]):
    """Texts as token ids, and their labels."""

    def __init__(self, texts: Sequence[tuple[str, str | None]], labels: Sequence[int], tokens: Tokens) -> None:
        self.texts, self.labels, self.tokens = list(texts), list(labels), tokens

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Mapping[str, object], int]:
        return self.tokens.of(*self.texts[index]), self.labels[index]


class Tokens:
    """A tokenizer and how it is used.

    Args:
        tokenizer: of transformers.
        inputs: the arrays that the model takes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, inputs: Sequence[str]) -> None:
        self.tokenizer, self.max_length, self.inputs = tokenizer, max_length, tuple(inputs)

    def of(self, text: str, pair: str | None = None) -> Mapping[str, object]:
        """The arrays of one text."""
        found = self.tokenizer(text, pair, truncation=True, max_length=self.max_length)
        return {name: found[name] for name in self.inputs}

    def batch(self, samples: list[object], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Samples of `Texts` as a batch, padded to the longest, or to a length that none exceeds."""
        pairs = cast("list[tuple[dict[str, list[int]], int]]", samples)
        arrays = [found for found, _ in pairs]
        if length is None:
            padded = self.tokenizer.pad(arrays, return_tensors="pt")
        else:
            padded = self.tokenizer.pad(arrays, padding="max_length", max_length=length, return_tensors="pt")
        return {name: padded[name] for name in self.inputs}, torch.tensor([label for _, label in pairs])


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder.

    Raises:
        UtcError: transformers is not installed, there is no such folder or no tokenizer in it, or it cannot pad.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UtcError(
            "texts need the package transformers",
            why=str(error),
            fix="pip install 'utcompile[hf]'",
            code="train/needs",
        ) from error
    if not Path(folder).is_dir():
        raise UtcError(
            "there is no folder with this tokenizer",
            where=str(folder),
            fix="give a local folder with tokenizer.json or vocab.txt: --tokenizer DIR",
            code="data/tokenizer",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises whatever a file makes it raise
        raise UtcError(
            "the tokenizer cannot be read",
            where=str(folder),
            why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            fix="give a folder that `tokenizer.save_pretrained` wrote",
            code="data/tokenizer",
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UtcError(
                "the tokenizer has no token to pad with",
                where=str(folder),
                fix="set tokenizer.pad_token and save it",
                code="data/tokenizer",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_texts(
    tables: tuple[Table, Table | None],
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    max_length: int,
    input_column: str | None,
    label_columns: Sequence[str],
    skip_bad: bool,
    inputs: Sequence[str] | None = None,
    measured: bool = False,
) -> Data:
    """Make data of tables of texts and labels; a column `text_pair` has second texts.

    Args:
        inputs: the arrays that the model takes; all that the tokenizer makes by default.

    Raises:
        UtcError: a column, a text or a label is missing, or labels do not fit.
    """
    train, held = tables
    column = train.column(input_column, _TEXT, "input")
    pair = next((name for name in _PAIR if name in train.columns and name != column), None)
    labels = columns_of(train, "text", label_columns, (column,))
    keep = _usable(train, column, labels, skip_bad)
    keep_held = [] if held is None else _usable(held, column, labels, skip_bad)
    found = make_targets("text", train, held, labels, keep, keep_held, seed, measured=measured)
    made = list(inputs or tokenizer("a").keys())
    tokens = Tokens(tokenizer, max_length, made)
    trained = [_texts(train, i, column, pair) for i in found.rows]
    others = [_texts(held or train, i, column, pair) for i in found.held_rows]
    how = {"kind": "text", "tokenizer": "tokenizer", "max_length": max_length, "inputs": made, "pair": pair is not None}
    return Data(
        Texts(trained, [int(label) for label in found.train], tokens),
        Texts(others, [int(label) for label in found.held], tokens),
        len(found.names),
        found.names,
        "text",
        tokens.batch,
        found.counts,
        drawn=held is None,
        preprocessing=how,
    )


def _texts(table: Table, index: int, column: str, pair: str | None) -> tuple[str, str | None]:
    row = table.rows[index]
    return str(row[column]), None if pair is None else str(row.get(pair) or "")


def _usable(table: Table, column: str, labels: Sequence[str], skip_bad: bool) -> list[int]:
    bad = {sample.index: sample for sample in check_cells(table, labels, "text")}
    for index, row in enumerate(table.rows):
        if index not in bad and (is_missing(row.get(column)) or not isinstance(row[column], str)):
            bad[index] = Bad(index, table.places[index], f"the {column} is missing or is no text")
    refuse([bad[i] for i in sorted(bad)], len(table.rows), skip=skip_bad)
    return [i for i in range(len(table.rows)) if i not in bad]

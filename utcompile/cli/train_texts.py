"""Whether a tokenizer fits a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utcompile.errors import UtcError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from utcompile.train import Data


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer that gives another number to a token of the model's own tokenizer, where it has one.

    Raises:
        UtcError: as above.
    """
    from utcompile.train.texts import read_tokenizer

    try:
        own: dict[str, int] = read_tokenizer(folder).get_vocab()
    except UtcError:  # the model has none
        return
    given: dict[str, int] = tokenizer.get_vocab()
    changed = [token for token, number in own.items() if given.get(token) != number]
    if changed:
        token = min(changed, key=own.__getitem__)
        number = given.get(token)
        has = "no such token" if number is None else f"number {number}"
        why = f"{len(changed):,} of {len(own):,} tokens differ: {token!r} is number {own[token]} there, here {has}"
        raise _other(why, str(folder))


def _other(why: str, where: str) -> UtcError:
    return UtcError(
        "the tokenizer does not fit the model",
        where=where,
        why=why,
        fix="give the tokenizer that the model was trained with: --tokenizer DIR; an hf: model's own is the default",
        code="data/tokenizer",
    )


def fitted(data: Data, model: nn.Module, tokenizer: PreTrainedTokenizerBase, spec: str) -> Data:
    """The data with those arrays that the model's forward takes.

    Raises:
        UtcError: the tokenizer has more tokens than the model has embeddings, longer texts than it has positions, or
            the model takes none of its arrays.
    """
    import inspect
    from dataclasses import replace

    from torch import nn

    embed: Any = getattr(model, "get_input_embeddings", lambda: None)()
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    most = getattr(embed, "num_embeddings", max(rows, default=None))
    if most is not None and len(tokenizer) > most:
        raise _other(f"it has {len(tokenizer):,} tokens, the model embeddings for {most:,}", spec)
    limit, length = (
        getattr(getattr(model, "config", None), "max_position_embeddings", None),
        data.preprocessing["max_length"],
    )
    if isinstance(limit, int) and isinstance(length, int) and 0 < limit < length:
        raise UtcError(
            f"texts of {length} tokens are too long for the model",
            where=spec,
            why=f"it has {limit} positions",
            fix=f"give max_length={limit} or less",
            code="data/tokenizer",
        )
    taken = inspect.signature(model.forward).parameters
    made: Any = data.preprocessing["inputs"]
    names = [name for name in made if name in taken]
    if not names:
        raise UtcError(
            "the model takes none of the tokenizer's arrays",
            where=spec,
            why=f"the tokenizer makes {', '.join(made)}, forward takes {', '.join(taken)}",
            fix="name the parameters of forward as the tokenizer names its arrays",
            code="data/tokenizer",
        )
    data.train.tokens.inputs = tuple(names)  # type: ignore[attr-defined]  # one object for both datasets
    return replace(data, preprocessing={**data.preprocessing, "inputs": names})

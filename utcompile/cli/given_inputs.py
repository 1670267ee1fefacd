"""Example inputs that a user gives: `--example`, or sizes with `--input`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utcompile.cli.options import shapes_of
from utcompile.cli.run_example import example_of
from utcompile.cli.user_code import called, function_of
from utcompile.errors import UtcError

Inputs = dict[str, Tensor] | tuple[Any, ...]


def read_example(source: str) -> Inputs:
    """Inputs of a model: the arrays of an `.npz` file by name, or what `file.py:function` returns.

    An array named `arr_0`, as `np.savez(path, x)` writes it, is given by position.

    Raises:
        UtcError: there is no such file or function, or it gives no tensors.
    """
    if source.endswith(".npz"):
        return _arrays(Path(source))
    made: Any = called(function_of(source, "example"), source, "example function")
    if isinstance(made, Tensor):
        return (made,)
    if isinstance(made, Mapping) and made:
        return dict(made)
    if isinstance(made, (tuple, list)) and made:
        return tuple(made)
    raise UtcError(
        f"the example function returned a {type(made).__name__}",
        where=source,
        fix="return a tensor, a tuple of tensors, or a dict of tensors by the names of forward's parameters",
        code="capture/inputs",
    )


def _arrays(path: Path) -> Inputs:
    import numpy as np

    if not path.is_file():
        raise UtcError("there is no such file of example inputs", where=str(path), code="path/invalid")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UtcError(
            "the example inputs cannot be read",
            where=str(path),
            why=str(error).partition("\n")[0],
            fix="write arrays of numbers with np.savez(path, input_ids=…)",
            code="data/damaged",
        ) from error
    if not arrays:
        raise UtcError("the file contains no array", where=str(path), code="data/damaged")
    if all(name.startswith("arr_") for name in arrays):
        return tuple(arrays.values())
    return arrays


def sized_inputs(sizes: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Inputs of stated sizes: `input_ids=2,16`, `x=2,3,64,64:float16`; whole numbers for ids and masks.

    Raises:
        UtcError: a text is no name with sizes.
    """
    return example_of(shapes_of(sizes), seed, "--input")

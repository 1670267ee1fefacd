"""`OnnxModel`: an ONNX file as a function of arrays, with its sizes checked and its tasks chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from utcompile.deploy.axes import BATCH, Axis
from utcompile.deploy.metadata import read
from utcompile.deploy.relations import holds
from utcompile.deploy.runtime import run, session
from utcompile.deploy.structure import leaves
from utcompile.errors import UtcError, did_you_mean
from utcompile.files import path_of

Array = np.ndarray
Arrays = dict[str, Array]


class OnnxModel:
    """An exported file, ready to be called.

    Args:
        path: the file that `export_onnx` wrote.
        threads: threads within an operation. None: one per physical core.
        providers: execution providers of ONNX Runtime, in order of preference.

    Attributes:
        facts: what the file says of itself (`utcompile.deploy.metadata.KEYS`).
        axes: the sizes that vary, with their bounds.
        labels: the names of the classes; empty where the file has none.

    Example:
        >>> import tempfile, utcompile as utc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = utc.export_onnx(torch.nn.Linear(4, 2), f"{folder}/m.onnx", torch.ones(1, 4))
        ...     utc.OnnxModel(f"{folder}/m.onnx")(torch.ones(5, 4)).shape
        (5, 2)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.path = path_of(path, "path")
        self.session = session(self.path, threads, providers=providers)
        self.facts = read(self.session.get_modelmeta().custom_metadata_map)
        self.axes = tuple(_axes_of(self.facts.get("axes"), str(self.path)))
        labels = self.facts.get("labels")
        self.labels: tuple[str, ...] = tuple(map(str, labels)) if isinstance(labels, list) else ()
        self.input_names = tuple(entry.name for entry in self.session.get_inputs())
        self.output_names = tuple(entry.name for entry in self.session.get_outputs())

    def __call__(self, *inputs: object, **named: object) -> Array | Arrays:
        """Run the file.

        Args:
            inputs: tensors or arrays in the order of the file's inputs; tuples and mappings of them are opened.
            named: inputs by name.

        Returns:
            The output as an array; several outputs as a mapping by name.

        Raises:
            UtcError: an input is missing, unknown or of a wrong shape or dtype, or a size is out of bounds.
        """
        return self._result(self.run(self.feeds(inputs, named)))

    def _result(self, outputs: Arrays) -> Array | Arrays:
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def feeds(self, inputs: Sequence[object], named: Mapping[str, object]) -> dict[str, Tensor]:
        """Arguments of a call as the file's inputs by name, checked."""
        given = [leaf for _, leaf in leaves(tuple(inputs))]
        free = [name for name in self.input_names if name not in named]
        if len(given) > len(free):
            raise UtcError(
                f"{len(given)} inputs for a file that takes {', '.join(free) or 'none'}",
                where=str(self.path),
                code="onnx/inputs",
            )
        found = dict(zip(free, given, strict=False)) | dict(named)
        feeds = {name: as_tensor(value, name) for name, value in found.items()}
        self.check(feeds)
        return feeds

    def run(self, feeds: Mapping[str, Tensor]) -> Arrays:
        """Run the session on inputs by name."""
        return run(self.session, feeds)

    def sizes(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        """The size of each axis in a call.

        Raises:
            UtcError: two inputs differ in an axis that they share.
        """
        found: dict[str, int] = {}
        for entry in self.session.get_inputs():
            if entry.name not in feeds:
                continue
            for axis, size in zip(entry.shape, feeds[entry.name].shape, strict=False):
                if isinstance(axis, str) and found.setdefault(axis, size) != size:
                    raise UtcError(
                        f"{axis} is {found[axis]} in one input and {size} in {entry.name!r}",
                        where=str(self.path),
                        fix=f"give all inputs one {axis}",
                        code="onnx/inputs",
                    )
        return found

    def check(self, feeds: Mapping[str, Tensor]) -> None:
        """Raise where sizes are out of the bounds, or do not meet the guards, for which the file was proven right."""
        for name in feeds:
            if name not in self.input_names:
                raise UtcError(
                    f"the ONNX file has no input {name!r}",
                    where=str(self.path),
                    fix=did_you_mean(name, self.input_names),
                    code="onnx/inputs",
                )
        sizes = self.sizes(feeds)
        for axis in self.axes:
            size = sizes.get(axis.name, axis.low)
            if size < axis.low or (axis.high is not None and size > axis.high) or (size - axis.low) % axis.step:
                raise self._refusal(f"{axis.name} is {size}", f"the file is right for {axis}")
        guards = self.facts.get("guards")
        for guard in guards if isinstance(guards, list) else ():
            if holds(str(guard), sizes) is False:
                shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
                raise self._refusal(f"the call has {shown}", f"the file is right for {guard}")

    def _refusal(self, what: str, why: str) -> UtcError:
        fix = "give inputs of such sizes, or export a model that was captured with yours"
        return UtcError(what, where=str(self.path), why=why, fix=fix, code="onnx/inputs")

    def batch_of(self, feeds: Mapping[str, Tensor]) -> int:
        """The number of samples in a call."""
        return self.sizes(feeds).get(BATCH, 1)

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r}: ({', '.join(self.input_names)}) -> ({', '.join(self.output_names)}))"


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor, an array, or a nested list of numbers as a tensor."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise UtcError(
            f"input {name!r} is a {type(value).__name__}",
            why=str(error),
            fix="give a tensor, an array, or numbers in lists",
            code="onnx/inputs",
        ) from error


def _axes_of(entries: object, where: str) -> list[Axis]:
    """The axes in a file's metadata, which anybody may have written."""
    found = []
    for entry in entries if isinstance(entries, list) else ():
        one = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        sizes = [one.get(key) for key in ("min", "max", "step")]
        is_whole = all(type(n) is int and n > 0 for n in (sizes[0], sizes[2], 1 if sizes[1] is None else sizes[1]))
        if not isinstance(one.get("name"), str) or not is_whole:
            raise UtcError(
                "the metadata of the file is damaged", where=where, why=f"an axis is {entry!r:.80}", code="onnx/file"
            )
        low, high, step = cast("tuple[int, int | None, int]", tuple(sizes))
        found.append(Axis(one["name"], low, low, high, step))
    return found

"""Inputs from files and texts, and the classes that a file or a run finds in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utcompile.errors import UtcError, did_you_mean

_BATCH = 16
_TRANSFORM = ("mean", "std", "interpolation", "crop_pct")
_ARRAYS = (".npz", ".npy")
Feeds = dict[str, Tensor]
Ranked = list[tuple[str, float]]


@dataclass(frozen=True)
class Predictor:
    """Something that gives logits.

    Attributes:
        where: for messages.
        names: of its inputs.
        logits: of inputs by name, `(B, classes)`.
        labels: the names of the classes; empty: they are numbered.
        preprocessing: how an image or a text becomes an input.
        batch: the largest batch of a call.
    """

    where: str
    names: tuple[str, ...]
    logits: Callable[[Feeds], np.ndarray]
    labels: tuple[str, ...]
    preprocessing: Mapping[str, object]
    batch: int = _BATCH

    def ranked(self, inputs: Sequence[str], top: int) -> Iterator[tuple[str, Ranked]]:
        """For each sample its name, and its most likely classes with their probabilities."""
        for names, feeds in self._batches(inputs):
            logits = self.logits(feeds)
            if logits.ndim != 2 or len(logits) != len(names):
                raise UtcError(
                    f"the first output is of shape {logits.shape}, and no logits per sample",
                    where=self.where,
                    fix="call the model in Python: utc.OnnxModel",
                    code="onnx/inputs",
                )
            for name, row in zip(names, logits, strict=True):
                yield name, self._top(row, top)

    def _top(self, row: np.ndarray, top: int) -> Ranked:
        powers = np.exp(row.astype(np.float64) - row.max())
        shares = powers / powers.sum()
        best = np.argsort(-shares, kind="stable")[:top]
        return [(self.labels[i] if i < len(self.labels) else str(i), float(shares[i])) for i in best]

    def _batches(self, inputs: Sequence[str]) -> Iterator[tuple[list[str], Feeds]]:
        arrays = [text for text in inputs if Path(text).suffix in _ARRAYS]
        for text in arrays:
            yield from self._of_arrays(Path(text))
        others = [text for text in inputs if text not in arrays]
        is_text = "tokenizer" in self.preprocessing
        make = self._texts if is_text else self._images
        others = [line for text in others for line in _lines(text)] if is_text else others
        for start in range(0, len(others), self.batch):
            chunk = others[start : start + self.batch]
            yield chunk, make(chunk)

    def _of_arrays(self, path: Path) -> Iterator[tuple[list[str], Feeds]]:
        found = read_arrays(path)
        if len(self.names) == 1 and len(found) == 1:
            found = {self.names[0]: next(iter(found.values()))}
        if wrong := sorted(found.keys() ^ set(self.names)):
            raise UtcError(
                f"the arrays are {', '.join(found)}, and the model takes {', '.join(self.names)}",
                where=str(path),
                fix=did_you_mean(wrong[0], self.names),
                code="onnx/inputs",
            )
        count = len(next(iter(found.values())))
        if any(len(value) != count for value in found.values()):
            raise UtcError("the arrays have different numbers of samples", where=str(path), code="onnx/inputs")
        for start in range(0, count, self.batch):
            rows = range(start, min(start + self.batch, count))
            yield (
                [f"{path}[{row}]" for row in rows],
                {name: torch.from_numpy(value[start : start + self.batch]) for name, value in found.items()},
            )

    def _images(self, paths: Sequence[str]) -> Feeds:
        if len(self.names) != 1:
            raise UtcError(
                f"the model takes {', '.join(self.names)}, and an image is one input",
                where=self.where,
                fix="give an .npz file with these arrays; for texts, export with preprocessing={'tokenizer': …}",
                code="onnx/inputs",
            )
        transform, mode = image_transform(self.preprocessing, self.where)
        return {self.names[0]: torch.stack([transform(open_image(path, mode)) for path in paths])}

    def _texts(self, texts: Sequence[str]) -> Feeds:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise UtcError(
                "texts need the package transformers", fix="pip install transformers", code="onnx/inputs"
            ) from error
        name = str(self.preprocessing["tokenizer"])
        near = Path(self.where).absolute()
        near = (near if near.is_dir() else near.parent) / name
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(near) if near.is_dir() else name, local_files_only=True)
        except Exception as error:  # whatever a library says of what it cannot find
            raise UtcError(
                f"the tokenizer {name!r} cannot be loaded",
                where=self.where,
                why=str(error).partition("\n")[0],
                fix="put its files into a folder of this name next to the ONNX file",
                code="onnx/inputs",
            ) from error
        most = self.preprocessing.get("max_length")
        found = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=most)
        return {key: found[key] for key in self.names if key in found}


def _lines(text: str) -> list[str]:
    """A text; of a `.txt` file, its lines."""
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        is_file = False
    if not is_file:
        return [text]
    if path.suffix != ".txt":
        raise UtcError(
            "a text is needed, and this is a file",
            where=text,
            fix="give the texts themselves, or a .txt file with one text per line; `utcompile evaluate` reads tables",
            code="onnx/inputs",
        )
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; no pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {"x": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except AttributeError:  # an .npy is an array, which is no context
        return {"x": np.load(path, allow_pickle=False)}
    except (OSError, ValueError, EOFError) as error:
        raise UtcError(
            "the file of arrays cannot be read", where=str(path), why=str(error).partition("\n")[0], code="data/damaged"
        ) from error


def open_image(path: str, mode: str) -> object:
    """An image file's pixels."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UtcError(
            "there is no such file, or it is no image",
            where=path,
            why=str(error).partition("\n")[0],
            code="data/damaged",
        ) from error


def image_transform(how: Mapping[str, object], where: str) -> tuple[Callable[[object], Tensor], str]:
    """What makes an input of an image, and the image's mode."""
    from timm.data import create_transform

    size = how.get("input_size") or how.get("size")
    if not isinstance(size, (list, tuple)) or not all(isinstance(n, int) and n > 0 for n in size) or len(size) != 3:
        raise UtcError(
            "nothing is stored of how an image becomes an input",
            where=where,
            fix="export with preprocessing={'input_size': [3, 224, 224], 'mean': […], 'std': […], …}",
            code="onnx/inputs",
        )
    options: dict[str, Any] = {
        key: how[key] for key in ("mean", "std", "interpolation", "crop_pct") if how.get(key) is not None
    }
    try:
        made = create_transform(tuple(size), is_training=False, **options)
    except Exception as error:  # the values are of a file that anybody may have written
        raise UtcError(
            "the stored preprocessing is malformed", where=where, why=str(error), code="onnx/inputs"
        ) from error
    return made, "RGB" if size[0] == 3 else "L"


def predictor_of(
    source: Path,
    task: str | None,
    providers: Sequence[str],
    model: str | None,
    weights: Path | None,
    trust: bool,
) -> Predictor:
    """The predictor of an ONNX file or a run's folder."""
    return _of_run(source, task, model, weights, trust) if source.is_dir() else _of_file(source, task, providers)


def _of_file(path: Path, task: str | None, providers: Sequence[str]) -> Predictor:
    from utcompile.deploy import OnnxModel
    from utcompile.deploy.axes import BATCH

    opened = OnnxModel(path, providers=providers)
    if task is not None and task not in opened.tasks:
        raise UtcError(
            f"there is no task {task!r}", where=str(path), fix=did_you_mean(task, opened.tasks), code="export/tasks"
        )
    most = next((axis.high for axis in opened.axes if axis.name == BATCH and axis.high), _BATCH)
    found = opened.facts.get("preprocessing")

    def logits(feeds: Feeds) -> np.ndarray:
        opened.check(feeds)
        return next(iter(opened.run_task(feeds, task).values()))

    how = found if isinstance(found, dict) else {}
    return Predictor(str(path), opened.input_names, logits, opened.labels_of(task), how, min(most, _BATCH))


def _of_run(folder: Path, task: str | None, model: str | None, weights: Path | None, trust: bool) -> Predictor:
    from utcompile.cli.run_facts import labels_of, preprocessing_of
    from utcompile.cli.runs import open_run

    if task is not None:
        raise UtcError("a run is one task", where=str(folder), fix="leave --task out", code="export/tasks")
    opened = open_run(folder, model, weights, trust)
    names = tuple(opened.manifest.get("inputs") or ("x",))

    def logits(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            result = opened.tuned(**feeds) if opened.manifest.get("inputs") else opened.tuned(*feeds.values())
        found = result if isinstance(result, Tensor) else next(iter(dict(result).values()))
        return np.asarray(found.float().numpy())

    return Predictor(str(folder), names, logits, tuple(labels_of(opened) or ()), preprocessing_of(folder, opened))

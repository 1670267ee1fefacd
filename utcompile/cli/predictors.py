"""Inputs from files and texts, and the classes that a file or a run finds in them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utcompile.errors import UtcError, did_you_mean
from utcompile.plain_data import Keywords
from utcompile.train.dataset import Preprocessing
from utcompile.train.masks import resized
from utcompile.train.pictures import FAILURES, read_picture, reason_of

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
        outputs: what they mean: the task, and `mean` and `std` of numbers; empty where that is not known.
    """

    where: str
    names: tuple[str, ...]
    logits: Callable[[Feeds], np.ndarray]
    labels: tuple[str, ...]
    preprocessing: Mapping[str, object]
    batch: int = _BATCH
    outputs: Mapping[str, object] = field(default_factory=dict)

    def ranked(self, inputs: Sequence[str], top: int) -> Iterator[tuple[str, Ranked]]:
        """For each sample its name, and its most likely classes with their probabilities."""
        for names, feeds in self.batches(inputs):
            logits = self.logits(feeds)
            self._check(names, logits)
            for name, row in zip(names, logits, strict=True):
                yield name, self._top(row, top)

    def _check(self, names: Sequence[str], logits: np.ndarray) -> None:
        """Raise where outputs are no logits of classes, of which one is the most likely."""
        what = None
        if logits.ndim != 2 or len(logits) != len(names):
            what = f"the first output is of shape {logits.shape}, and no logits per sample"
        elif logits.shape[1] < 2:
            what = "the first output is one number per sample, and not one per class"
        elif np.isnan(logits).any():
            what = f"the first output contains nan for {names[int(np.isnan(logits).any(1).argmax())]}"
        if what is not None:
            raise UtcError(what, where=self.where, fix="call the model in Python: utc.OnnxModel", code="onnx/inputs")

    def _top(self, row: np.ndarray, top: int) -> Ranked:
        wide = row.astype(np.float64)
        powers = np.exp(wide - wide.max())
        shares = powers / powers.sum()
        if self.outputs.get("task") == "multilabel":  # any number of labels is right
            shares = np.exp(-np.logaddexp(0, -wide))
        best = np.argsort(-shares, kind="stable")[:top]
        return [(self.labels[i] if i < len(self.labels) else str(i), float(shares[i])) for i in best]

    def batches(self, inputs: Sequence[str]) -> Iterator[tuple[list[str], Feeds]]:
        """The names of samples and their inputs, a batch at a time."""
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
                f"the arrays are {', '.join(found) or 'none'}, and the model takes {', '.join(self.names)}",
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
        with path.open("rb") as file:  # numpy leaves a damaged one open
            loaded = np.load(file, allow_pickle=False)
            is_one = isinstance(loaded, np.ndarray)
            found = {"x": loaded} if is_one else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UtcError(
            "the file of arrays cannot be read", where=str(path), why=str(error).partition("\n")[0], code="data/damaged"
        ) from error
    for name, array in found.items():
        if array.dtype.kind not in "biufc" or not array.ndim:
            raise UtcError(
                f"the array {name!r} is " + (f"of {array.dtype}" if array.ndim else "one number"),
                where=str(path),
                fix="give arrays of numbers, with one row per sample",
                code="onnx/inputs",
            )
    return {name: array.astype(array.dtype.newbyteorder("=")) for name, array in found.items()}


def open_image(path: str, mode: str) -> object:
    """An image file's pixels, as training reads them."""
    try:
        return read_picture(Path(path), mode)
    except FAILURES as error:
        raise UtcError(
            "there is no such file, or it is no image", where=path, why=reason_of(error), code="data/damaged"
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
    options: Keywords = {
        key: how[key] for key in ("mean", "std", "interpolation", "crop_pct") if how.get(key) is not None
    }
    try:
        made = create_transform(tuple(size), is_training=False, **options)
        if how.get("resize") == "squash":
            made = partial(resized, how=Preprocessing(tuple(size), **options))
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

    def logits(feeds: Feeds) -> np.ndarray:
        opened.check(feeds)
        return next(iter(opened.run_task(feeds, task).values()))

    how, meant = opened.preprocessing_of(task), opened.outputs_of(task)
    return Predictor(str(path), opened.input_names, logits, opened.labels_of(task), how, min(most, _BATCH), meant)


def _of_run(folder: Path, task: str | None, model: str | None, weights: Path | None, trust: bool) -> Predictor:
    from utcompile.cli.run_facts import labels_of, outputs_of, preprocessing_of
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

    how, labels = preprocessing_of(folder, opened), tuple(labels_of(opened) or ())
    return Predictor(str(folder), names, logits, labels, how, outputs=outputs_of(folder))

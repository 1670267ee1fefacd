"""The files of tasks next to an ONNX file: `NAME.json`, one `NAME.TASK.onnx_adapter` per task, and the builder.

Anybody may have written them, so everything that is read is checked: names, shapes and dtypes of an adapter must be
those of the file's inputs, for ONNX Runtime takes an adapter that lacks some, and computes with the defaults.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utcompile.errors import UtcError, did_you_mean
from utcompile.rewrite.manifest import Hex, read_json

ADAPTER, BUILDER = ".onnx_adapter", ".builder.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")
_MOST_BYTES = 2**32
Dims = list[int | str]
AxisNames = list[str | None]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class LiveInput(_Part):
    """An optional input of the file.

    Attributes:
        shape: sizes; the name of an axis where tasks may have different ones, as `classes`.
        dtype: as numpy names it.
        sources: the tensors of a checkpoint that it is made of.
    """

    shape: Dims
    dtype: str
    sources: list[str]


class Stack(_Part):
    """How a value of a task becomes a row of a stack in the file.

    Attributes:
        live: the value, by its name at the frontier.
        padded, fill: the shape to which a smaller value is padded, and with what; None is -inf.
        taps: a kernel `(out, in, taps)` becomes `(out, taps, in)`.
        perm, shape: of the row, in the end.
    """

    live: str
    shape: list[int]
    perm: list[int] | None = None
    taps: int | None = None
    padded: list[int] | None = None
    fill: float | None = None


class FileSite(_Part):
    """A site, which a run must have too.

    Attributes:
        id, tuner, config: as in the manifest of a run.
        free: the fields of the config in which a task may differ.
        field: of these, the size of the inner axis.
        axes: the tensors of a checkpoint that have it, and which of their dimensions it is.
        results: those on which a fixed factor on the tuner's result is a factor.
    """

    id: str
    tuner: str
    config: dict[str, object]
    free: list[str] = []
    field: str | None = None
    axes: dict[str, int] = {}
    results: list[str] = []


class SavedTask(_Part):
    """A task.

    Attributes:
        name: of the task.
        classes: how many its first head has; None where no head is trained.
        sizes: of each axis in which tasks may differ.
        labels: their names, in order.
        sha256: over the names and values of its inputs.
        run: the same over the tensors of its run.
        file: its adapter, next to the ONNX file; None in a file with rows.
        outputs: what they mean, as `utcompile.outputs` of a file of one task.
        preprocessing: how an image or a text becomes an input, where it is otherwise than the file says.
    """

    name: str
    classes: int | None = None
    sizes: dict[str, int] = {}
    labels: list[str] | None = None
    sha256: Hex
    run: Hex
    file: str | None = None
    outputs: dict[str, object] | None = None
    preprocessing: dict[str, object] | None = None


class TaskFile(_Part):
    """`NAME.json`: all that `OnnxModel` and `add_task` need to know of the tasks.

    Attributes:
        base: the fingerprint of the frozen base.
        sites: which a run must have too.
        parameters: name of a tensor in a checkpoint to the builder's input.
        sizes: without a task, the size of each axis in which tasks may differ.
        widths: those of these axes that lie inside tuners, and are no classes.
        biases: the inputs that are biases of convolutions whose weight is a constant.
        varying: the builder's inputs with such axes, and the name of each one's axis or None per dimension.
        outputs: the same of outputs.
    """

    format: int = Field(ge=1, le=1)
    model: str
    base: Hex
    routing: str
    inputs: dict[str, LiveInput]
    tasks: list[SavedTask]
    sites: list[FileSite]
    parameters: dict[str, str]
    sizes: dict[str, int] = {}
    widths: list[str] = []
    biases: list[str] = []
    varying: dict[str, AxisNames] = {}
    outputs: dict[str, AxisNames] = {}
    stacks: dict[str, Stack] = {}
    preprocessing: dict[str, object] | None = None

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return [task.name for task in self.tasks]

    def heads(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Of the sizes of a task, those of its heads."""
        return {axis: size for axis, size in sizes.items() if axis not in self.widths}

    def sizes_of(self, task: str | None, where: str) -> dict[str, int]:
        """The size of each axis in which tasks may differ, of a task or of the base."""
        return self.sizes if task is None else self.task(task, where).sizes

    def task(self, name: str, where: str) -> SavedTask:
        """A task by name."""
        found = next((task for task in self.tasks if task.name == name), None)
        if found is None:
            raise UtcError(
                f"there is no task {name!r:.80}",
                where=where,
                fix=did_you_mean(str(name), self.names),
                code="export/tasks",
            )
        return found


def other_preprocessing(its: Mapping[str, object], files: Mapping[str, object] | None) -> dict[str, object] | None:
    """The preprocessing of a task, where the file's is another; the tokenizer is that next to the file."""
    shared = {"tokenizer": files["tokenizer"]} if files and "tokenizer" in files and "tokenizer" in its else {}
    whole = {**its, **shared}
    return whole if its and whole != files else None


def beside(path: Path, ending: str) -> Path:
    """A file next to an ONNX file: `pets.onnx` and `.json` are `pets.json`."""
    return path.with_name(path.stem + ending)


def check_not_another(path: Path) -> None:
    """Raise where a file that is no list of tasks, or that of another ONNX file, has the place of the list."""
    file = beside(path, ".json")
    if not file.exists():
        return
    try:
        model = TaskFile.model_validate(json.loads(file.read_bytes())).model
    except (OSError, ValueError, RecursionError):
        model = None
    if model is None or (model != path.name and path.with_name(model).exists()):
        raise UtcError(
            f"{file.name} is there already, and " + (f"belongs to {model}" if model else "is no list of tasks"),
            where=str(file),
            why="the list of a file's tasks has the file's name, and the ending .json",
            fix="give the ONNX file another name, or move this file",
            code="export/tasks",
        )


def check_task_name(name: object, taken: Sequence[str], where: str) -> str:
    """A task's name, which becomes part of a file's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UtcError(
            f"{name!r:.80} is no name of a task",
            where=where,
            fix="use up to 64 letters, digits, _ and -",
            code="export/tasks",
        )
    if name.lower() in {other.lower() for other in taken} | {"builder"}:
        raise UtcError(
            f"there is a task {name!r} already" if name.lower() != "builder" else "no task may be named 'builder'",
            where=where,
            fix="give another name",
            code="export/tasks",
        )
    return name


def digest_of(values: Mapping[str, np.ndarray]) -> str:
    """A hash over the names, shapes and bytes of a task's values."""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        digest.update(f"{name} {value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def version_of(base: str) -> int:
    """The fingerprint of a base as the number that an adapter file has room for."""
    return int(base[:8], 16) & 0x7FFFFFFF


def write_adapter(path: Path, values: Mapping[str, np.ndarray], base: str) -> None:
    """Write a file that ONNX Runtime's `LoraAdapter` loads."""
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(version_of(base))
    adapter.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for name, value in values.items()}
    )
    try:
        adapter.export_adapter(str(path))
    except Exception as error:  # ONNX Runtime's own; a full disk among others
        raise OSError(0, str(error).partition("\n")[0], str(path)) from error


def read_adapter(path: Path, known: TaskFile, task: SavedTask) -> dict[str, np.ndarray]:
    """The values of a task, checked against the inputs of the file.

    Raises:
        UtcError: the file is missing, damaged, of another base or other tasks; or a name, shape or dtype is wrong.
    """
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise UtcError("there is no such adapter file", where=str(path), code="export/tasks")
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))
        # copies: the memory is the adapter's, which ends here
        values = {name: np.array(value.numpy()) for name, value in adapter.get_parameters().items()}
        version = adapter.get_model_version()
    except Exception as error:  # the classes of the extension module are private
        raise UtcError(
            "the adapter file is damaged",
            where=str(path),
            why=str(error).strip().partition("\n")[0],
            fix="write it again: utc.add_task",
            code="export/tasks",
        ) from error
    if version != version_of(known.base):
        raise UtcError(
            "the adapter belongs to another base",
            where=str(path),
            why=f"its model version is {version}, the file's is {version_of(known.base)}",
            code="export/tasks",
        )
    check_values(values, known, str(path))
    if digest_of(values) != task.sha256:
        raise UtcError(
            f"the adapter is not the one of task {task.name!r}",
            where=str(path),
            why="its values have another hash than the task file says",
            fix="write it again: utc.add_task",
            code="export/tasks",
        )
    return values


def check_values(values: Mapping[str, np.ndarray], known: TaskFile, where: str) -> None:
    """Raise where values are not exactly those that the file takes."""
    if wrong := sorted(values.keys() ^ known.inputs.keys()):
        word = "lacks" if wrong[0] in known.inputs else "has, and the file has not,"
        raise UtcError(f"the adapter {word} {wrong[0]!r}", where=where, code="export/tasks")
    found: dict[str, tuple[int, str]] = {}
    for name, value in values.items():
        wanted = known.inputs[name]
        fits = len(wanted.shape) == value.ndim and all(
            isinstance(w, str) or w == have for w, have in zip(wanted.shape, value.shape, strict=True)
        )
        if not fits or str(value.dtype) != wanted.dtype:
            raise UtcError(
                f"{name} is {value.dtype} of shape {list(value.shape)} in the adapter, "
                f"{wanted.dtype} of {wanted.shape} in the file",
                where=where,
                code="export/tasks",
            )
        for axis, size in zip(wanted.shape, value.shape, strict=True):
            if isinstance(axis, str) and found.setdefault(axis, (size, name))[0] != size:
                raise UtcError(
                    f"{axis} is {found[axis][0]} in {found[axis][1]} and {size} in {name}",
                    where=where,
                    code="export/tasks",
                )


def read_task_file(path: Path) -> TaskFile:
    """The tasks of an ONNX file.

    Raises:
        UtcError: there are none, or the file that lists them is damaged.
    """
    file = beside(path, ".json")
    found = read_json(file, "the ONNX file has no list of tasks", "keep the .json file next to the .onnx file")
    try:
        known = TaskFile.model_validate(found)
    except (ValidationError, RecursionError) as error:
        raise UtcError(
            "the list of tasks is damaged",
            where=str(file),
            why=str(error).partition("\n")[2].partition("[")[0].strip()[:200] or None,
            fix="export the file again",
            code="export/tasks",
        ) from error
    for index, task in enumerate(known.tasks):
        check_task_name(task.name, known.names[:index], str(file))
        if task.file is not None and Path(task.file).name != task.file:
            raise UtcError("an adapter lies in another folder", where=str(file), why=task.file, code="export/tasks")
    return known


def task_file_text(known: TaskFile) -> bytes:
    """The text of `NAME.json`."""
    return (json.dumps(known.model_dump(mode="json", exclude_none=True), indent=1) + "\n").encode()

"""`OnnxModel`: an ONNX file as a function of arrays, with its sizes checked and its tasks chosen by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from utcompile.deploy.axes import BATCH, Axis
from utcompile.deploy.blocked import Blocked
from utcompile.deploy.blocked import blocked as open_blocked
from utcompile.deploy.metadata import read
from utcompile.deploy.relations import holds
from utcompile.deploy.runtime import DTYPES, PROVIDERS, run, session, session_options
from utcompile.deploy.structure import leaves
from utcompile.deploy.task_files import read_adapter, read_task_file
from utcompile.errors import UtcError, did_you_mean
from utcompile.files import path_of
from utcompile.plain_data import JsonObject

Array = np.ndarray
Arrays = dict[str, Array]


class OnnxModel:
    """An exported file, ready to be called.

    Args:
        path: the file that `export_onnx` wrote.
        threads: threads within an operation. None: one per physical core.
        providers: execution providers of ONNX Runtime, in order of preference.
        spin: whether idle worker threads spin.
        blocked: whether a CPU computes convolutions whose biases are a task's in ONNX Runtime's fast layout, as the
            base's; the file alone does not (`utcompile.deploy.blocked`). It takes a second session's memory.

    Attributes:
        facts: what the file says of itself (`utcompile.deploy.metadata.KEYS`).
        axes: the sizes that vary, with their bounds.
        labels: the names of the classes; empty where the file has none.
        tasks: the names of the tasks; empty where the file has none. `add_task` may have added some since the export.

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
        spin: bool = True,
        blocked: bool = True,
    ) -> None:
        self.path = path_of(path, "path")
        self.session = session(self.path, threads, providers=providers, spin=spin)
        self.facts = read(self.session.get_modelmeta().custom_metadata_map)
        self.axes = tuple(_axes_of(self.facts.get("axes"), str(self.path)))
        labels = self.facts.get("labels")
        self.labels: tuple[str, ...] = tuple(map(str, labels)) if isinstance(labels, list) else ()
        self._tasks = read_task_file(self.path) if "routing" in self.facts else None
        self._check_tasks()
        self._adapters: dict[str, ort.LoraAdapter] = {}
        self._values: dict[str, Arrays] = {}
        self._blocked = (
            self._in_blocks(threads, spin) if blocked and list(providers[:1]) == [PROVIDERS["cpu"]] else None
        )
        names = tuple(entry.name for entry in self.session.get_inputs())
        self._selector = names[-1] if self.is_by_row else None
        self.input_names = names[:-1] if self.is_by_row else names
        self.output_names = tuple(entry.name for entry in self.session.get_outputs())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self._tasks.names) if self._tasks is not None else ()

    @property
    def is_by_row(self) -> bool:
        """Whether one run of the file computes a batch of several tasks."""
        return self._tasks is not None and self._tasks.routing == "row"

    @property
    def is_blocked(self) -> bool:
        """Whether convolutions whose biases are a task's are computed in ONNX Runtime's fast layout."""
        return self._blocked is not None

    def labels_of(self, task: str | None) -> tuple[str, ...]:
        """The names of a task's classes; empty where its run had none."""
        if task is None or self._tasks is None:
            return self.labels
        return tuple(self._tasks.task(task, str(self.path)).labels or ())

    def outputs_of(self, task: str | None) -> dict[str, object]:
        """What the outputs mean: the task, and `mean` and `std` of numbers; empty where that is not known."""
        its = self._tasks.task(task, str(self.path)).outputs if task is not None and self._tasks is not None else None
        return its or _mapping(self.facts.get("outputs"))

    def preprocessing_of(self, task: str | None) -> dict[str, object]:
        """How an image or a text becomes an input; empty where that is not known."""
        its = None
        if task is not None and self._tasks is not None:
            its = self._tasks.task(task, str(self.path)).preprocessing
        return its or _mapping(self.facts.get("preprocessing"))

    def __call__(self, *inputs: object, task: str | Sequence[str] | None = None, **named: object) -> Array | Arrays:
        """Run the file.

        Args:
            inputs: tensors or arrays in the order of the file's inputs; tuples and mappings of them are opened.
            task: a task's name, or one name per row of the batch. Rows of tasks with fewer classes than others of the
                batch end in -inf. None: the base.
            named: inputs by name.

        Returns:
            The output as an array; several outputs as a mapping by name.

        Raises:
            UtcError: an input is missing, unknown or of a wrong shape or dtype, a size is out of bounds, or there is no
                such task.
        """
        return self._result(self.run_task(self.feeds(inputs, named), task))

    def _result(self, outputs: Arrays) -> Array | Arrays:
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def feeds(self, inputs: Sequence[object], named: Mapping[str, object]) -> dict[str, Tensor]:
        """Arguments of a call as the file's inputs by name, checked."""
        given = [leaf for value in inputs for leaf in _opened(value)]
        free = [name for name in self.input_names if name not in named]
        if len(given) > len(free):
            raise UtcError(
                f"{len(given)} inputs for a file that takes {', '.join(free) or 'none'}",
                where=str(self.path),
                code="onnx/inputs",
            )
        found = dict(zip(free, given, strict=False)) | dict(named)
        kinds = {entry.name: DTYPES.get(entry.type) for entry in self.session.get_inputs()}
        feeds = {name: as_tensor(value, name, kinds.get(name)) for name, value in found.items()}
        self.check(feeds)
        return feeds

    def run_task(self, feeds: Mapping[str, Tensor], task: str | Sequence[str] | None) -> Arrays:
        """Run the session on inputs by name, for a task or one per row."""
        names = self._names(task, feeds)
        if self.is_by_row:
            return self._run_rows(feeds, names if isinstance(names, list) else [names] * self.batch_of(feeds))
        if not isinstance(names, list):
            return self._call(feeds, names)
        groups = {name: [row for row, its in enumerate(names) if its == name] for name in dict.fromkeys(names)}
        parts = {name: self._call(self._rows(feeds, rows), name) for name, rows in groups.items()}
        return {output: self._joined(output, parts, groups, len(names)) for output in self.output_names}

    def _call(self, feeds: Mapping[str, Tensor], name: str | None) -> Arrays:
        """One call for one task."""
        if self._blocked is None:
            return run(self.session, feeds, adapter=self._adapter(name))
        return run(self._blocked.session, feeds, values=self._values_in_blocks(name))

    def _in_blocks(self, threads: int | None, spin: bool) -> Blocked | None:
        if self._tasks is None or self.is_by_row:
            return None
        return open_blocked(self.path, self._tasks.biases, session_options(threads, spin))

    def _values_in_blocks(self, name: str | None) -> Arrays:
        if name is None or self._tasks is None or self._blocked is None:
            return {}
        if name not in self._values:
            task, file = self._tasks.task(name, str(self.path)), self.adapter_of(name)
            assert file is not None
            self._values[name] = self._blocked.values(read_adapter(file, self._tasks, task))
        return self._values[name]

    def _names(self, task: str | Sequence[str] | None, feeds: Mapping[str, Tensor]) -> str | list[str | None] | None:
        """The task of a call, or of each row; checked."""
        if task is None:
            return None
        if not isinstance(task, str) and not isinstance(task, Iterable):
            raise UtcError(
                f"task is a {type(task).__name__}",
                where=str(self.path),
                fix="give a task's name, or one name per row",
                code="arguments/type",
            )
        names = [task] if isinstance(task, str) else list(task)
        for name in names:
            if self._tasks is None:
                raise UtcError(
                    "the ONNX file has no tasks",
                    where=str(self.path),
                    fix="export it with tasks={…}, or leave `task` out",
                    code="export/tasks",
                )
            if name is not None:
                self._tasks.task(name, str(self.path))
        if isinstance(task, str):
            return task
        if len(names) != self.batch_of(feeds):
            raise UtcError(
                f"{len(names)} tasks for a batch of {self.batch_of(feeds)}",
                where=str(self.path),
                fix="give one name per row, or one for all",
                code="export/tasks",
            )
        return list[str | None](names)

    def _adapter(self, name: str | None) -> ort.LoraAdapter | None:
        """A task's adapter, loaded once and kept: ONNX Runtime computes wrongly after it is dropped."""
        if name is None or self._tasks is None:
            return None
        if name not in self._adapters:
            task, file = self._tasks.task(name, str(self.path)), self.adapter_of(name)
            assert file is not None
            read_adapter(file, self._tasks, task)
            adapter = ort.LoraAdapter()
            adapter.Load(str(file))
            self._adapters[name] = adapter
        return self._adapters[name]

    def _check_tasks(self) -> None:
        """Raise where the list of tasks belongs to another file."""
        if self._tasks is None:
            return
        optional = {entry.name for entry in self.session.get_overridable_initializers()}
        if self._tasks.base != self.facts.get("base") or self._tasks.routing != self.facts.get("routing"):
            why = "its base or routing is another one"
        elif self._tasks.routing == "call" and optional != set(self._tasks.inputs):
            why = "its inputs are other ones"
        else:
            return
        raise UtcError(
            "the list of tasks belongs to another ONNX file", where=str(self.path), why=why, code="export/tasks"
        )

    def adapter_of(self, task: str | None) -> Path | None:
        """The adapter file of a task; None without a task, and in a file with rows."""
        if task is None or self._tasks is None or self.is_by_row:
            return None
        return self.path.with_name(str(self._tasks.task(task, str(self.path)).file))

    def whole_feeds(self, feeds: Mapping[str, Tensor], task: str | None) -> dict[str, Tensor]:
        """The inputs of a call and, in a file with rows, the numbers of its task."""
        if self._selector is None:
            return dict(feeds)
        number = 0 if task is None else 1 + self.tasks.index(task)
        return {**feeds, self._selector: torch.full((self.batch_of(feeds),), number, dtype=torch.int64)}

    def _run_rows(self, feeds: Mapping[str, Tensor], names: Sequence[str | None]) -> Arrays:
        assert self._selector is not None
        index = [0 if name is None else 1 + self.tasks.index(name) for name in names]
        outputs = run(self.session, {**feeds, self._selector: torch.tensor(index, dtype=torch.int64)})
        return self._with_their_classes(outputs, names)

    def _with_their_classes(self, outputs: Arrays, names: Sequence[str | None]) -> Arrays:
        """Without the classes that no task of the batch has."""
        known = self._tasks
        assert known is not None
        counts = [known.sizes_of(name, str(self.path)) for name in set(names)]
        most = {axis: max(sizes[axis] for sizes in counts) for axis in known.sizes}
        return {
            name: value[tuple(slice(most.get(axis or "")) for axis in known.outputs.get(name, [None] * value.ndim))]
            for name, value in outputs.items()
        }

    def _rows(self, feeds: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
        """Some rows of the inputs that have a batch."""
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        index = torch.tensor(rows)
        return {
            name: tensor.index_select(shapes[name].index(BATCH), index) if BATCH in shapes[name] else tensor
            for name, tensor in feeds.items()
        }

    def _joined(
        self, output: str, parts: Mapping[str | None, Arrays], groups: Mapping[str | None, list[int]], batch: int
    ) -> Array:
        """The rows of an output in the order of the batch; where tasks have fewer classes, -inf is put behind."""
        shape = next(entry.shape for entry in self.session.get_outputs() if entry.name == output)
        if BATCH not in shape:
            raise UtcError(
                f"output {output!r} has no batch, so tasks per row cannot be put together",
                where=str(self.path),
                fix="call the file once per task",
                code="export/tasks",
            )
        axis = shape.index(BATCH)
        found = {name: np.moveaxis(part[output], axis, 0) for name, part in parts.items()}
        largest = [batch, *(max(sizes) for sizes in zip(*(v.shape[1:] for v in found.values()), strict=True))]
        dtype = next(iter(found.values())).dtype
        whole = np.full(largest, -np.inf if np.issubdtype(dtype, np.floating) else 0, dtype)
        for name, rows in groups.items():
            whole[np.ix_(rows, *(range(size) for size in found[name].shape[1:]))] = found[name]
        return np.moveaxis(whole, 0, axis)

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

    def smallest(self, batch: int | None = None) -> dict[str, Tensor]:
        """Inputs of zeros, of the smallest sizes that the file takes, or at another batch.

        Raises:
            UtcError: the file has another batch, which is fixed; or an input is no tensor of numbers.
        """
        low = {axis.name: axis.low for axis in self.axes} | ({BATCH: batch} if batch else {})
        found = {}
        for entry in self.session.get_inputs():
            if entry.name == self._selector:
                continue
            if entry.type not in DTYPES:
                raise UtcError(
                    f"input {entry.name!r} is a {entry.type}, of which there are no zeros",
                    where=str(self.path),
                    code="onnx/inputs",
                )
            sizes = [size if isinstance(size, int) else low.get(size, 1) for size in entry.shape]
            if batch is not None and not any(BATCH in other.shape for other in self.session.get_inputs()):
                sizes = self._with_batch(entry, sizes, batch)
            found[entry.name] = torch.zeros(sizes, dtype=DTYPES[entry.type])
        return found

    def _with_batch(self, entry: ort.NodeArg, sizes: list[int], batch: int) -> list[int]:
        """Sizes with a batch in front, in a file that another program wrote, or where the batch is fixed."""
        if entry.shape and isinstance(entry.shape[0], int) and entry.shape[0] != batch:
            raise UtcError(
                f"input {entry.name!r} takes no batch of {batch}: it is of shape {tuple(entry.shape)}",
                where=str(self.path),
                fix=f"measure at {entry.shape[0]}",
                code="onnx/inputs",
            )
        return [batch, *sizes[1:]] if sizes else sizes

    def __repr__(self) -> str:
        return f"OnnxModel({str(self.path)!r}: ({', '.join(self.input_names)}) -> ({', '.join(self.output_names)}))"


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def _opened(value: object) -> list[object]:
    """What a nested argument contains; numbers in lists are one array."""
    found = [leaf for _, leaf in leaves(value)]
    return [value] if all(isinstance(leaf, (int, float)) for leaf in found) else found


def as_tensor(value: object, name: str, dtype: torch.dtype | None) -> Tensor:
    """A tensor, an array, or a nested list of numbers as a tensor; numbers in lists get the dtype of the file."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(value)
        found = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        return found if isinstance(value, np.ndarray) or dtype is None else found.to(dtype)
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
        one = cast(JsonObject, entry) if isinstance(entry, dict) else {}
        sizes = [one.get(key) for key in ("min", "max", "step")]
        is_whole = all(type(n) is int and n > 0 for n in (sizes[0], sizes[2], 1 if sizes[1] is None else sizes[1]))
        if not isinstance(one.get("name"), str) or not is_whole:
            raise UtcError(
                "the metadata of the file is damaged", where=where, why=f"an axis is {entry!r:.80}", code="onnx/file"
            )
        low, high, step = cast("tuple[int, int | None, int]", tuple(sizes))
        found.append(Axis(one["name"], low, low, high, step))
    return found

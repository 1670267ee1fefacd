"""`add_task`: one more task for a file that is there, without exporting it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from utcompile.deploy.metadata import PREFIX
from utcompile.deploy.onnx_model import OnnxModel
from utcompile.deploy.publishing import publish
from utcompile.deploy.rows import stacked
from utcompile.deploy.runtime import run
from utcompile.deploy.task_axes import CLASSES, fits, sizes_in
from utcompile.deploy.task_files import (
    ADAPTER,
    BUILDER,
    SavedTask,
    TaskFile,
    beside,
    check_task_name,
    check_values,
    digest_of,
    other_preprocessing,
    read_adapter,
    read_task_file,
    task_file_text,
    write_adapter,
)
from utcompile.deploy.task_values import Builder, arrays_of
from utcompile.deploy.tasks import save_model
from utcompile.deploy.widths import difference, with_the_files_factors
from utcompile.errors import UtcError
from utcompile.files import draft, one_writer, path_of, reported
from utcompile.rewrite import TENSORS
from utcompile.rewrite.manifest import Manifest, load_manifest, read_manifest
from utcompile.rewrite.pair import read_pair
from utcompile.rewrite.run_facts import inputs_of, outputs_of


def add_task(path: str | Path, run: str | Path, name: str | None = None) -> str:
    """Add a run as a task to an ONNX file that was exported with `tasks=`; the model is not needed.

    Args:
        path: the ONNX file; its `.json` and `.builder.onnx` are next to it. With `routing="row"` it is written again.
        run: the run's folder: of the same base, rules and sites; its head may have another number of classes.
        name: of the task. None: the folder's name.

    Returns:
        The task's name.

    Raises:
        UtcError: the run does not fit, or there is a task of that name. The files are then as they were.
    """
    path, folder = path_of(path, "path"), path_of(run, "run")
    if not path.is_file():
        raise UtcError("there is no such ONNX file", where=str(path), code="onnx/file")
    with reported("the task cannot be written", path), one_writer(path.parent):
        return _added(path, folder, name)


def _added(path: Path, folder: Path, name: str | None) -> str:
    known = read_task_file(path)
    name = check_task_name(folder.resolve().name if name is None else name, known.names, str(path))
    tensors, labels = _read_run(folder, known)
    builder = Builder(str(beside(path, BUILDER)))
    if wrong := set(builder.inputs) - set(known.parameters.values()):
        raise UtcError(
            "the builder belongs to another file", where=str(path), why=f"it takes {min(wrong)}", code="export/tasks"
        )
    named = {known.parameters[key]: tensor for key, tensor in tensors.items()}
    values = builder(named)
    check_values(values, known, str(folder))
    sizes = sizes_in(known.varying, named)
    task = SavedTask(
        name=name,
        classes=sizes.get(CLASSES),
        sizes=sizes,
        labels=labels if labels is not None and fits(labels, known.heads(sizes)) else None,
        sha256=digest_of(values),
        run=digest_of(arrays_of(named)),
        file=beside(path, f".{name}{ADAPTER}").name if known.routing == "call" else None,
        outputs=outputs_of(folder) or None,
        preprocessing=other_preprocessing(inputs_of(folder), known.preprocessing),
    )
    more = known.model_copy(update={"tasks": [*known.tasks, task]})
    with draft(path.parent) as drafts:
        if known.routing == "call":
            write_adapter(drafts / str(task.file), values, known.base)
        else:
            _extend(path, drafts / path.name, more, values)
        (drafts / beside(path, ".json").name).write_bytes(task_file_text(more))
        _try_out(path, drafts, more, task)
        # the list last: until then, the file has the tasks that it had
        publish(drafts, path, last=beside(path, ".json").name)
    return name


def _read_run(run: Path, known: TaskFile) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """A run's tensors, checked against the sites and tensors of a file, and the names of its classes."""
    manifest = load_manifest(run)
    if not isinstance(manifest, Manifest):
        raise UtcError(
            "the run is of format 1, which does not say enough of its base",
            where=str(run),
            fix="load it and save it again: utc.load_tuners, utc.save_tuners",
            code="checkpoint/format",
        )
    tensors, _ = read_pair(run, TENSORS, lambda: _identity(run))
    if manifest.base.fingerprint != known.base:
        raise UtcError(
            "the run was trained on another base",
            where=str(run),
            why=f"fingerprint {manifest.base.fingerprint[:12]}…, the file's is {known.base[:12]}…",
            fix="export a file of that base",
            code="checkpoint/other-base",
        )
    theirs, mine = {site.id: site for site in manifest.sites}, {site.id: site for site in known.sites}
    first = next(iter(sorted(theirs.keys() ^ mine)), None) or min(
        tensors.keys() ^ known.parameters.keys(), default=None
    )
    why = f"the first that differs is {first}" if first is not None else None
    for key in sorted(mine) if why is None else ():
        found = difference(mine[key], theirs[key].tuner, theirs[key].config)
        why = why or (found and f"{key}: {found}")
    if why is not None:
        raise UtcError(
            "the run has other rules or sites than the file",
            where=str(run),
            why=why,
            fix="export another file for runs of these rules",
            code="checkpoint/other-sites",
        )
    tensors = with_the_files_factors(tensors, known.sites, {site.id: site.config for site in manifest.sites}, str(run))
    labels = read_manifest(run).get("classes")
    return tensors, [str(label) for label in labels] if isinstance(labels, list) else None


def _identity(run: Path) -> str | None:
    manifest = load_manifest(run)
    return manifest.identity if isinstance(manifest, Manifest) else None


def _extend(path: Path, target: Path, known: TaskFile, values: Mapping[str, np.ndarray]) -> None:
    """The file with one more row in each stack."""
    model = ir.load(path)
    for name, stack in known.stacks.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise UtcError("the list of tasks belongs to another ONNX file", where=str(path), code="export/tasks")
        room = stack.padded or list(values[stack.live].shape)
        axes = known.inputs[stack.live].shape
        for axis, size, most in zip(axes, values[stack.live].shape, room, strict=True):
            if size > most:
                word = f"a larger {axis}" if axis in known.widths else "more classes"
                raise UtcError(
                    f"the task has {word} than the file has room for: {most}",
                    where=str(path),
                    fix="export the file again with this task among `tasks=`",
                    code="export/tasks",
                )
        exact = stacked(stack, [values[stack.live]])
        with np.errstate(over="ignore"):
            row = exact.astype(value.const_value.numpy().dtype)
        if not np.array_equal(np.isfinite(row), np.isfinite(exact)):
            raise UtcError(
                f"{stack.live} of the task does not fit in float16",
                where=str(path),
                why=f"the file stores it in float16, and its largest value is {np.abs(exact).max():.3g}",
                fix="export the file again with this task among `tasks=`, or with dtype='float32'",
                code="export/tasks",
            )
        longer = np.concatenate([value.const_value.numpy(), row])
        value.const_value, value.shape = ir.tensor(longer, name=name), ir.Shape(longer.shape)
    tasks = [task.model_dump(mode="json", exclude_none=True) for task in known.tasks]
    model.metadata_props[f"{PREFIX}tasks"] = json.dumps(tasks)
    save_model(model, target)


def _try_out(path: Path, folder: Path, known: TaskFile, task: SavedTask) -> None:
    """Load what was written, as a user will, and compute once with it."""
    if known.routing == "row":
        model = OnnxModel(folder / path.name)
        model.run_task(model.smallest(), task.name)
        return
    model = OnnxModel(path)
    read_adapter(folder / str(task.file), known, task)
    adapter = ort.LoraAdapter()
    adapter.Load(str(folder / str(task.file)))
    run(model.session, model.smallest(), adapter=adapter)

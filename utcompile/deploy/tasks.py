"""One ONNX file for many tasks: the backbone once, and each task's tuners and head as inputs with defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from utcompile.deploy.axes import BATCH, bounded, guards_in_words
from utcompile.deploy.batch_norms import fold_into_convolutions
from utcompile.deploy.call import Call, ExampleInputs, as_shipped
from utcompile.deploy.clean import clean
from utcompile.deploy.frontier import Live, cut, set_defaults, without_reader
from utcompile.deploy.half import store_in_half
from utcompile.deploy.live_convolutions import biases_of_convolutions, slow_parts
from utcompile.deploy.live_shapes import declare, shapes_of
from utcompile.deploy.metadata import facts_of, written
from utcompile.deploy.onnx_model import OnnxModel
from utcompile.deploy.parity import ParityReport, check_batch_sizes
from utcompile.deploy.references import references, refined, trace_sizes
from utcompile.deploy.task_axes import CLASSES, Varying, axes_in, fits, heads_of, outputs_along, sizes_in
from utcompile.deploy.task_files import (
    ADAPTER,
    BUILDER,
    LiveInput,
    SavedTask,
    TaskFile,
    beside,
    check_not_another,
    check_task_name,
    digest_of,
    other_preprocessing,
    read_task_file,
    task_file_text,
    write_adapter,
)
from utcompile.deploy.task_proofs import prove_tasks
from utcompile.deploy.task_values import (
    Builder,
    Swapped,
    Values,
    arrays_of,
    parameters_of,
    read_task,
    serialized,
)
from utcompile.deploy.translate import translate
from utcompile.deploy.widths import sites_of, widths_of, without_width
from utcompile.deploy.written import HALF_TOLERANCE, ExportResult, Options, check_file, finish, fixed_sizes
from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.files import path_of
from utcompile.rewrite import TunedModule, fingerprint, read_manifest
from utcompile.rewrite.run_facts import inputs_of, outputs_of
from utcompile.rewrite.widths import HOW

ROUTINGS = ("call", "row")
_FIXED: dict[str, object] = {"free": sorted(HOW), "field": None, "axes": {}, "results": []}


@dataclass(frozen=True)
class Task:
    """A task that is exported.

    Attributes:
        name: of the task.
        tensors: by the names that the module has for them.
        labels: the names of its classes, where its run has them.
        outputs, preprocessing: what its run says of them.
    """

    name: str
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] | None
    outputs: Mapping[str, object] = field(default_factory=dict)
    preprocessing: Mapping[str, object] = field(default_factory=dict)

    def swapped(self, tuned: TunedModule) -> nn.Module:
        """The task's own model in PyTorch."""
        return Swapped(tuned, self.tensors)


def export_tasks(
    tuned: nn.Module,
    call: Call,
    tasks: Mapping[str, str | Path],
    routing: str,
    path: Path,
    drafts: Path,
    options: Options,
) -> ExportResult:
    """Write a file for several tasks, and what belongs to it, into the folder `drafts`; all is proven there.

    Raises:
        UtcError: a task or its run does not fit, or a proof fails.
    """
    tuned = _checked(tuned, tasks, routing, options, path)
    found = [_read(tuned, name, folder) for name, folder in tasks.items()]
    widths = widths_of(tuned, parameters_of(tuned))
    try:
        return _exported(tuned, call, found, routing, path, drafts, options, widths)
    except UtcError as error:
        fixed = not any(
            task.tensors[name].shape != tuned.get_parameter(name).shape for task in found for name in widths
        )
        if not widths or not fixed or error.code not in ("export/disagrees", "export/unsupported", "onnx/runtime"):
            raise
        for file in drafts.iterdir():
            file.unlink()
        try:  # a graph in which the rank of the trace is a constant
            result = _exported(tuned, call, found, routing, path, drafts, options, {})
        except UtcError:
            raise error from None
        return replace(
            result, notes=(*result.notes, f"all tasks have the ranks and widths of the module: {error.what}")
        )


def _exported(
    tuned: TunedModule,
    call: Call,
    found: Sequence[Task],
    routing: str,
    path: Path,
    drafts: Path,
    options: Options,
    widths: Varying,
) -> ExportResult:
    with as_shipped(tuned):
        heads = heads_of(tuned, call)
        varying = {**heads, **widths}
        expected = references(tuned, call, options.batch_sizes, options.check_inputs)
        sizes = trace_sizes(tuned, call)
        program = translate(tuned, call, tuple(expected[0].outputs), options.opset, sizes, optimize=False)
        names = parameters_of(tuned)
        if routing == "call":
            fold_into_convolutions(program.model.graph, set(names.values()))
        lives, builder_model = cut(program.model, names.values(), varying)
        text = serialized(builder_model)
        builder = Builder(text, lives)
        own = {name: tensor for name, tensor in _named(tuned).items() if name in builder.inputs}
        defaults = builder(own)
        shapes = shapes_of(builder, own, varying, defaults)
        outputs = outputs_along(tuned, call, heads, expected[0].outputs)
        declare(program.model, shapes, defaults, outputs)
        sites = sites_of(tuned) if widths else [site.model_copy(update=_FIXED) for site in sites_of(tuned)]
        if routing == "call":  # a tuner that is the identity costs nothing without a width
            own |= without_width(own, sites, names)
            thin = builder(own)
            defaults = {
                name: thin[name] if set(shapes[name]) & set(axes_in(widths)) else v for name, v in defaults.items()
            }
    values = {task.name: builder({**own, **task.tensors}) for task in found}
    known = TaskFile(
        format=1,
        model=path.name,
        base=fingerprint(tuned),
        routing=routing,
        inputs={
            live.name: LiveInput(
                shape=shapes[live.name], dtype=str(defaults[live.name].dtype), sources=list(live.sources)
            )
            for live in lives
        },
        tasks=[
            _saved(task, values[task.name], heads, varying, path, routing, _preprocessing(options)) for task in found
        ],
        sites=sites,
        parameters=names,
        sizes=sizes_in(varying, own),
        widths=axes_in(widths),
        varying=varying,
        outputs=outputs,
        preprocessing=_preprocessing(options),
    )
    _optimize(program)
    if routing == "row":
        from utcompile.deploy.rows import route_rows

        stacks = route_rows(program.model, known, [defaults, *(values[task.name] for task in found)])
        known = known.model_copy(update={"stacks": stacks})
    clean(program.model, {k: v for k, v in tuned.state_dict().items() if not k.startswith("base_values.")})
    notes = store_in_half(program.model) if options.dtype == "float16-weights" else ()
    if routing == "call":
        set_defaults(program.model, defaults)
        _check_readers(program.model, lives)
        known = known.model_copy(update={"biases": biases_of_convolutions(program.model)})
        notes += slow_parts(program.model)
    with as_shipped(tuned):
        axes = tuple(a if a.name == BATCH else refined(tuned, call, a, expected) for a in bounded(tuned, call.sizes))
    fixed, guards = fixed_sizes(call), guards_in_words(tuned)
    facts = {
        **facts_of(tuned),
        "base": known.base,
        "axes": [axis.to_dict() for axis in axes],
        "fixed": list(fixed),
        "guards": list(guards),
        "dtype": options.dtype or "float32",
        **options.facts,
        "routing": routing,
        "tasks": [task.model_dump(mode="json", exclude_none=True) for task in known.tasks],
        "live": {live.name: list(live.sources) for live in lives},
    }
    program.model.metadata_props.update(written(facts) | dict(options.metadata))
    save_model(program.model, drafts / path.name)
    finish(drafts / path.name, {})
    proto = check_file(drafts / path.name, call, expected)
    (drafts / beside(path, BUILDER).name).write_bytes(text)
    if routing == "call":
        for task, saved in zip(found, known.tasks, strict=True):
            write_adapter(drafts / str(saved.file), values[task.name], known.base)
    (drafts / beside(path, ".json").name).write_bytes(task_file_text(known))
    with as_shipped(tuned):
        entries, more = prove_tasks(tuned, call, found, expected, drafts / path.name, options.bound)
    parity = ParityReport(path, tuple(entries))
    parity.require()
    finish(drafts / path.name, written({"parity": parity.to_dict()}))
    return ExportResult(
        path=path,
        max_error=parity.max_error,
        opset=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        bytes=sum(file.stat().st_size for file in drafts.iterdir()),
        input_names=tuple(entry.name for entry in proto.graph.input if entry.name not in known.inputs),
        output_names=tuple(entry.name for entry in proto.graph.output),
        batch_sizes=parity.batch_sizes,
        parity=parity,
        guards=guards,
        axes=axes,
        fixed=fixed,
        notes=(*notes, *more),
        tasks=tuple(known.names),
    )


def verify_tasks(
    path: str | Path,
    tuned: nn.Module,
    example_inputs: ExampleInputs,
    runs: Sequence[str | Path],
    batch_sizes: Sequence[int] | None = None,
    tolerance: float | None = None,
    *,
    check_inputs: object = None,
    provider: str = "CPUExecutionProvider",
) -> ParityReport:
    """Repeat all comparisons of a file with several tasks, from the file and the runs.

    Args:
        path: the ONNX file; its `.json` and adapters are next to it.
        tuned: compiled with the rules of the runs, as it was when the file was exported.
        runs: the folders of the runs of all tasks, in any order; each is recognised by its tensors.
        batch_sizes, tolerance, check_inputs, provider: as in `verify_onnx`.

    Raises:
        UtcError: a run is no task of the file, a task has no run, or a file is missing or damaged.
    """
    path = path_of(path, "path")
    opened, known = OnnxModel(path), read_task_file(path)
    check_type(tuned, TunedModule, "tuned", "a TunedModule")
    assert isinstance(tuned, TunedModule)
    found: list[Task] = []
    for run in runs:
        task = _read(tuned, "run", run)
        digest = digest_of(arrays_of(task.tensors))
        its = next((saved for saved in known.tasks if saved.run == digest), None)
        if its is None:
            raise UtcError(
                "the run is no task of the file",
                where=str(run),
                why=f"its tensors are those of none of {', '.join(known.names)}",
                fix="add it: utc.add_task",
                code="export/tasks",
            )
        found.append(replace(task, name=its.name))
    if missing := sorted(set(known.names) - {task.name for task in found}):
        raise UtcError(
            f"no run is given for the task {missing[0]!r}", where=str(path), fix="name all runs", code="export/tasks"
        )
    call = Call.of(tuned, example_inputs).within(opened.session)
    is_half = opened.facts.get("dtype") == "float16-weights"
    bound = HALF_TOLERANCE if tolerance is None and is_half else tolerance
    with as_shipped(tuned):
        expected = references(tuned, call, check_batch_sizes(batch_sizes), check_inputs)
        entries, _ = prove_tasks(tuned, call, found, expected, path, bound, provider)
    return ParityReport(path, tuple(entries))


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """Let the exporter optimise; an output whose operation it replaces would lose its type."""
    declared = [(value.name, value.type, value.shape) for value in program.model.graph.outputs]
    program.optimize()
    for value, (name, kind, shape) in zip(program.model.graph.outputs, declared, strict=True):
        value.name, value.type, value.shape = name, kind, shape


def save_model(model: ir.Model, path: Path) -> None:
    """One file below 1.5 GB, else one with its weights next to it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size < 1.5e9:
        ir.save(model, path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data")


def _checked(
    tuned: nn.Module, tasks: Mapping[str, str | Path], routing: str, options: Options, path: Path
) -> TunedModule:
    if routing not in ROUTINGS:
        raise UtcError(f"routing is {routing!r}", fix=did_you_mean(str(routing), ROUTINGS), code="arguments/value")
    check_type(tasks, Mapping, "tasks", 'a mapping from names to runs, as {"cats": "run1/"}')
    if not isinstance(tuned, TunedModule):
        raise UtcError(
            f"tasks are exported from a TunedModule, not from {type(tuned).__name__}",
            why="a folded model has no tuners whose values could be exchanged",
            fix="pass what `utc.compile` returned",
            code="export/tasks",
        )
    if not tasks:
        raise UtcError("there is no task", fix='give at least one: tasks={"cats": "run1/"}', code="export/tasks")
    check_not_another(path)
    seen: list[str] = []
    for name in tasks:
        seen.append(check_task_name(name, seen, str(path)))
    if options.dtype == "float16":
        raise UtcError(
            "a file with several tasks has no float16 form",
            why="adapters are float32",
            fix="export with dtype='float16-weights', which stores the backbone in float16",
            code="export/unsupported",
        )
    return tuned


def _read(tuned: TunedModule, name: str, folder: str | Path) -> Task:
    try:
        tensors = read_task(tuned, folder)
        labels = read_manifest(folder).get("classes")
        outputs, preprocessing = outputs_of(Path(folder)), inputs_of(Path(folder))
    except UtcError as error:
        raise error.within(f"task {name!r}") from None
    named = tuple(map(str, labels)) if isinstance(labels, list) else None
    return Task(name, tensors, named, outputs, preprocessing)


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _saved(
    task: Task,
    values: Values,
    heads: Varying,
    varying: Varying,
    path: Path,
    routing: str,
    files: Mapping[str, object] | None,
) -> SavedTask:
    sizes = sizes_in(varying, task.tensors)
    is_named = task.labels is not None and fits(task.labels, sizes_in(heads, task.tensors))
    return SavedTask(
        name=task.name,
        classes=sizes.get(CLASSES),
        sizes=sizes,
        labels=list(task.labels or ()) if is_named else None,
        sha256=digest_of(values),
        run=digest_of(arrays_of(task.tensors)),
        file=beside(path, f".{task.name}{ADAPTER}").name if routing == "call" else None,
        outputs=dict(task.outputs) or None,
        preprocessing=other_preprocessing(task.preprocessing, files),
    )


def _preprocessing(options: Options) -> dict[str, object] | None:
    found = options.facts.get("preprocessing")
    return dict(found) if isinstance(found, Mapping) else None


def _check_readers(model: ir.Model, lives: Sequence[Live]) -> None:
    if unread := without_reader(model, [live.name for live in lives]):
        raise UtcError(
            f"the exporter dropped what reads {unread[0]!r}",
            why="a task could not change it",
            fix="report it, with the model and the rules",
            code="export/disagrees",
        )

"""Methods on one budget and one split, run by run; what has been done is kept, so a comparison that was killed goes on.

out/comparison.json         the settings, and the table at the end
out/comparison.csv, .html   the same for a spreadsheet, and to look at
out/runs/METHOD/seed-S-lr-L a run: `utcompile report`, `fold` and `export` take it; result.json in it when it is done
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import utcompile as utc
from utcompile.cli.frozen_forward import FrozenForward, Shareable, shareable
from utcompile.cli.kept_bytes import kept_bytes
from utcompile.cli.speeds import onnx_engine, onnx_speeds, torch_engine, torch_speeds
from utcompile.deploy.call import ExampleInputs
from utcompile.errors import UtcError
from utcompile.files import replace_file, reported
from utcompile.plan import Plan
from utcompile.report.comparison import Comparison, Result, comparison_page, csv_of, shown
from utcompile.rewrite import TunedModule
from utcompile.rules import RuleSet
from utcompile.train import Data, fit
from utcompile.train.metrics import measure
from utcompile.train.task_file import TaskFile
from utcompile.train.tasks import Task as Goal
from utcompile.train.tasks import make_task

FULL = "full"  # the name of full fine-tuning among methods
_FULL_RULES = 'version: 1\nname: full\ndescription: Full fine-tuning.\ntrain: ["parameter:**"]\n'
_LINE = 120
_BATCH = 64  # of measuring
RESULT, TABLE, CSV, PAGE = "result.json", "comparison.json", "comparison.csv", "comparison.html"


@dataclass(frozen=True)
class Budget:
    """What every method gets.

    Attributes:
        lrs: the learning rates that each method tries at the first seed; the best on the validation data is used.
        seeds: of the tuners' and the head's random start, and of the order of samples.
    """

    epochs: int = 10
    batch_size: int = 64
    lrs: tuple[float, ...] = (1e-3,)
    seeds: tuple[int, ...] = (0, 1, 2)
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.lrs or not self.seeds:
            raise UtcError(
                "a comparison needs a learning rate and a seed", fix="give --lr and --seeds", code="report/comparison"
            )


@dataclass(frozen=True)
class Task:
    """A model and its data.

    Attributes:
        build: the model for a seed: the backbone is the same for all, new heads differ.
        example: inputs of the model.
        data: one split.
        test: what methods are measured on; None for the validation data.
        about: the model and the data as plain data; a comparison is resumed with the same.
        extra: what the manifest of a run must say so that it can be opened again, by seed.
        goal: the loss and the metrics, of which the first is compared; those of the data by default.
        reading: how the data were read, for the manifest.
        prepare: called with the folder of a run before its first epoch.
    """

    build: Callable[[int], nn.Module]
    example: ExampleInputs
    data: Data
    test: Dataset[object] | None = None
    about: Mapping[str, object] | None = None
    extra: Callable[[int], Mapping[str, object]] | None = None
    channels_last: bool = True
    goal: Goal | None = None
    reading: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda run: None


def folder_name(method: str) -> str:
    """The folder of a method's runs; that of a rule file has its digest, so that no run of old rules is taken."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in method)
    if method == FULL or not Path(method).is_file():
        return safe
    rules = RuleSet.load(method)
    text = json.dumps([str(Path(method).resolve()), rules.text, dict(rules.included)])
    return f"{safe}-{sha256(text.encode()).hexdigest()[:8]}"


def rules_named(name: str) -> RuleSet:
    """The rules of a method; `full` is full fine-tuning."""
    return RuleSet.load(_FULL_RULES if name == FULL else name)


class Methods:
    """Runs methods on a task.

    Args:
        out: the folder, new or of the same comparison.
        latency: `onnx`, `torch` or `none`.
        cache: bytes for the values of the one frozen forward.
        say: is called with what happens.
    """

    def __init__(
        self,
        out: Path,
        task: Task,
        budget: Budget,
        *,
        latency: str = "onnx",
        cache: float = 4e9,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.out, self.task, self.budget, self.latency, self.say = out, task, budget, latency, say
        self.settings = {**(task.about or {}), **_plain(asdict(budget))}
        self.left_out: dict[str, str] = {}
        self.tried: dict[str, dict[str, float | None]] = {}
        self.goal = task.goal or make_task(task.data)
        self._claim()
        self.captured = utc.capture(task.build(0), task.example)
        self.frozen = FrozenForward(self.captured, task.data, [task.test] if task.test is not None else [], cache)
        self.heads: dict[int, dict[str, Tensor]] = {}
        self.sharing: set[str] = set()

    def run(self, names: Sequence[str]) -> Comparison:
        """Run what has not been run, and write the table.

        Raises:
            UtcError: no method fits the model, or the folder cannot be written.
        """
        plans = self._plans(names)
        self._fill(plans)
        results: list[Result] = []
        for name, plan in plans.items():
            try:
                results += self._method(name, plan)
            except UtcError as error:
                if error.code in ("path/invalid", "report/comparison"):
                    raise
                self.left_out[name] = _why(error)
                self.say(f"{name} is left out: {self.left_out[name]}")
        if not results:
            raise UtcError(
                "no method gave a result",
                why="; ".join(f"{name}: {why}" for name, why in self.left_out.items()),
                fix="name rules that fit the model; utcompile explain says what each finds",
                code="report/comparison",
            )
        found = Comparison(
            tuple(results),
            self.settings,
            self.left_out,
            measured_on="test" if self.task.test is not None else "validation",
            forward_seconds=self.frozen.seconds,
            tried=self.tried,
            metric=self.goal.metrics[0],
        )
        found = self._with_latencies(found, plans)
        self._write(found)
        return found

    def best_run(self, found: Comparison) -> Path:
        """The folder of the run that is best on the validation data."""
        better = max if self.goal.higher else min
        best = better(found.results, key=lambda result: result.validation)
        return self._folder(best.method, best.seed, best.lr)

    def _claim(self) -> None:
        """Make the folder, or see that it is of this comparison."""
        path = self.out / TABLE
        if path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))["settings"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UtcError(
                    "the comparison's file is damaged",
                    where=str(path),
                    why=str(error),
                    fix="remove it; the runs next to it are kept",
                    code="report/comparison",
                ) from error
            differing = [f"{k} was {known.get(k)!r}, is {v!r}" for k, v in self.settings.items() if known.get(k) != v]
            if differing:
                raise UtcError(
                    "the folder has a comparison with other settings",
                    where=str(self.out),
                    why="; ".join(differing),
                    fix="compare with the same settings to go on, or give another folder",
                    code="report/comparison",
                )
            return
        if self.out.is_dir() and any(self.out.iterdir()):
            raise UtcError(
                "the folder is not empty, and has no comparison",
                where=str(self.out),
                fix="give another folder",
                code="path/taken",
            )
        with reported("the folder of the comparison cannot be made", self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            replace_file(path, _json({"settings": self.settings}))

    def _plans(self, names: Sequence[str]) -> dict[str, Plan]:
        plans = {}
        for name in dict.fromkeys(names):
            try:
                plans[name] = utc.match(self.captured, rules_named(name))
            except UtcError as error:
                self.left_out[name] = _why(error)
                self.say(f"{name} does not fit: {self.left_out[name]}")
        return plans

    def _fill(self, plans: Mapping[str, Plan]) -> None:
        """Choose which methods share values of the backbone, and compute those of methods with runs to do, in one pass.

        The choice does not depend on what has been run, so a comparison that goes on gives the same figures.
        """
        read: list[str] = []
        needed: list[str] = []
        for name, plan in plans.items():
            try:
                method = shareable(plan.apply(), self.captured)
            except UtcError:
                continue  # running it says why
            if method is None or not self.frozen.has_room([*read, *method.names]):
                continue
            read += method.names
            self.sharing.add(name)
            needed += [] if self._is_complete(name) else method.names
        if needed:
            self.say(f"one frozen forward of {self.frozen.samples:,} samples for all that read the backbone alone")
            self.frozen.fill(needed, self.task.channels_last)

    def _first_runs(self) -> list[tuple[int, float]]:
        return [(self.budget.seeds[0], lr) for lr in self.budget.lrs]

    def _is_complete(self, name: str) -> bool:
        runs = [*self._first_runs(), *((seed, self._best(name)) for seed in self.budget.seeds)]
        return all(self._done(name, seed, lr) is not None for seed, lr in runs)

    def _best(self, name: str) -> float:
        """The rate with the best validation figure at the first seed; the first of equals."""
        found = {lr: r for seed, lr in self._first_runs() if (r := self._done(name, seed, lr)) is not None}
        self.tried[name] = {f"{lr:g}": r.validation if (r := found.get(lr)) else None for lr in self.budget.lrs}
        better = max if self.goal.higher else min
        return better(found, key=lambda lr: found[lr].validation) if found else self.budget.lrs[0]

    def _method(self, name: str, plan: Plan) -> list[Result]:
        self._try_rates(name, plan)
        lr = self._best(name)
        return [self._run(name, plan, seed, lr) for seed in self.budget.seeds]

    def _try_rates(self, name: str, plan: Plan) -> None:
        """Run the first seed with every rate; one at which the loss is not finite is not chosen."""
        failed: list[UtcError] = []
        for seed, lr in self._first_runs():
            try:
                self._run(name, plan, seed, lr)
            except UtcError as error:
                if error.code != "train/loss":
                    raise
                failed.append(error)
                self.say(f"{name}, seed {seed}, lr {lr:g}: {_why(error)}")
        if len(failed) == len(self.budget.lrs):
            raise failed[0]

    def _folder(self, name: str, seed: int, lr: float) -> Path:
        return self.out / "runs" / folder_name(name) / f"seed-{seed}-lr-{lr:g}"

    def _done(self, name: str, seed: int, lr: float) -> Result | None:
        path = self._folder(name, seed, lr) / RESULT
        if not path.is_file():
            return None
        try:
            return Result.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError):
            return None  # it was not written whole by us: the run is finished, and its result is measured again

    def _run(self, name: str, plan: Plan, seed: int, lr: float) -> Result:
        known = self._done(name, seed, lr)
        if known is not None:
            return known
        folder = self._folder(name, seed, lr)
        tuned = self._tuned(plan, seed)
        method = shareable(tuned, self.captured) if name in self.sharing else None
        model, data, test = self._on(tuned, method)
        saved_bytes = kept_bytes(model, data, self.budget.batch_size)
        extra = dict(self.task.extra(seed)) if self.task.extra is not None else {}
        training = {k: v for k, v in asdict(self.budget).items() if k not in ("lrs", "seeds")}
        training = {**training, "lr": lr, "seed": seed}
        said = {**training, "metrics": list(self.goal.metrics), "augment": False, **self.task.reading}
        result = fit(
            model,
            data,
            out=folder,
            save=partial(utc.save_tuners, tuned, extra={**extra, "training": said}),
            load=partial(utc.load_tuners, tuned),
            resume=(folder / "last").is_dir(),
            channels_last=self.task.channels_last,
            task=self.goal,
            prepare=self._prepare,
            **training,
        )
        measured = result.best if test is None else self._measured(model, test, data)
        found = Result(
            name,
            seed,
            measured,
            result.best,
            lr,
            result.best_epoch,
            round(result.seconds, 2),
            plan.parameters,
            saved_bytes,
            method is not None,
        )
        with reported("the result cannot be written", folder / RESULT):
            replace_file(folder / RESULT, _json(asdict(found)))
        self.say(f"{name}, seed {seed}, lr {lr:g}: {shown(measured, self.goal.metrics[0])} ({result.seconds:.0f} s)")
        return found

    def _measured(self, model: nn.Module, test: Dataset[object], data: Data) -> float:
        batches = DataLoader(test, _BATCH, collate_fn=data.collate)
        return measure(model, batches, self.goal)[self.goal.metrics[0]]

    def _prepare(self, run: Path) -> None:
        TaskFile.of(self.task.data, self.goal).write(run)
        self.task.prepare(run)

    def _on(self, tuned: TunedModule, method: Shareable | None) -> tuple[nn.Module, Data, Dataset[object] | None]:
        """What trains, and on what."""
        if method is None:
            return tuned, self.task.data, self.task.test
        self.frozen.fill(method.names, self.task.channels_last)
        data, more = self.frozen.rows()
        return self.frozen.model(method), data, more[0] if more else None

    def _tuned(self, plan: Plan, seed: int) -> TunedModule:
        """A tuned module whose tuners and head start as the seed says."""
        if seed not in self.heads:
            self.heads[seed] = self.task.build(seed).state_dict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tuned = plan.apply()
        own = dict(tuned.named_parameters())
        with torch.no_grad():
            for name in plan.trained:
                if name in own and own[name].requires_grad and name in self.heads[seed]:
                    own[name].copy_(self.heads[seed][name])
        return tuned

    def _with_latencies(self, found: Comparison, plans: Mapping[str, Plan]) -> Comparison:
        if self.latency == "none":
            return found
        models: dict[str, nn.Module] = {"base": self.captured.eval()}
        for row in found.rows():
            self.say(f"folding {row.method}")
            tuned = self._tuned(plans[row.method], row.seeds[0])
            utc.load_tuners(tuned, self._folder(row.method, row.seeds[0], row.lr))
            try:
                models[row.method], _ = utc.fold(tuned.eval(), check_inputs=None)
            except UtcError as error:
                self.say(f"{row.method} is measured unfolded: {_why(error)}")
                models[row.method] = tuned.eval()
        self.say(f"latency of {len(models)} models")
        refused: dict[str, UtcError] = {}
        if self.latency == "onnx":
            measured, engine = onnx_speeds(models, self.task.example, refused.__setitem__), onnx_engine()
        else:
            measured, engine = torch_speeds(models, self.task.example), torch_engine()
        speeds = {speed.name: round(speed.median, 4) for speed in measured}
        if "base" in speeds:
            engine += f" The model without tuners: {speeds['base']:.2f} ms."
        engine += "".join(f" Not measured: {name} ({_why(error)})." for name, error in refused.items())
        return replace(found, latencies=speeds, engine=engine)

    def _write(self, found: Comparison) -> None:
        with reported("the comparison cannot be written", self.out):
            replace_file(self.out / CSV, csv_of(found).encode())
            replace_file(self.out / PAGE, comparison_page(found).encode())
            replace_file(self.out / TABLE, _json(found.to_dict()))


def _why(error: UtcError) -> str:
    """An error in one line; `utcompile explain` says more."""
    what = error.what.splitlines()[0]
    why = error.why.partition("; ")[0].splitlines()[0] if error.why else ""
    return f"{what}: {why}" if why and len(why) < _LINE else what


def _plain(data: Mapping[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=2, default=str) + "\n").encode()

"""A run's folder back to its tuned model: the base is built again, the rules compiled, the tuners loaded strictly."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from utcompile.cli import output
from utcompile.cli.early_runs import untrusted_model
from utcompile.cli.models import ModelChoice
from utcompile.cli.parts import plan_of
from utcompile.cli.run_example import example_of, image_size
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject
from utcompile.plan import Plan
from utcompile.plan_of_parts import PartsPlan
from utcompile.rewrite import MANIFEST, TunedModule, Whole, read_manifest
from utcompile.rules import RuleSet


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        tuned: the model with its trained tuners, in eval mode; of the user's class where parts of it are tuned.
        example: inputs by name, of the shapes that the manifest has; by position where it has none.
        choice: how the base was built.
        manifest: all that the run's manifest says.
        plan: what its rules insert.
    """

    tuned: nn.Module
    example: dict[str, Tensor] | tuple[Tensor, ...]
    choice: ModelChoice
    manifest: JsonObject
    plan: Plan | PartsPlan

    @property
    def whole(self) -> Whole:
        """The tuned model with its sites and rules."""
        return Whole.of(self.tuned, "the run")

    def one_graph(self, verb: str) -> tuple[TunedModule, Plan]:
        """The tuned model and the plan, for what works on one graph.

        Raises:
            UtcError: parts of the model are tuned.
        """
        if not isinstance(self.tuned, TunedModule) or not isinstance(self.plan, Plan):
            raise UtcError(
                f"{verb} is of one graph, and in this run parts of the model are tuned",
                why=f"it was trained with --within {' --within '.join(self.choice.within)}",
                code="parts/unsupported",
            )
        return self.tuned, self.plan

    @property
    def fingerprint(self) -> str:
        """Of the base that it was trained on."""
        base = self.manifest["base"]
        return str(base if isinstance(base, str) else base["fingerprint"])


def choice_of(folder: Path, manifest: JsonObject, model: str | None, trust: bool) -> ModelChoice:
    """How a run's base is built, as its manifest or `-m` says.

    Raises:
        UtcError: the manifest does not say how, or it names code that the user has not allowed to run.
    """
    where = str(folder / MANIFEST)
    recorded = manifest.get("model")
    if recorded is None and model is not None:
        return ModelChoice(model, input_size=image_size(manifest.get("inputs")))
    choice = ModelChoice.from_dict(recorded, where)
    if model is not None:
        return replace(choice, spec=model)
    if choice.source.runs_code and not trust:
        raise untrusted_model(where, choice.spec)
    return choice


def rules_of(folder: Path, manifest: dict[str, object]) -> RuleSet:
    """The rules of a run, with the values its variables had."""
    rules = manifest["rules"]
    if not isinstance(rules, dict) or not isinstance(rules.get("text"), str):
        raise UtcError("the manifest contains no rules", where=str(folder / MANIFEST), code="checkpoint/damaged")
    text = rules["text"]
    text += "" if "\n" in text else "\n"  # by which a text is known
    given = {key: rules.get(key) for key in ("vars", "included", "train", "measured")}
    return RuleSet.load(text, **given)


def open_run(
    folder: Path, model: str | None = None, weights: Path | None = None, trust: bool = False, *, load: bool = True
) -> Run:
    """Rebuild a run's tuned model.

    Args:
        model: instead of the manifest's.
        weights: the base's weights, instead of the manifest's file.
        trust: run the code that the manifest names.
        load: load the run's tuners; else they are as before training.

    Raises:
        UtcError: no run, another base, or code that is not trusted.
    """
    import utcompile as utc

    manifest = read_manifest(folder)
    rules = rules_of(folder, manifest)
    choice = choice_of(folder, manifest, model, trust)
    if weights is not None:
        choice = replace(choice, weights=str(weights))
    output.progress(f"building {choice.spec}")
    inputs = manifest.get("inputs")
    example = example_of(inputs, choice.seed, str(folder / MANIFEST)) if inputs else choice.inputs()
    with torch.random.fork_rng(devices=[]), _warned_in_training():
        torch.manual_seed(choice.seed)
        plan = plan_of(choice.build(), example, rules, choice.within)
        tuned = plan.apply()
    if not load:
        return Run(tuned.eval(), example, choice, manifest, plan)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        utc.load_tuners(tuned, folder)
    for note in notes:
        output.progress(f"note: {note.message}")
    return Run(tuned.eval(), example, choice, manifest, plan)


@contextmanager
def _warned_in_training() -> Iterator[None]:
    """Inside, sites that get no gradient are not warned of: training did, and the run is trained."""
    logger = logging.getLogger("utcompile.rewrite.reach")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before

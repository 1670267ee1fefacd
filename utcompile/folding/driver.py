"""One site after the other: planned, applied, proven; or kept, with the reason.

A fold refuses a site by `Unfoldable` or a `UtcError`. Every other exception of a fold is a mistake in its code: it ends
the folding with one error that names the fold and the site.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.folding.base import BaseFold, FaultyFold, Fold, registered_folds
from utcompile.folding.float32 import plan_float32
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.folds import BASE_FOLDS
from utcompile.folding.patch import Patch
from utcompile.folding.proof import Proof, SiteProof
from utcompile.folding.report import FoldedSite, Status
from utcompile.folding.site import Part, Site
from utcompile.folding.trial import Trial
from utcompile.rewrite import TunedSite

_T = TypeVar("_T")

# a fold is exact in real arithmetic; float64 leaves 2.2e-16 an operation, sums of some thousand terms less than this
_TOLERANCE = 1e-9
_RETAINED = 0.95  # below this share of the tuner's effect, rounding has eaten it


@dataclass(frozen=True)
class _Attempt:
    """A patch on trial, of a site or of a part of the base.

    Attributes:
        id, status: for the report, if it holds.
        muted: the site whose effect is measured, where what rounding leaves of it is not known.
        fold: that made the patch.
        ensured: what of the fold's promise is not so in the patched graph.
    """

    id: str
    status: Status
    patch: Patch
    fold: Fold | BaseFold
    muted: str = ""
    ensured: Callable[[], str] = str


class Driver:
    """Folds the sites of one model.

    Args:
        model: the model being folded.

    Attributes:
        disproved: the sites whose values a fold moved, or whose effect rounding ate: they are not tried again.
    """

    def __init__(self, model: Folding) -> None:
        self.model = model
        self.disproved: set[str] = set()
        self.ties = _ties(model.root)

    def fold(self, tuned: TunedSite) -> FoldedSite:
        """Fold a tuner and prove it; a reason where it must be kept."""
        site = Site.of(tuned, self.model.graph, self.model.root)
        try:
            fold, patch = self._plan(site)
        except Unfoldable as reason:
            return FoldedSite(site.id, "kept", reason=str(reason))
        share = patch.retained
        if share is not None and share < _RETAINED and not self.model.options.float32:
            return FoldedSite(site.id, "kept", reason=_eaten(share), retained=share)
        muted = site.id if share is None or share < _RETAINED else ""

        def ensured() -> str:
            return fold.ensures(site, self.model, patch)

        return self._try(_Attempt(site.id, fold.status, patch, fold, muted, ensured))

    def _plan(self, site: Site) -> tuple[Fold, Patch]:
        """The first fold that is for a site and whose conditions hold, and its patch."""
        reasons = []
        for fold in registered_folds():
            try:
                with _faults_named(fold, site.id):
                    if not fold.requires(site, self.model):
                        continue
                    if not fold.local:
                        self.model.view()  # its proof reads layouts that tuners hid
                    return fold, fold(site, self.model)
            except Unfoldable as reason:
                reasons.append(str(reason))
        raise Unfoldable("; ".join(reasons) or f"no exact fold is known for a {site.kind}")

    def fold_base(self) -> Iterator[FoldedSite]:
        """Fold what the base itself computes for nothing."""
        for fold in BASE_FOLDS:
            if fold.wanted(self.model.options):
                found = (self._fold_part(fold, part) for part in fold.parts(self.model))
                yield from (site for site in found if fold.reported)

    def _fold_part(self, fold: BaseFold, part: Part) -> FoldedSite:
        self.model.view()
        try:
            with _faults_named(fold, part.id):
                patch = fold.plan(part, self.model)
        except Unfoldable as reason:
            return FoldedSite(part.id, "kept", reason=str(reason))
        return self._try(_Attempt(part.id, fold.status, patch, fold))

    def _try(self, attempt: _Attempt) -> FoldedSite:
        """Apply a patch and prove it; where it is disproved, nothing of it remains."""
        patch = attempt.patch
        try:
            proof = SiteProof(self.model, patch.sources, patch.outputs, attempt.muted)
        except Unfoldable as reason:
            return FoldedSite(attempt.id, "kept", reason=str(reason))
        trial = Trial(self.model)
        try:
            found = self._proven(trial, proof, attempt)
        except Unfoldable as reason:
            trial.undo()
            self.disproved.add(attempt.id)
            return FoldedSite(attempt.id, "kept", reason=str(reason))
        except BaseException:
            trial.undo()
            raise
        trial.keep()
        return found

    def _proven(self, trial: Trial, proof: SiteProof, attempt: _Attempt) -> FoldedSite:
        share = attempt.patch.retained
        notes, eaten = "", None
        with _faults_named(attempt.fold, attempt.id):
            results = _applied(trial, attempt.patch)
            broken = attempt.ensured()
        if broken:
            raise Unfoldable(f"the fold {attempt.fold.name} breaks its promise: {broken}")
        retained = share if share is not None and not attempt.muted else _run(proof.retained, results)
        if retained < _RETAINED:
            notes = _eaten(retained)
            try:
                results, retained = self._in_float32(trial, proof, results, notes)
                notes = f"in float32: {notes}"
            except Unfoldable as reason:
                eaten = reason
        found = _checked(proof, results)
        if eaten is not None:
            raise eaten
        cloned = self._cloned(trial.names)
        if cloned:
            notes = "; ".join(filter(None, (notes, f"{cloned:,} bytes of tied weights are cloned")))
        return FoldedSite(
            attempt.id,
            attempt.status,
            found.error,
            notes,
            retained,
            dtype_error=found.dtype_error,
            parameters=found.parameters,
            flops=found.flops,
            cloned=cloned,
        )

    def _in_float32(
        self, trial: Trial, proof: SiteProof, results: list[fx.Node], notes: str
    ) -> tuple[list[fx.Node], float]:
        if not self.model.options.float32:
            raise Unfoldable(notes)
        results = trial.apply(plan_float32(self.model, sorted(trial.names), results))
        return results, _run(proof.retained, results)

    def _cloned(self, names: Collection[str]) -> int:
        """Bytes of the parameters that were tied to others before a patch changed them alone."""
        found = 0
        for name in [n for n in names if n in self.ties]:
            others = self.ties.pop(name) - set(names)
            if others:
                dtype, _ = self.model.home_of(name)
                found += self.model.state(name).numel() * dtype.itemsize
            for other in others:
                self.ties[other] = self.ties.get(other, set()) - {name}
        return found


@contextmanager
def _faults_named(fold: Fold | BaseFold, site: str) -> Iterator[None]:
    """What code of a fold may raise.

    Raises:
        Unfoldable: its refusal, also where that was a `UtcError`.
        FaultyFold: anything else.
    """
    try:
        yield
    except (Unfoldable, FaultyFold):
        raise
    except UtcError as error:
        raise Unfoldable(error.what) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise FaultyFold(
            f"the fold {fold.name!r} has failed",
            where=f"site {site}",
            why=f"{said}, in code of {type(fold).__module__}.{type(fold).__qualname__}",
            fix="where a condition of the fold does not hold, raise `utcompile.folding.Unfoldable` with the reason: "
            "the tuner is then kept. In a fold of utcompile this is a fault of utcompile: report the model",
        ) from error


def _applied(trial: Trial, patch: Patch) -> list[fx.Node]:
    """The nodes that yield the values of a patch's outputs.

    Raises:
        Unfoldable: the patch takes out what is still read, or gives an operation an argument that it does not have.
    """
    try:
        return trial.apply(patch)
    except (Unfoldable, UtcError) as error:
        said = error.what if isinstance(error, UtcError) else error
        raise Unfoldable(f"its patch cannot be applied: {said}") from error


def _run(measure: Callable[[Sequence[fx.Node]], _T], results: Sequence[fx.Node]) -> _T:
    """What a proof measures of a site.

    Raises:
        Unfoldable: it does not run.
    """
    try:
        return measure(results)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unfoldable(f"folded, the site does not run: {error}".partition("\n")[0]) from error


def _checked(proof: SiteProof, results: Sequence[fx.Node]) -> Proof:
    """What a proof finds of a patch that has been applied.

    Raises:
        Unfoldable: the site's values have moved, or it does not run.
    """
    found = _run(proof.check, results)
    if found.error > _TOLERANCE:
        raise Unfoldable(f"folded, the site differs by {found.error:.1e}; an operation on the way is not what it seems")
    return found


def _eaten(share: float) -> str:
    return f"rounding to the weight's dtype would keep {share:.0%} of the tuner's effect"


def _ties(root: nn.Module) -> dict[str, set[str]]:
    """The other names of parameters that have several."""
    names: dict[int, set[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {n: every - {n} for every in names.values() if len(every) > 1 for n in every}

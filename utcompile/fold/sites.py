"""One site after the other: planned, applied, proven; or kept, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import fx, nn

from utcompile.fold.absorb import plan_absorption
from utcompile.fold.batch_norms import plan_batch_norms
from utcompile.fold.biases import plan_biases
from utcompile.fold.constants import plan_constants, plan_tokens
from utcompile.fold.dequantize import plan_dequantised
from utcompile.fold.float32 import plan_float32
from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.maps import plan_map
from utcompile.fold.patch import Patch
from utcompile.fold.proof import Proof, SiteProof
from utcompile.fold.report import FoldedSite, Status
from utcompile.fold.trial import Trial
from utcompile.fold.widen import plan_widening
from utcompile.rewrite import TunedSite, site_nodes
from utcompile.tuners import Adapter, Tuner

# a fold is exact in real arithmetic; float64 leaves 2.2e-16 an operation, sums of some thousand terms less than this
_TOLERANCE = 1e-9
_RETAINED = 0.95  # below this share of the tuner's effect, rounding has eaten it


class SiteFolder:
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

    def fold(self, site: TunedSite) -> FoldedSite:
        """Fold a tuner and prove it; a reason where it must be kept."""
        try:
            patch, status = self._plan(site)
        except Unfoldable as reason:
            return FoldedSite(site.id, "kept", reason=str(reason))
        share = patch.retained
        if share is not None and share < _RETAINED and not self.model.options.float32:
            return FoldedSite(site.id, "kept", reason=_eaten(share), retained=share)
        return self._try(site.id, patch, status, measured=share is None or share < _RETAINED)

    def _plan(self, site: TunedSite) -> tuple[Patch, Status]:
        tuner = self.model.root.get_submodule(site.name)
        assert isinstance(tuner, Tuner)
        nodes = site_nodes(self.model.graph, site.id)
        if site.form == "weight":
            if not any(site.tunes.values()) and "weight" in site.tunes:
                return plan_dequantised(self.model, site, nodes, self.model.options.dequantize), "absorbed"
            return plan_absorption(self.model, site, nodes), "absorbed"
        if site.form == "tokens":
            return plan_tokens(self.model, site, nodes), "constant"
        linear = tuner.channel_map() if site.form in ("parallel", "sequential") else None
        widens = site.form == "parallel" and (linear is not None or isinstance(tuner, Adapter))
        if linear is None and widens:
            return plan_widening(self.model, site, nodes), "widened"
        if linear is None:
            raise Unfoldable(f"no exact fold is known for a {site.form} {site.tuner}")
        try:
            return plan_map(self.model, nodes, linear), "absorbed"
        except Unfoldable as alone:
            if not widens:
                raise
            try:
                return plan_widening(self.model, site, nodes), "widened"
            except Unfoldable as beside:
                raise Unfoldable(f"{alone}; {beside}") from None

    def move_biases(self) -> None:
        """Let biases that folding added move on to layers that had one, where they can."""
        for name, patch in plan_biases(self.model):
            self._try(name, patch, "absorbed")

    def fold_base(self) -> Iterator[FoldedSite]:
        """Fold what the base itself computes for nothing."""
        options = self.model.options
        for name, patch in plan_batch_norms(self.model) if options.batch_norms else ():
            if isinstance(patch, str):
                yield FoldedSite(name, "kept", reason=patch)
            else:
                yield self._try(name, patch, "absorbed")
        for name, patch in plan_constants(self.model) if options.constants else ():
            yield self._try(name, patch, "constant")

    def _try(self, name: str, patch: Patch, status: Status, *, measured: bool = False) -> FoldedSite:
        """Apply a patch and prove it; where it is disproved, nothing of it remains."""
        try:
            proof = SiteProof(self.model, patch.sources, patch.outputs, name if measured else "")
        except Unfoldable as reason:
            return FoldedSite(name, "kept", reason=str(reason))
        trial = Trial(self.model)
        try:
            found = self._proven(trial, proof, patch, status, name)
        except Unfoldable as reason:
            trial.undo()
            self.disproved.add(name)
            return FoldedSite(name, "kept", reason=str(reason))
        trial.keep()
        return found

    def _proven(self, trial: Trial, proof: SiteProof, patch: Patch, status: Status, name: str) -> FoldedSite:
        results, notes, eaten = trial.apply(patch), "", None
        retained = patch.retained if patch.retained is not None and not proof.muted else proof.retained(results)
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
            name,
            status,
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
        return results, proof.retained(results)

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


def _checked(proof: SiteProof, results: Sequence[fx.Node]) -> Proof:
    """What a proof finds of a patch that has been applied.

    Raises:
        Unfoldable: the site's values have moved.
    """
    try:
        found = proof.check(results)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unfoldable(f"folded, the site does not run: {error}".partition("\n")[0]) from error
    if found.error > _TOLERANCE:
        raise Unfoldable(f"folded, the site differs by {found.error:.1e}; what stands between is not what it seems")
    return found


def _eaten(share: float) -> str:
    return f"rounding to the weight's dtype would keep {share:.0%} of the tuner's effect"


def _ties(root: nn.Module) -> dict[str, set[str]]:
    """The other names of parameters that have several."""
    names: dict[int, set[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {n: every - {n} for every in names.values() if len(every) > 1 for n in every}

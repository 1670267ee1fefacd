"""One site after the other: planned, done, proven; or kept, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from utcompile.fold.absorb import plan_absorption
from utcompile.fold.batch_norms import plan_batch_norms
from utcompile.fold.biases import plan_biases
from utcompile.fold.constants import plan_constants, plan_tokens
from utcompile.fold.dequantize import plan_dequantised
from utcompile.fold.float32 import compute_in_float32
from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.fold.maps import plan_map
from utcompile.fold.proof import SiteProof
from utcompile.fold.report import FoldedSite, Status
from utcompile.fold.widen import plan_widening
from utcompile.rewrite import TunedSite, site_nodes
from utcompile.tuners import Adapter, Tuner

# a fold is exact in real arithmetic; float64 leaves 2.2e-16 an operation, sums of some thousand terms less than this
_TOLERANCE = 1e-9
_RETAINED = 0.95  # below this share of the tuner's effect, rounding has eaten it


class Disproved(Exception):
    """A site that has been folded may not be: the fold begins again without it; nothing of it may remain."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(site, reason)
        self.site, self.reason = site, reason


class SiteFolder:
    """Folds the sites of one model.

    Args:
        work: the model being folded.
        float32: let layers whose dtype would lose a tuner's effect compute in float32.
        dequantize: fold beside quantised weights into weights of floating-point numbers.
        lost: filled with the sites that rounding has eaten, and why; the fold begins again without them.
    """

    def __init__(self, work: Work, float32: bool, dequantize: bool, lost: dict[str, str]) -> None:
        self.work, self.float32, self.dequantize, self.lost = work, float32, dequantize, lost
        self.ties = _ties(work.root)

    def fold(self, site: TunedSite) -> FoldedSite:
        """Fold a tuner and prove it; a reason where it must be kept.

        Raises:
            Disproved: its values moved.
        """
        try:
            planned, status = self._plan(site)
        except Unfoldable as reason:
            return FoldedSite(site.id, "kept", reason=str(reason))
        share = planned.retained
        if share is not None and share < _RETAINED and not self.float32:
            return FoldedSite(site.id, "kept", reason=_eaten(share), retained=share)
        measured = share is None or share < _RETAINED
        try:
            return self._commit(site.id, planned, status, measured=measured, rewired=site.form != "weight")
        except Unfoldable as reason:
            return FoldedSite(site.id, "kept", reason=str(reason))

    def _plan(self, site: TunedSite) -> tuple[Planned, Status]:
        tuner = self.work.root.get_submodule(site.name)
        assert isinstance(tuner, Tuner)
        nodes = site_nodes(self.work.graph, site.id)
        if site.form == "weight":
            if not any(site.tunes.values()) and "weight" in site.tunes:
                return plan_dequantised(self.work, site, nodes, self.dequantize), "absorbed"
            return plan_absorption(self.work, site, nodes), "absorbed"
        if site.form == "tokens":
            return plan_tokens(self.work, site, nodes), "constant"
        linear = tuner.channel_map() if site.form in ("parallel", "sequential") else None
        widens = site.form == "parallel" and (linear is not None or isinstance(tuner, Adapter))
        if linear is None and widens:
            return plan_widening(self.work, site, nodes), "widened"
        if linear is None:
            raise Unfoldable(f"no exact fold is known for a {site.form} {site.tuner}")
        try:
            return plan_map(self.work, nodes, linear), "absorbed"
        except Unfoldable as alone:
            if not widens:
                raise
            try:
                return plan_widening(self.work, site, nodes), "widened"
            except Unfoldable as beside:
                raise Unfoldable(f"{alone}; {beside}") from None

    def move_biases(self, original: Collection[str], refused: Mapping[str, str]) -> None:
        """Let biases that folding added move on to layers that had one, where they can."""
        for name, planned in plan_biases(self.work, original):
            if name not in refused:
                self._try(name, planned, "absorbed")

    def fold_base(self, constants: bool, batch_norms: bool, refused: Mapping[str, str]) -> Iterator[FoldedSite]:
        """Fold what the base itself computes for nothing."""
        for name, planned in plan_batch_norms(self.work) if batch_norms else ():
            if isinstance(planned, str) or name in refused:
                yield FoldedSite(name, "kept", reason=planned if isinstance(planned, str) else refused[name])
            else:
                yield self._try(name, planned, "absorbed")
        for name, planned in plan_constants(self.work) if constants else ():
            if name in refused:
                yield FoldedSite(name, "kept", reason=refused[name])
            else:
                yield self._try(name, planned, "constant")

    def _try(self, name: str, planned: Planned, status: Status) -> FoldedSite:
        """Fold what no tuner is about."""
        try:
            return self._commit(name, planned, status, measured=False)
        except Unfoldable as reason:
            return FoldedSite(name, "kept", reason=str(reason))

    def _commit(
        self, name: str, planned: Planned, status: Status, *, measured: bool, rewired: bool = True
    ) -> FoldedSite:
        work, notes = self.work, ""
        proof = SiteProof(work, planned.sources, planned.outputs, name if measured else "")
        results = planned.commit()
        if rewired:  # a weight leaves the values between as they are
            work.forget_view()
        retained = planned.retained if not measured else proof.retained(results)
        assert retained is not None
        if retained < _RETAINED:
            notes = _eaten(retained)
            try:
                if not self.float32:
                    raise Unfoldable(notes)
                results = compute_in_float32(work, sorted(work.touched), results)
                work.forget_view(layouts=True)
                notes, retained = f"in float32: {notes}", proof.retained(results)
            except Unfoldable as reason:
                self.lost[name] = str(reason)
        try:
            found = proof.check(results)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise Disproved(name, f"folded, the site does not run: {error}".partition("\n")[0]) from error
        if found.error > _TOLERANCE:
            raise Disproved(
                name, f"folded, the site differs by {found.error:.1e}; what stands between is not what it seems"
            )
        cloned = self._cloned()
        if cloned:
            notes = "; ".join(filter(None, (notes, f"{cloned:,} bytes of tied weights are cloned")))
        work.settle()
        sizes = {"dtype_error": found.dtype_error, "parameters": found.parameters, "flops": found.flops}
        return FoldedSite(name, status, found.error, notes, retained, cloned=cloned, **sizes)  # type: ignore[arg-type]

    def _cloned(self) -> int:
        """Bytes of the parameters that were tied to others before this site, which keep their values."""
        found = 0
        for name in self.work.touched & self.ties.keys():
            others = self.ties.pop(name) - self.work.touched
            if others:
                dtype, _ = self.work.home_of(name)
                found += self.work.state(name).numel() * dtype.itemsize
            for other in others:
                self.ties[other] = self.ties.get(other, set()) - {name}
        return found


def _eaten(share: float) -> str:
    return f"rounding to the weight's dtype would keep {share:.0%} of the tuner's effect"


def _ties(root: nn.Module) -> dict[str, set[str]]:
    """The other names of parameters that have several."""
    names: dict[int, set[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {n: every - {n} for every in names.values() if len(every) > 1 for n in every}

"""Whether a checkpoint fits a model: its sites, its base, its tensors. What differs harmlessly becomes a note."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from utcompile.errors import UtcError
from utcompile.rewrite.base_print import (
    fingerprint,
    fingerprint_of_format_1,
    tensors_of_base,
    text_of,
)
from utcompile.rewrite.digests import digest_of
from utcompile.rewrite.manifest import Base, Format1, Manifest, SavedSite, versions
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite
from utcompile.rewrite.whole import Whole
from utcompile.rewrite.widths import HOW as _HOW
from utcompile.rewrite.widths import free_fields
from utcompile.rewrite.wiring import first_difference, place_of_site, wiring
from utcompile.rules.measured import all_measured
from utcompile.text import counted

Notes = list[str]
_RULES = "compile with the rules and vars of the manifest"
_SIDES = {"theirs": "in the checkpoint", "mine": "here"}
_SAME_BASE = "build the model with the same architecture and weights as in training"


def check_sites(tuned: TunedModule, manifest: Manifest | Format1, where: str, *, new_widths: bool = False) -> None:
    """Raise where the sites, their tuners or configs are not those of the checkpoint."""
    theirs = {site.id: site for site in manifest.sites}
    mine = {site.id: site for site in tuned.sites}
    check_names(theirs, mine, where)
    for name, site in mine.items():
        _check_site(site, theirs[name], where, free_fields(tuned, site) if new_widths else _HOW)


def note_forms(whole: Whole, manifest: Manifest | Format1, folder: str) -> Notes:
    """A note where sites whose form was measured are computed in another form than the checkpoint's."""
    theirs = all_measured(manifest.rules.measured)
    others = [
        site for site, mine in whole.ruleset.measured.items() if site in theirs and theirs[site].form != mine.form
    ]
    if not others:
        return []
    first = f"{others[0]}: {whole.ruleset.measured[others[0]].form} here, {theirs[others[0]].form} there"
    return [
        f"{counted(len(others), 'site')} of `how: measured` with another form here than in training ({first}): "
        f"the results are equal up to rounding; for the same graph, compile with utc.RuleSet.load({folder!r})"
    ]


def _check_site(mine: TunedSite, theirs: SavedSite, where: str, free: frozenset[str]) -> None:
    config = mine.config.model_dump(mode="json")
    defaults = {k: f.get_default(call_default_factory=True) for k, f in type(mine.config).model_fields.items()}
    old = {**{k: v for k, v in defaults.items() if k not in theirs.config and k in config}, **theirs.config}
    for key in ["tuner", *sorted(config.keys() | old.keys())]:
        if key in free:
            continue
        pair = (theirs.tuner, mine.tuner) if key == "tuner" else (old.get(key), config.get(key))
        if pair[0] != pair[1]:
            raise UtcError(
                f"the tuner of {mine.id} is another one",
                where=where,
                why=f"{key} is {pair[0]!r:.80} in the checkpoint, {pair[1]!r:.80} here",
                fix=_RULES,
                code="checkpoint/other-sites",
            )


def check_places(tuned: TunedModule, manifest: Manifest | Format1, where: str) -> None:
    """Raise where a tuner is inserted elsewhere; asked after `check_base`, so that the base is the same."""
    theirs = {site.id: site.place for site in manifest.sites}
    for site in tuned.sites:
        place, here = theirs[site.id], place_of_site(tuned, site)
        if place is not None and place != here:
            raise UtcError(
                f"the tuner of {site.id} is inserted at another place",
                where=where,
                why=f"it is at {'; '.join(place)} in the checkpoint, at {'; '.join(here)} here",
                fix=_RULES,
                code="checkpoint/other-sites",
            )


def check_base(tuned: TunedModule, manifest: Manifest | Format1, where: str) -> Notes:
    """Raise where the base is not the one that the checkpoint was trained on."""
    if isinstance(manifest, Format1):
        return _check_format_1(tuned, manifest, where)
    notes = check_base_tensors(manifest.base, tensors_of_base(tuned), lambda: fingerprint(tuned), where)
    return notes + _check_wiring(tuned, manifest, where)


def check_base_tensors(
    theirs: Base, mine: Mapping[str, torch.Tensor], fingerprint_here: Callable[[], str], where: str
) -> Notes:
    """Raise where the frozen tensors are others than those of the checkpoint."""
    cast: dict[tuple[str, str], str] = {}
    differing = {n: why for n in sorted(theirs.tensors.keys() | mine) if (why := _differs(n, theirs, mine, cast))}
    if differing:
        name, why = next(iter(differing.items()))
        only_dtype = all(w.startswith("only") for w in differing.values())
        raise UtcError(
            "this checkpoint was trained on another base",
            where=where,
            why=f"{name} is the first of {len(differing)} tensors that differ: {why} "
            f"(fingerprint {theirs.fingerprint[:12]}… there, {fingerprint_here()[:12]}… here)",
            fix="convert the model to the dtype that it had in training" if only_dtype else _SAME_BASE,
            code="checkpoint/other-base",
        )
    return _notes_of_casts(cast)


def _differs(name: str, base: Base, mine: Mapping[str, torch.Tensor], cast: dict[tuple[str, str], str]) -> str | None:
    """In what a tensor of the base differs; None where it does not, which a cast may be the reason for."""
    theirs = base.tensors.get(name)
    if theirs is None:
        return "the checkpoint's base has no such tensor"
    if name not in mine:
        return "the model has no such tensor"
    value, dtype = mine[name], text_of(mine[name].dtype)
    if list(value.shape) != theirs.shape:
        return f"its shape is {theirs.shape} in the checkpoint, {list(value.shape)} here"
    if dtype in theirs.digests:
        if digest_of(name, value, value.dtype) != theirs.digests[dtype]:
            return "its values are others"
    else:
        wider = getattr(torch, theirs.dtype, None)
        dtypes = f"its dtype is {theirs.dtype} in the checkpoint, {dtype} here"
        if not isinstance(wider, torch.dtype) or not (wider.is_floating_point and value.is_floating_point()):
            return dtypes
        if digest_of(name, value, wider) != theirs.digests.get(theirs.dtype):
            if value.element_size() <= wider.itemsize:
                return f"only its dtype differs, and values cannot be compared: {dtypes}"
            return f"its values are others, and {dtypes}"
    if dtype != theirs.dtype:
        cast.setdefault((theirs.dtype, dtype), name)
    return None


def _check_wiring(tuned: TunedModule, manifest: Manifest, where: str) -> Notes:
    difference = first_difference(manifest.base.operations, wiring(tuned).lines, _SIDES)
    if difference is None:
        return []
    theirs, mine = manifest.versions, versions()
    changed = [f"{n} {theirs[n]} -> {mine[n]}" for n in sorted(theirs.keys() & mine.keys()) if theirs[n] != mine[n]]
    if changed:
        return [
            f"the base has the same weights, and other operations: {difference}. The reason may be {', '.join(changed)}"
        ]
    raise UtcError(
        "this checkpoint was trained on a base that computes something else with the same weights",
        where=where,
        why=difference,
        fix=_SAME_BASE,
        code="checkpoint/other-base",
    )


def _check_format_1(tuned: TunedModule, manifest: Format1, where: str) -> Notes:
    mine = fingerprint_of_format_1(tuned)
    if manifest.base != mine:
        raise UtcError(
            "this checkpoint was trained on another base",
            where=where,
            why=f"its base has the fingerprint {manifest.base[:12]}…, this model {mine[:12]}…; in format 1, "
            "the fingerprint includes the head as it was before training",
            fix=_SAME_BASE,
            code="checkpoint/other-base",
        )
    return [
        "this checkpoint has format 1, in which nothing shows whether tensors and manifest belong together; "
        "save it again with utc.save_tuners"
    ]


def check_tensors(
    found: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    where: str,
    *,
    new_head: bool = False,
    free: Mapping[str, int] | None = None,
) -> Notes:
    """Raise where tensors are of another shape or kind of dtype; `free` says which dimension may be of another size."""
    cast: dict[tuple[str, str], str] = {}
    for name, value in wanted.items():
        theirs = found[name]
        dim = 0 if new_head and name.startswith("train:") else (free or {}).get(name)
        if not _is_shaped(theirs, value, dim):
            raise UtcError(
                f"{name} has the shape {list(theirs.shape)} in the checkpoint, {list(value.shape)} here",
                where=where,
                fix=_RULES,
                code="checkpoint/shape",
            )
        if theirs.dtype == value.dtype:
            continue
        if _kind(theirs) != _kind(value) or _kind(value) == "other":
            raise UtcError(
                f"{name} is {text_of(theirs.dtype)} in the checkpoint, {text_of(value.dtype)} here",
                where=where,
                fix=_RULES,
                code="checkpoint/shape",
            )
        cast.setdefault((text_of(theirs.dtype), text_of(value.dtype)), name)
    return _notes_of_casts(cast)


def _is_shaped(theirs: torch.Tensor, mine: torch.Tensor, free: int | None) -> bool:
    if theirs.dim() != mine.dim():
        return False
    return all(i == free or a == b for i, (a, b) in enumerate(zip(theirs.shape, mine.shape, strict=True)))


def _kind(value: torch.Tensor) -> str:
    return "float" if value.is_floating_point() else "complex" if value.is_complex() else "other"


def _notes_of_casts(cast: Mapping[tuple[str, str], str]) -> Notes:
    return [f"{name} and others like it were {a} in training, and are {b} here" for (a, b), name in cast.items()]


def check_names(theirs: Mapping[str, object], mine: Mapping[str, object], where: str) -> None:
    """Raise where sites or tensors are missing or unknown."""
    missing, surplus = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
    if missing or surplus:
        raise UtcError(
            "the checkpoint's sites are not this model's",
            where=where,
            why="; ".join(
                f"{word}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                for word, names in (("missing", missing), ("unknown", surplus))
                if names
            ),
            fix=_RULES,
            code="checkpoint/other-sites",
        )

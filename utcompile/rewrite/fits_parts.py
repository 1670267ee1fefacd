"""Whether a checkpoint fits a model of which parts are tuned: each part by itself, and then the rest."""

from __future__ import annotations

from utcompile.errors import UtcError
from utcompile.rewrite.base_print import digest_of_prints, prints_of
from utcompile.rewrite.fits import Notes, check_base_tensors, check_names
from utcompile.rewrite.manifest import Format1, Manifest
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.whole import Whole

_KINDS = "load it into a model that was compiled with the same `within=` as the one that was saved"


def parts_in(whole: Whole, manifest: Manifest | Format1, where: str) -> list[tuple[TunedModule, Manifest | Format1]]:
    """Each tuned graph of a model, with what a manifest says of it.

    Raises:
        UtcError: the checkpoint has other parts.
    """
    theirs = manifest.parts if isinstance(manifest, Manifest) else {}
    if whole.is_one_graph and not theirs:
        return [(whole.parts[""], manifest)]
    if whole.is_one_graph or not theirs or isinstance(manifest, Format1):
        raise UtcError(
            "this checkpoint is of a whole model, and here parts are tuned"
            if not theirs
            else "this checkpoint is of parts of a model, and here the whole model is tuned",
            where=where,
            why=f"the parts are {', '.join(list(theirs or whole.parts)[:4])}",
            fix=_KINDS,
            code="checkpoint/other-sites",
        )
    check_names(theirs, whole.parts, where)
    return [
        (tuned, manifest.model_copy(update={k: getattr(theirs[path], k) for k in ("base", "inputs", "sites")}))
        for path, tuned in whole.parts.items()
    ]


def check_outside(whole: Whole, manifest: Manifest | Format1, where: str) -> Notes:
    """Raise where frozen parameters outside of the parts are others than in training."""
    if whole.is_one_graph or isinstance(manifest, Format1):
        return []
    mine = whole.frozen_outside()
    return check_base_tensors(manifest.base, mine, lambda: digest_of_prints(prints_of(mine), []), where)

"""Tasks whose tuners have another rank or width than the file's: the axes of their tensors, and their fixed factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utcompile.deploy.task_files import AxisNames, FileSite
from utcompile.errors import UtcError
from utcompile.rewrite import TunedModule
from utcompile.rewrite.widths import HOW, factor_of, free_fields, inner_of

Config = Mapping[str, object]


def sites_of(tuned: TunedModule) -> list[FileSite]:
    """The sites of a module, with what a task may have otherwise."""
    found = []
    for site in tuned.sites:
        inner = inner_of(tuned, site)
        found.append(
            FileSite(
                id=site.id,
                tuner=site.tuner,
                config=site.config.model_dump(mode="json"),
                free=sorted(free_fields(tuned, site)),
                field=inner.field if inner else None,
                axes={f"{site.id}:{name}": dim for name, dim in inner.axes.items()} if inner else {},
                results=[f"{site.id}:{name}" for name in inner.results] if inner else [],
            )
        )
    return found


def widths_of(tuned: TunedModule, names: Mapping[str, str]) -> dict[str, AxisNames]:
    """The tensors with an inner axis, and the name of it per dimension: `RULE.FIELD`, one per rule and size.

    Args:
        names: the module's names of the tensors of a checkpoint.
    """
    tensors, numbers = dict(tuned.named_parameters(remove_duplicate=False)), dict[tuple[str, object], int]()
    found: dict[str, AxisNames] = {}
    for site, own in zip(sites_of(tuned), tuned.sites, strict=True):
        if site.field is None:
            continue
        word = f"{own.rule}.{site.field}"
        number = numbers.setdefault((word, site.config[site.field]), sum(known == word for known, _ in numbers) + 1)
        for key, dim in site.axes.items():
            name = names[key]
            axes: AxisNames = [None] * tensors[name].dim()
            axes[dim] = word if number == 1 else f"{word}{number}"
            found[name] = axes
    return found


def with_the_files_factors(
    tensors: Mapping[str, Tensor], sites: Sequence[FileSite], theirs: Mapping[str, Config], where: str
) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a file whose tuners have another fixed factor, as alpha / r: times the ratio.

    Raises:
        UtcError: a config of the checkpoint is none, or says another width than its tensors have.
    """
    found = dict(tensors)
    for site in sites:
        config = theirs[site.id]
        for key, dim in site.axes.items():
            size = config.get(str(site.field), site.config.get(str(site.field)))
            if tensors[key].dim() <= dim or tensors[key].shape[dim] != size:
                raise UtcError(
                    f"{site.field} of {site.id} is {size} in the manifest, and a tensor is {list(tensors[key].shape)}",
                    where=where,
                    code="checkpoint/shape",
                )
        if not site.results or all(config.get(field) == site.config.get(field) for field in site.free):
            continue
        ratio = factor_of(site.tuner, config, where) / factor_of(site.tuner, site.config, where)
        for key in site.results if ratio != 1 else ():
            found[key] = (tensors[key].to(torch.float64) * ratio).to(tensors[key].dtype)
    return found


def without_width(
    tensors: Mapping[str, Tensor], sites: Sequence[FileSite], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors of tuners that are the identity, without their inner axis: they then cost nothing.

    Where all columns of the last matrix are zero, nothing changes without them.
    """
    found: dict[str, Tensor] = {}
    for site in sites:
        last = [names[key] for key in site.results if key in site.axes]
        if last and not any(bool(torch.any(tensors[name] != 0)) for name in last):
            found |= {names[key]: tensors[names[key]].narrow(dim, 0, 0) for key, dim in site.axes.items()}
    return found


def difference(site: FileSite, tuner: object, config: Config) -> str | None:
    """In what a run's site is another one than the file's, but for the fields that are free; None where in nothing."""
    if site.tuner != tuner:
        return f"its tuner is {tuner!r:.80} in the run, {site.tuner!r} in the file"
    for field in sorted(site.config.keys() | config.keys()):
        if field not in {*site.free, *HOW} and site.config.get(field) != config.get(field):
            return f"{field} is {config.get(field)!r:.80} in the run, {site.config.get(field)!r:.80} in the file"
    return None

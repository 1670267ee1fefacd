"""The text of plans, differences and explanations: amounts, runs of module paths, aligned columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r"\d+(?=\.)|(?:^|(?<=\.))\d+$")
_PREFIXES = ("", "k", "M", "G", "T", "P")


def alike(path: str) -> str:
    """A path with `*` for the numbers of its blocks and stages: equal for the copies of a repeated block, and a glob.

    >>> alike("layers.1.blocks.10.mlp"), alike("layer2.0.conv1"), alike("blocks.3"), alike("conv1")
    ('layers.*.blocks.*.mlp', 'layer*.*.conv1', 'blocks.*', 'conv1')
    """
    return _NUMBER.sub("*", path)


def groups(paths: Iterable[str]) -> Mapping[str, list[str]]:
    """Paths grouped by `alike`, in order.

    >>> groups(["blocks.0.qkv", "head", "blocks.1.qkv"])
    {'blocks.*.qkv': ['blocks.0.qkv', 'blocks.1.qkv'], 'head': ['head']}
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(alike(path), []).append(path)
    return found


def run(paths: Sequence[str]) -> str:
    """Paths that are alike, as one: a number that varies from its least to its greatest.

    >>> run(["blocks.0", "blocks.1", "blocks.11"]), run(["layer1.0.conv2", "layer2.1.conv2"]), run([""])
    ('blocks.0…11', 'layer1…2.0…1.conv2', '(root)')
    """
    first, *rest = [path or "(root)" for path in dict.fromkeys(paths)]
    if not rest:
        return first
    if len({alike(path) for path in (first, *rest)}) > 1:
        return f"{first} … {rest[-1]}"
    return ".".join(_span(parts) for parts in zip(*(path.split(".") for path in (first, *rest)), strict=True))


def _span(parts: Sequence[str]) -> str:
    if len(set(parts)) == 1:
        return parts[0]
    digits = [re.search(r"\d+$", part) for part in parts]
    numbers = sorted(int(found[0]) for found in digits if found)
    return f"{parts[0].rstrip('0123456789')}{numbers[0]}…{numbers[-1]}"


def listed(paths: Sequence[str], most: int = 8) -> str:
    """Many paths on one line, grouped by `alike`.

    >>> listed(["blocks.0.qkv", "blocks.1.qkv", "head"])
    'blocks.*.qkv (2), head'
    """
    found = [f"{name} ({len(all_)})" if len(all_) > 1 else all_[0] or "(root)" for name, all_ in groups(paths).items()]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def amount(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix.

    >>> amount(950), amount(60_518_400), amount(12_734_080, "B"), amount(0)
    ('950', '60.5 M', '12.7 MB', '0')
    """
    scaled, power = float(number), 0
    while abs(scaled) >= 999.5 and power < len(_PREFIXES) - 1:
        scaled, power = scaled / 1000, power + 1
    suffix = f"{_PREFIXES[power]}{unit}"
    return f"{scaled:.3g} {suffix}" if suffix else f"{scaled:.3g}"


def percent(share: float) -> str:
    """A share with two digits.

    >>> percent(0.0144), percent(0.4477), percent(0)
    ('1.4 %', '45 %', '0 %')
    """
    return f"{100 * share:.2g} %"


def columns(rows: Sequence[Sequence[str]], right: int) -> list[str]:
    """Rows as aligned lines; the last `right` columns are right-aligned.

    >>> columns([("at", "FLOPs"), ("head", "7")], 1)
    ['at    FLOPs', 'head      7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - right
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def counted(number: int, word: str) -> str:
    """A number and its noun.

    >>> counted(1, "site"), counted(12, "site"), counted(2, "matrix")
    ('1 site', '12 sites', '2 matrices')
    """
    several = f"{word.removesuffix('ix')}ices" if word.endswith("ix") else f"{word}s"
    return f"{number:,} {word if number == 1 else several}"

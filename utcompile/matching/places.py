"""The module paths of a captured model, and the nearest paths and globs to one that names none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from utcompile.graph import GraphView, info
from utcompile.rules import glob_match
from utcompile.text import alike

Places = Mapping[str, str]


def places(view: GraphView) -> dict[str, str]:
    """The path of every module, in graph order, with its class; the root's is the empty text."""
    found = {"": type(view.module).__name__}
    for node in view.nodes:
        for frame in (*view.frames(node), *info(node).ends):
            found.setdefault(frame.path, frame.cls)
    for path, module in view.module.named_modules():  # modules that the graph never calls
        found.setdefault(path, type(module).__name__)
    return found


def nearest_path(path: str, known: Iterable[str]) -> str:
    """A hint for an unknown path: the nearest path, or the children where it leaves the tree.

    >>> nearest_path("block.0.mpl", ["blocks", "blocks.0", "blocks.0.mlp", "head"])
    "did you mean 'blocks.0.mlp'?"
    >>> nearest_path("blocks.7", ["blocks", "blocks.0", "blocks.1"])
    "'blocks' has: 0, 1"
    >>> nearest_path("zzz", ["blocks", "head"])
    'the model has: blocks, head'
    """
    every = {prefix for p in known if p for prefix in _prefixes(p)}
    at = ""
    for part in path.split("."):
        below = list(dict.fromkeys(p for p in sorted(every, key=_natural) if p.rpartition(".")[0] == at))
        names = [p.rpartition(".")[2] for p in below]
        if part not in names:
            near = [] if part.isdigit() else difflib.get_close_matches(part, names, n=1, cutoff=0.6)
            if not near:
                return _children(at, names, every)
            part = near[0]
        at = f"{at}.{part}" if at else part
    return f"did you mean {at!r}?"


def _children(at: str, names: Sequence[str], every: Iterable[str]) -> str:
    if not names:
        return f"{at!r} has no modules in it" if at in every else "the model has no modules"
    shown = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])} … {names[-1]}"
    return f"{repr(at) if at else 'the model'} has: {shown}"


def wider_glob(glob: str, paths: Sequence[str]) -> str | None:
    """A glob near to one that matches no path: one segment longer, or with the spelling of the paths.

    >>> wider_glob("blocks.*", ["blocks.0.mlp.fc1"]), wider_glob("mlp.fc1", ["blocks.0.mlp.fc1"])
    ('blocks.**', '**.mlp.fc1')
    >>> wider_glob("block.*.mlp", ["blocks.0.mlp", "head"]), wider_glob("**.nrm1", ["norm", "blocks.0.norm1"])
    ('blocks.*.mlp', '**.norm1')
    >>> wider_glob("zzz", ["head"])
    """
    words = sorted({part for path in paths for part in path.split(".")})
    spelt = ".".join(part if "*" in part or part in words else _near(part, words) for part in glob.split("."))
    for candidate in (spelt, *_wider(spelt)):
        if any(glob_match(candidate, path) for path in paths):
            return candidate
    known = {alike(path): path for path in reversed(paths) if path}
    near = difflib.get_close_matches(alike(glob), known, n=1, cutoff=0.7)
    if not near:
        return None
    return near[0] if "*" in glob else known[near[0]]


def _near(word: str, words: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.6)), word)


def _wider(glob: str) -> Iterator[str]:
    parts = glob.split(".")
    for i in reversed(range(len(parts))):
        if parts[i] == "*":
            yield ".".join((*parts[:i], "**", *parts[i + 1 :]))
    if parts[-1] not in ("*", "**"):
        yield f"{glob}.**"
    if parts[0] not in ("*", "**"):
        yield f"**.{glob}"
        yield f"**.{glob}.**"


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts numbers as numbers: blocks.2 before blocks.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]

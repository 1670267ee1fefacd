"""Globs over dotted module paths: `*` within one segment, `**` over any number of them."""

from __future__ import annotations

from functools import lru_cache


def glob_match(pattern: str, dotted_path: str) -> bool:
    """Whether a dotted path matches a glob.

    `*` matches one segment or a part of one; `**` matches any number of segments, also none.

    Example:
        >>> glob_match("blocks.1*", "blocks.11"), glob_match("blocks.*", "blocks.1.mlp")
        (True, False)
        >>> glob_match("blocks.**", "blocks"), glob_match("**.mlp", "blocks.1.mlp")
        (True, True)
    """
    segments = tuple(dotted_path.split(".")) if dotted_path else ()
    reachable = {0}  # numbers of segments that the pattern may have consumed so far
    for part in _split(pattern):
        if part == "**":
            reachable = set(range(min(reachable), len(segments) + 1))
        else:
            reachable = {n + 1 for n in reachable if n < len(segments) and _segment_match(part, segments[n])}
        if not reachable:
            return False
    return len(segments) in reachable


def glob_problem(pattern: str) -> str | None:
    """The reason why a text is not a glob; None for a glob.

    >>> glob_problem("blocks.**.mlp")
    >>> glob_problem("blocks..mlp")
    'a part between two dots is empty'
    """
    if not pattern:
        return "it is empty"
    for part in pattern.split("."):
        if not part:
            outer = pattern.startswith(".") or pattern.endswith(".")
            return "it begins or ends with a dot" if outer else "a part between two dots is empty"
        if "**" in part and part != "**":
            return "'**' matches whole parts between dots: write '**' alone, or one '*' within a part"
        if set(part) & set("?[]{}"):
            return "only '*' and '**' are wildcards"
        if any(character.isspace() for character in part):
            return "it has a space in it"
    return None


@lru_cache(maxsize=1024)
def _split(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("."))


def _segment_match(part: str, segment: str) -> bool:
    first, *rest = part.split("*")
    if not rest:
        return part == segment
    *middle, last = rest
    if not segment.startswith(first) or len(segment) < len(first) + len(last) or not segment.endswith(last):
        return False
    index, end = len(first), len(segment) - len(last)
    for piece in middle:  # the leftmost place for each piece leaves the most room for the next
        found = segment.find(piece, index, end)
        if found < 0:
            return False
        index = found + len(piece)
    return True

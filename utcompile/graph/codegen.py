"""Code of a graph whose modules have names that Python reserves: a `ModuleDict` with the keys `class`, `in`, `None`."""

from __future__ import annotations

import keyword

from torch import fx
from torch.fx.graph import CodeGen

from utcompile.graph.functions import copied


def quote_keywords(graph: fx.Graph) -> None:
    """Let a graph spell `getattr(self.heads, "class")` for `self.heads.class`, where it has such a name."""
    if any(n.op in ("call_module", "get_attr") and _has_keyword(str(n.target)) for n in graph.nodes):
        graph.set_codegen(_Quoting())


def _has_keyword(path: str) -> bool:
    return any(map(keyword.iskeyword, path.split(".")))


def _format_target(base: str, target: str) -> str:
    """torch's own asks only `isidentifier()`, which is true of `class`."""
    for part in target.split("."):
        plain = part.isidentifier() and not keyword.iskeyword(part)
        base = f"{base}.{part}" if plain else f'getattr({base}, "{part}")'
    return base


class _Quoting(CodeGen):
    _gen_python_code = copied(CodeGen._gen_python_code, _format_target=_format_target)

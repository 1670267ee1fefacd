"""Fixes for the most common mistakes in rule files: words of other libraries, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_OPERATORS: Mapping[str, str] = MappingProxyType(
    {"Add": "add", "Sub": "sub", "Mult": "mul", "Div": "div", "MatMult": "matmul"}
)
_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "rank": "write r",
        "lora_r": "write r",
        "lora_alpha": "write alpha",
        "lora_dropout": "write dropout",
        "bottleneck": "write dim",
        "bottleneck_dim": "write dim",
        "reduction_factor": "write dim, the width itself",
        "target_modules": "name the layers in the rule's match: match: {op: linear}, with inside: {module: …} for some",
        "modules_to_save": "write train: ['module:…'] at the top of the file",
        "layers_to_transform": "write select: or inside: in the rule",
        "num_virtual_tokens": "write length",
    }
)
_MODULES = ("nn", "torch", "F", "timm")
_SELECT = re.compile(r"\s*(first|last|every)\s+(\d+)\s*")


def key_fix(name: str, known: list[str]) -> str | None:
    """What to write instead of a key of another library; None where that is unknown.

    >>> key_fix("rank", ["r", "alpha"]), key_fix("rank", ["dim"]), key_fix("colour", ["r"])
    ('write r', 'write dim', None)
    """
    found = _KEYS.get(name)
    word = (found or "").removeprefix("write ").partition(",")[0]
    if name in ("rank", "r", "lora_r") and "r" not in known:
        return "write dim" if "dim" in known else None
    return found if found is None or " " in word or word in known else None


def value_fix(key: str, value: object, *, in_list: bool) -> str | None:
    """What to write instead of a value of the wrong kind.

    >>> value_fix("train", "out", in_list=False), value_fix("select", "last 2", in_list=False)
    ("write train: ['module:out']", 'write select: {last: 2}')
    """
    if in_list and isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        return f"quote it: '{name}:{inner}'" if key == "train" else f"quote it: '{name}: {inner}'"
    if in_list or not isinstance(value, str):
        return None
    if key == "train":
        return f"write train: [{value if ':' in value else f'module:{value}'!r}]"
    if key == "where":
        return f"write where: [{value!r}]" if not re.search(r"['\[{,]", value) else "put the comparison into a list"
    if key == "select" and (found := _SELECT.fullmatch(value)):
        return f"write select: {{{found[1]}: {found[2]}}}"
    return "write select: {first: 2}, {last: 2}, {every: 2} or {indices: [0, -1]}" if key == "select" else None


def operator_fix(kind: str, left: str, right: str) -> str | None:
    """The call to write instead of an operator of Python.

    >>> operator_fix("Add", "x", "norm(c)")
    'write add(x, norm(c))'
    """
    return f"write {_OPERATORS[kind]}({left}, {right})" if kind in _OPERATORS else None


def operation_fix(dotted: str, known: frozenset[str]) -> str | None:
    """The canonical name to write instead of a module or function of torch.

    >>> known = frozenset(["conv2d", "layer_norm", "batch_norm", "relu"])
    >>> [operation_fix(f"nn.{n}", known) for n in ("Conv2d", "LayerNorm", "BatchNorm2d", "GELU")]
    ['write conv2d', 'write layer_norm', 'write batch_norm', None]
    """
    root, _, last = dotted.rpartition(".")
    if root and root.partition(".")[0] not in _MODULES:
        return None
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    for name in (last, last.lower(), snake, re.sub(r"\d+d$", "", snake)):
        if name in known:
            return f"write {name}"
    return None

"""What a file says of itself: documented keys of its metadata, one JSON value each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import NoneType

import torch
from torch import Tensor, nn

from utcompile.errors import UtcError, check_type
from utcompile.rewrite import TunedModule
from utcompile.rewrite.manifest import version_of_utcompile

PREFIX = "utcompile."
KEYS = {
    "version": "the version of utcompile that wrote the file",
    "axes": "the sizes that vary: a list of name, min, max, step",
    "fixed": "the sizes of inputs that do not vary, as texts",
    "guards": "relations between sizes for which the file is right, as texts",
    "dtype": "float32, float16-weights or float16",
    "base": "a hash of the model's weights; of a run, the fingerprint of its base",
    "rules": "the rules of the tuners: name, vars, text",
    "labels": "the names of the classes, in order",
    "outputs": "of a run, what they mean: task, kind; of numbers mean and std, by which they are standardised",
    "preprocessing": "size, mean, std, interpolation, crop_pct; for texts, tokenizer",
    "parity": "the largest difference from PyTorch, the tolerance, and the sizes that were compared",
    "tasks": "of a file with several tasks: name, labels, classes, outputs, sha256 of each",
    "routing": "of a file with several tasks: call or row",
    "live": "of a file with several tasks: each optional input, with the parameters that it is made of",
}


def written(facts: Mapping[str, object]) -> dict[str, str]:
    """Facts as entries of a file's metadata; what is None or empty is left out."""
    return {PREFIX + key: json.dumps(value) for key, value in facts.items() if value not in (None, (), [], {}, "")}


def read(entries: Mapping[str, str]) -> dict[str, object]:
    """The facts in a file's metadata; what is no JSON, as files before 0.3 have it, is a text."""
    found: dict[str, object] = {}
    for key, text in entries.items():
        if key.startswith(PREFIX):
            try:
                found[key.removeprefix(PREFIX)] = json.loads(text)
            except ValueError:
                found[key.removeprefix(PREFIX)] = text
    return found


def facts_of(model: nn.Module) -> dict[str, object]:
    """What a model itself says: its version, its weights and its rules."""
    facts: dict[str, object] = {"version": version_of_utcompile(), "base": hash_of(model)}
    if isinstance(model, TunedModule):
        rules = model.ruleset
        variables = json.loads(json.dumps(dict(rules.vars), default=str))
        facts["rules"] = {"name": rules.name, "vars": variables, "text": rules.text}
    return facts


def hash_of(model: nn.Module) -> str:
    """A hash over the names, shapes and values of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values; of one without plain memory, nothing."""
    try:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):
        return b""


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raise where metadata is no mapping from texts to texts, or takes a key of ours."""
    check_type(metadata, (Mapping, NoneType), "metadata", "a mapping from texts to texts")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UtcError(
                f"metadata {key!r} is a {type(value).__name__}",
                fix="ONNX metadata is text: use json.dumps",
                code="arguments/value",
            )
        if key.startswith(PREFIX):
            raise UtcError(
                f"metadata has the key {key!r}",
                why=f"keys that begin with {PREFIX!r} say what utcompile knows of the file",
                fix="give the entry another name",
                code="arguments/value",
            )


def check_labels(labels: object, outputs: Mapping[str, Tensor]) -> None:
    """Raise where no output has a dimension with one place per label."""
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    if isinstance(labels, (list, tuple)) and not any(len(labels) in shape[1:] for shape in shapes.values()):
        raise UtcError(
            f"there are {len(labels)} labels, and no output has {len(labels)} classes",
            why="; ".join(f"{name} is of shape {shape}" for name, shape in shapes.items()),
            fix="give one name per class, in order",
            code="arguments/value",
        )


def check_described(labels: object, preprocessing: object) -> None:
    """Raise where labels or preprocessing are no plain data of their kind."""
    is_list = isinstance(labels, (list, tuple)) and all(isinstance(label, str) for label in labels)
    if labels is not None and (not is_list or not labels):
        raise UtcError(
            f"labels must be a list of names, not {labels!r:.80}",
            fix='give the names of the classes in order: ["cat", "dog"]',
            code="arguments/type",
        )
    check_type(preprocessing, (Mapping, NoneType), "preprocessing", "a mapping of plain data")
    try:
        json.dumps(preprocessing)
    except (TypeError, ValueError) as error:
        raise UtcError("preprocessing is no plain data", why=str(error), code="arguments/type") from error

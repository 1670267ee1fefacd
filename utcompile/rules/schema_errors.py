"""Pydantic's errors as one `UtcError` that names the key, its place in the file, and the nearest known word."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules.entries import IDENTIFIER, LABEL, UNION_TAGS
from utcompile.rules.passage import short
from utcompile.rules.slips import key_fix, value_fix
from utcompile.rules.yaml12 import Node

_Model = TypeVar("_Model", bound=BaseModel)
_Location = tuple[str | int, ...]

_NEEDED: Mapping[str, str] = MappingProxyType(
    {
        "string_type": "a text",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "literal_error": "{expected}",
        "enum": "{expected}",
        "too_short": "a list of {min_length} or more",
        "too_long": "a list of {max_length} or fewer",
    }
)
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        LABEL: "a name of at most 64 letters, digits, - and _",
        IDENTIFIER: "a name of at most 64 letters, digits and _",
    }
)


def validate(model: type[_Model], node: Node, found: UtcError | None = None) -> _Model:
    """Check a part of a rule file by a pydantic model.

    Args:
        model: the model of the part.
        node: the part.
        found: an error that was found before, which may come from a misspelt key.

    Raises:
        UtcError: the first mistake, at its place in the file. An unknown key is reported before a missing key and
            before `found`, because it is often the misspelt key.
    """
    _check_finite(node, "this")
    try:
        # Through JSON, where pydantic can be strict (`"10"` is no number and `on` no boolean) and still makes a tuple
        # of a list.
        checked = model.model_validate_json(json.dumps(node.data), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]
        raise (found if found and not unknown else _convert((unknown or problems)[0], model, node)) from None
    except UtcError as error:  # a tuner's config may raise its own
        where = error.where or str(node.mark)
        raise UtcError(error.what, where=where, why=error.why, fix=error.fix) from None
    if found:
        raise found
    return checked


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a mapping, as a rule file writes them."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


def shown(value: object) -> str:
    """A value for a message: its type and its text, shortened."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text '{short(value)}'"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a mapping"
    return f"the number {short(value)}"


def _check_finite(node: Node, key: str) -> None:
    """Refuse infinite numbers and NaN, which neither JSON nor any field of a rule file has."""
    match node.content:
        case float(number) if not math.isfinite(number):
            what = f"'{key}' must be a finite number"
            raise UtcError(what, where=str(node.mark), why=f"it is {shown(number)}")
        case tuple(items):
            for item in items:
                _check_finite(item, key)
        case dict(entries):
            for name, value in entries.items():
                _check_finite(value, name)


def _convert(problem: ErrorDetails, model: type[BaseModel], root: Node) -> UtcError:
    kind, context = problem["type"], problem.get("ctx", {})
    *parents, last = problem["loc"] or ("",)
    # Pydantic puts the tag of a union's member into the location; an unknown key is the file's own, whatever it reads.
    own = kind == "extra_forbidden" or last not in UNION_TAGS
    location: _Location = tuple(part for part in parents if part not in UNION_TAGS) + ((last,) if own else ())
    match kind:
        case "extra_forbidden":
            return _unknown_key(location, model, root)
        case "missing":
            return _missing_key(location, root)
        case "rule":
            node = root.nearest(*location)
            where = str(node.keys.get(context["key"], node.mark))
            return UtcError(context["what"], where=where, fix=context["fix"])
    if location[-1] == "[key]":  # a key of a free mapping that is no proper name
        *parents, name, _ = location
        where = str(root.nearest(*parents).keys.get(str(name), root.mark))
        return _wrong_value(problem, f"the key '{name}'", name, where)
    key = next((part for part in reversed(location) if isinstance(part, str)), "this")
    subject = f"an item of '{key}'" if isinstance(location[-1], int) else f"'{key}'"
    return _wrong_value(problem, subject, problem["input"], str(root.nearest(*location).mark))


def _unknown_key(location: _Location, model: type[BaseModel], root: Node) -> UtcError:
    *parents, name = location
    owner = root.nearest(*parents)
    where = str(owner.keys.get(str(name), owner.mark))
    known = list(keys_of(_model_at(model, tuple(parents))))
    fix = key_fix(str(name), known) or did_you_mean(str(name), known)
    return UtcError(f"unknown key '{name}'", where=where, fix=fix)


def _missing_key(location: _Location, root: Node) -> UtcError:
    *parents, name = location
    owner = f"'{parents[-1]}'" if parents else "the rule file"
    if parents and isinstance(parents[-1], int):
        owner = f"an item of '{parents[-2]}'"
    where = str(root.nearest(*parents).mark)
    return UtcError(
        f"{owner} lacks the key '{name}'", where=where, fix=f"add {name}: {1 if name == 'version' else '…'}"
    )


def _wrong_value(problem: ErrorDetails, subject: str, value: object, where: str) -> UtcError:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":  # a validator's own words
        what, _, hint = str(context["error"]).partition("; ")
        return UtcError(what, where=where, why=f"{subject} is {shown(value)}", fix=hint or None)
    of, in_list = subject.removeprefix("an item of ").strip("'"), subject.startswith("an item of")
    if kind == "rule_union":
        fix = value_fix(of, value, in_list=in_list)
        return UtcError(f"{subject} {problem['msg']}", where=where, why=f"it is {shown(value)}", fix=fix)
    needed = _NAMES.get(context.get("pattern", "")) or _NEEDED.get(kind)
    what = f"{subject} must be {needed.format(**context)}" if needed else f"{subject}: {problem['msg']}"
    words = _words(context) if kind in ("literal_error", "enum") else []
    near = did_you_mean(value, words) if words and isinstance(value, str) else None
    fix = near or value_fix(of, value, in_list=in_list)
    return UtcError(what, where=where, why=f"it is {shown(value)}", fix=fix)


def _words(context: Mapping[str, object]) -> list[str]:
    """The words of pydantic's "'none', 'scalar' or 'channel'"; none of a number's."""
    return re.findall(r"'([^']+)'", str(context["expected"]))


def _model_at(model: type[BaseModel], location: _Location) -> type[BaseModel]:
    """The model of the mapping at a location; every field here has at most one kind of mapping."""
    current = model
    for part in location:
        for name, field in current.model_fields.items():
            if part == (field.alias or name):
                current = _model_in(field.annotation) or current
                break
    return current


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part))), None)

"""The JSON Schema says of a file what the loader says of it."""

from __future__ import annotations

import json

import pytest

from utcompile.rules import json_schema, shipped_rules
from utcompile.rules.schema import Entry
from utcompile.rules.yaml12 import load
from utcompile.tuners import tuner_kinds

VALID = """
version: 1
name: a
vars: {n: 3}
patterns: {p: [y = linear(x), y = relu(x)], q: y = linear(x)}
tuners: {u: {kind: adapter, dim: $n}}
rules:
  - name: a
    match: p
    inside: {module: a}
    not_inside: [{class: B}]
    select: {first: $n}
    insert: {parallel: x -> y, tuner: u}
  - {name: b, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}
"""


def test_it_is_json_and_knows_every_kind() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["$defs"]["Tuner"]["discriminator"]["mapping"]) == set(tuner_kinds())
    assert "$comment" not in json.dumps(schema)


def test_every_key_is_described() -> None:
    for model in Entry.__subclasses__():
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize("name", sorted(shipped_rules()))
def test_shipped_rules_are_valid(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(load(shipped_rules()[name].read_bytes()).data, json_schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("version: 1", "version: 2"),
        ("name: a\nvars", "nmae: a\nvars"),
        ("kind: lora", "kind: lore"),
        ("dim: $n", "dim: ten"),
        ("dim: $n", "dmi: $n"),
        ("first: $n", "first: 0"),
        ("{u: {", "{'u v': {"),
        ("match: p", "match: [p]"),
    ],
)
def test_it_refuses_what_the_loader_refuses(old: str, new: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(load(VALID.replace(old, new) if old else VALID).data) is (not old)

"""The JSON Schema says of a file what the loader says of it."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import pytest

from utcompile.rules import json_schema, shipped_kinds, shipped_rules
from utcompile.rules.schema import Entry
from utcompile.rules.yaml12 import load
from utcompile.tuners import config_for, tuner_kinds

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
def test_shipped_rules_name_the_shipped_schema_and_are_valid(name: str) -> None:
    path = shipped_rules()[name]
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found, f"{name} begins with {first!r}"
    _validator((path.parent / found[1]).resolve()).validate(load(path.read_bytes()).data)


@cache
def _validator(path: Path) -> jsonschema.protocols.Validator:
    schema = json.loads(path.read_text(encoding="utf-8"))
    cls = jsonschema.validators.validator_for(schema)
    cls.check_schema(schema)  # it takes longer than a file
    return cls(schema)


def test_the_shipped_schema_is_what_the_code_makes() -> None:
    path = shipped_rules()["lora/all_linear"].parents[1] / "rules.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema(shipped_kinds()), "run make docs"


def test_the_shipped_schema_is_in_the_wheel() -> None:
    """The rules' folder is put into the package as it is, so `../rules.schema.json` holds there too."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "rules": "utcompile/_shipped_rules"
    }


@pytest.mark.parametrize("kind", shipped_kinds())
def test_every_field_of_every_tuner_is_known_and_described(kind: str) -> None:
    schema = json_schema()["$defs"][f"tuner_{kind}"]
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == config_for(kind).model_fields.keys()
    for name, field in schema["properties"].items():
        assert name == "kind" or field["description"], f"{kind}.{name}"


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
        ("name: a\nvars", "name: a\ninclude: 5\nvars"),
        ("name: a\nvars", "name: a\ninclude: [{vars: {n: 1}}]\nvars"),
        ("name: a\nvars", "name: a\nfolds: melted\nvars"),
    ],
)
def test_it_refuses_what_the_loader_refuses(old: str, new: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(load(VALID.replace(old, new) if old else VALID).data) is (not old)


@pytest.mark.parametrize(
    ("tuner", "says"),
    [
        ({"kind": "lora", "rank": 4}, "'rank' was unexpected"),
        ({"kind": "lorra"}, "'lorra' is not one of"),
        ({"r": 4}, "'kind' is a required property"),
    ],
)
def test_it_names_what_is_wrong_with_a_tuner(tuner: dict[str, object], says: str) -> None:
    rule = {"name": "r", "match": "y = linear(x)", "insert": {"weight": "y", "tuner": tuner}}
    data = {"version": 1, "name": "a", "rules": [rule]}
    (error,) = jsonschema.Draft202012Validator(json_schema()).iter_errors(data)
    assert says in error.message and list(error.absolute_path)[:4] == ["rules", 0, "insert", "tuner"]


@pytest.mark.parametrize(
    "text",
    [
        "include: lora/all_linear",
        "include: [lora/all_linear, {file: lora/all_conv, vars: {r: 2}}]",
        "tuners: {u: {kind: lora}}",
        "patterns: {p: y = linear(x)}",
        "include: [lora/all_linear]\nfolds: [absorbed, kept]",
    ],
)
def test_it_takes_files_that_include_and_are_included(text: str) -> None:
    data = load(f"version: 1\nname: a\n{text}\n").data
    jsonschema.validate(data, json_schema())

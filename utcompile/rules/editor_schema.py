"""The JSON Schema of rule files, for editors: from the models, and from the configs of the registered tuners."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic.json_schema import JsonSchemaValue

from utcompile.rules.schema import RuleFile
from utcompile.tuners import config_for, tuner_class, tuner_kinds

_VARIABLE = {"type": "string", "pattern": r"^\$[A-Za-z_]\w*$", "description": "the value of a variable"}
_LITERAL = ("version", "name", "cite", "description", "folds", "include", "vars")  # no variable is allowed in these


def json_schema(kinds: Iterable[str] | None = None) -> JsonSchemaValue:
    """The JSON Schema (draft 2020-12) of a rule file.

    Args:
        kinds: the tuners of the schema; by default all registered tuners, those of plugins too.

    Example:
        >>> "adapter" in json_schema()["$defs"]["Tuner"]["discriminator"]["mapping"]
        True
    """
    schema = RuleFile.model_json_schema(by_alias=True)
    definitions: dict[str, JsonSchemaValue] = schema["$defs"]
    references = {}
    for kind in tuner_kinds() if kinds is None else kinds:
        name = f"tuner_{kind}"
        definitions[name] = _config(kind, definitions)
        references[kind] = f"#/$defs/{name}"
    definitions["Variable"] = _VARIABLE
    for definition in [*definitions.values()]:
        _allow_variables(definition)
    _allow_variables(schema)
    definitions["Tuner"] = {
        "type": "object",
        "properties": {"kind": {"enum": list(references)}},
        "required": ["kind"],
        # so that an editor names the field that is wrong, and not all kinds
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": {"$ref": reference}}
            for kind, reference in references.items()
        ],
        "discriminator": {"propertyName": "kind", "mapping": references},
    }
    finished = _finished(schema)
    assert isinstance(finished, dict)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **finished}


def shipped_kinds() -> tuple[str, ...]:
    """The kinds of tuners that come with utcompile, as in the shipped schema.

    >>> "lora" in shipped_kinds()
    True
    """
    package = __name__.partition(".")[0]
    return tuple(kind for kind in tuner_kinds() if tuner_class(kind).__module__.partition(".")[0] == package)


def _config(kind: str, definitions: dict[str, JsonSchemaValue]) -> JsonSchemaValue:
    config = config_for(kind).model_json_schema(ref_template="#/$defs/{model}")
    definitions.update(config.pop("$defs", {}))
    config["properties"]["kind"] = {"const": kind}
    config["required"] = sorted({"kind", *config.get("required", ())})
    return config


def _allow_variables(definition: JsonSchemaValue) -> None:
    """Allow `$name` wherever the value of a variable is allowed and a free text is not."""
    whole_file = "version" in definition.get("properties", {})
    for name, field in definition.get("properties", {}).items():
        field.pop("title", None)  # pydantic's "At Least" for at_least adds nothing
        about = {key: field.pop(key) for key in ("default", "description") if key in field}
        options = field.get("anyOf") or field.get("oneOf") or [field]
        constant = name == "kind" or (whole_file and name in _LITERAL)
        if not constant and any(map(_is_plain, options)) and not any(map(_is_free_text, options)):
            options.append({"$ref": "#/$defs/Variable"})
        definition["properties"][name] = {**(options[0] if len(options) == 1 else {"anyOf": options}), **about}


def _is_free_text(schema: JsonSchemaValue) -> bool:
    return schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()


def _is_plain(schema: JsonSchemaValue) -> bool:
    """Whether a schema is that of a scalar or of a list of scalars, which a variable can be."""
    inner = schema.get("items", schema)
    return "enum" in inner or inner.get("type") in ("string", "integer", "number", "boolean")


def _finished(value: object) -> object:
    """Refer to the tuners' schema wherever the models have `$comment: tuner`; allow no unknown names."""
    if isinstance(value, list):
        return [_finished(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("$comment") == "tuner":
        return {"$ref": "#/$defs/Tuner"}
    options = value.get("anyOf", ())
    others = [option for option in options if not (isinstance(option, dict) and option.get("$comment") == "tuner")]
    if 0 < len(others) < len(options):  # a mapping is a tuner; what is none is one of the others
        about = {key: item for key, item in value.items() if key != "anyOf"}
        rest = others[0] if len(others) == 1 else {"anyOf": others}
        return {**about, "if": {"type": "object"}, "then": {"$ref": "#/$defs/Tuner"}, "else": _finished(rest)}
    closed = {"additionalProperties": False} if "patternProperties" in value else {}
    return {**closed, **{key: _finished(item) for key, item in value.items()}}

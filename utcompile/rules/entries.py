"""The types of the mappings of a rule file and of their fields."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from utcompile.rules.globs import glob_problem
from utcompile.rules.passage import short

# The name of a rule is part of the identity of its sites, and so of checkpoint keys and file names.
LABEL = r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$"
IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"  # of what is named in patterns and by $


def problem(key: str | None, what: str, fix: str | None = None) -> PydanticCustomError:
    """An error of a validator here; `key` names the entry to point at."""
    # The text goes through the context: a brace in it is then no placeholder.
    return PydanticCustomError("rule", "{what}", {"what": what, "fix": fix, "key": key})


def _glob(text: str) -> str:
    if why := glob_problem(text):
        raise problem(None, f"'{short(text)}' is not a glob: {why}", GLOB_FIX)
    return text


def _shape(value: object) -> str | None:
    """The tag of a union's member, so that an error is about the intended member."""
    shapes: dict[type, str] = {str: "<text>", dict: "<mapping>", int: "<number>", list: "<list>"}
    return shapes.get(type(value))


class _OrOneAlone:
    """Marks a list in the JSON Schema as one that may also be a single item."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


def _in_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


T = TypeVar("T")
M = TypeVar("M")
TextOr = Annotated[
    Annotated[T, Tag("<text>")] | Annotated[M, Tag("<mapping>")],
    Discriminator(_shape, custom_error_type="rule_union", custom_error_message="must be a text or a mapping"),
]
Many = Annotated[list[T], BeforeValidator(_in_list), _OrOneAlone()]
Glob = Annotated[str, AfterValidator(_glob)]
Label = Annotated[str, Field(pattern=LABEL)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Sites = Annotated[
    Annotated[Count, Tag("<number>")]
    | Annotated[list[Glob], Tag("<list>")]
    | Annotated[dict[Glob, Count], Tag("<mapping>")],
    Discriminator(
        _shape, custom_error_type="rule_union", custom_error_message="must be a number, a list of paths or a mapping"
    ),
]
TunerMapping = Annotated[dict[str, object], WithJsonSchema({"$comment": "tuner"})]
UNION_TAGS = ("<text>", "<mapping>", "<number>", "<list>")
GLOB_FIX = "write a dotted path: * is one segment, ** any number"


class Entry(BaseModel):
    """The base of all mappings of a rule file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

"""The docstrings of the shipped tuners: the page of tuners is made from their sections."""

from __future__ import annotations

import inspect
import re

import pytest

from utcompile.tuners import tuner_class, tuner_kinds

SHIPPED = [kind for kind in tuner_kinds() if tuner_class(kind).__module__.startswith("utcompile.")]
NEEDED = ["Computes", "Shapes", "Init", "Parameters", "Folds", "Source"]


def sections(kind: str) -> dict[str, str]:
    """The sections of a tuner's docstring by name; the first sentence is the section without a name."""
    text = inspect.getdoc(tuner_class(kind)) or ""
    first, *parts = re.split(r"^([A-Z]\w*):$", text, flags=re.MULTILINE)
    return {"": first.strip(), **{n: t.strip() for n, t in zip(parts[::2], parts[1::2], strict=True)}}


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_tuner_has_every_section_in_this_order(kind: str) -> None:
    found = sections(kind)
    assert [name for name in found if name in NEEDED] == NEEDED
    assert all(found.values()), "no section is empty"
    assert "\n\n" not in found[""], "one paragraph says what the tuner is"
    assert "arXiv:" in found["Source"]


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_field_of_a_tuner_is_described(kind: str) -> None:
    fields = tuner_class(kind).config_class.model_fields
    assert all(field.description for name, field in fields.items() if name != "kind")


@pytest.mark.parametrize("kind", SHIPPED)
def test_folds_begins_with_a_status(kind: str) -> None:
    folds = sections(kind)["Folds"]
    assert re.match(r"(Absorbed|Widened|Kept|As tokens, constant)\b", folds)

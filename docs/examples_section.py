"""A griffe extension: the docstrings' section `Example:` is shown as code, as griffe does for `Examples:`."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class ExamplesSection(Extension):
    """Rename the section in every docstring that is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

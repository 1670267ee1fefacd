"""The rules in a checkpoint's manifest, with the values and the measured forms that its model was compiled with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utcompile.errors import UtcError

_MANIFEST = "manifest.json"
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Saved:
    """What a manifest says of rules; `RuleSet.load` checks it, because a file may say anything."""

    text: str
    vars: Mapping[str, object]
    included: Mapping[str, str] | None
    train: list[str] | None
    measured: Mapping[str, object] | None

    @classmethod
    def of(cls, source: object) -> Saved | None:
        """The rules of a checkpoint's folder; None where the source is no such folder.

        Raises:
            UtcError: the manifest cannot be read, or has no rules.
        """
        if not isinstance(source, str | Path) or "\n" in str(source):
            return None
        path = Path(source) / _MANIFEST
        if not _is_file(path):
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MOST_BYTES else None
        except (OSError, ValueError, RecursionError):
            data = None
        rules = data.get("rules") if isinstance(data, Mapping) else None
        if not isinstance(rules, Mapping) or not isinstance(rules.get("text"), str):
            raise UtcError(
                "the manifest contains no rules",
                where=str(path),
                fix="name a folder that `utcompile train -o` or `save_tuners` wrote, or a rule file",
                code="checkpoint/damaged",
            )
        text = rules["text"]
        text += "" if "\n" in text else "\n"  # by which a text is known
        return cls(text, *(rules.get(k) for k in ("vars", "included", "train", "measured")))  # type: ignore[arg-type]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no path can be so long, or have such a letter
        return False

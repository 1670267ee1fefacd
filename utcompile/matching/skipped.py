"""Sites that refuse the tuner of a rule with `on_refusal: skip`."""

from __future__ import annotations

from dataclasses import dataclass

from utcompile.errors import UtcError


@dataclass(frozen=True)
class Skipped:
    """A skipped site, and the reason.

    Attributes:
        rule: the rule's name.
        path: the module path.
        reason: the text of the error that is not raised.
    """

    rule: str
    path: str
    reason: str

    @classmethod
    def of(cls, rule: str, path: str, error: UtcError) -> Skipped:
        """A refusal on one line."""
        what = error.what.partition(": ")[2] or error.what  # without the rule and its place
        return cls(rule, path, f"{what}; {error.why}" if error.why else what)

    def __str__(self) -> str:
        return f"skipped: {self.rule} at {self.path or '(root)'}: {self.reason}"

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {"rule": self.rule, "path": self.path, "reason": self.reason}

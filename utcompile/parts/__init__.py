"""Parts of a model: captured from a real call of it, and tuned inside the user's class (`within=`)."""

from utcompile.parts.calling import computed, same_outputs
from utcompile.parts.captured import CapturedParts, capture_parts
from utcompile.parts.inserted import insert_parts
from utcompile.parts.train_lines import lines_by_part

__all__ = ["CapturedParts", "capture_parts", "computed", "insert_parts", "lines_by_part", "same_outputs"]

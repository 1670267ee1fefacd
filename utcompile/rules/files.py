"""Rule files on disk: the shipped ones, and how a rule file is found and read."""

from __future__ import annotations

from pathlib import Path

from utcompile.errors import UtcError, did_you_mean
from utcompile.rules import yaml12

_PACKAGE = Path(__file__).parents[1]


def shipped_rules() -> dict[str, Path]:
    """The rule files that come with utcompile, by name: `u_tuning/dual`."""
    folder = _PACKAGE / "_shipped_rules"
    if not folder.is_dir():  # a checkout, where the folder is at the top
        folder = _PACKAGE.parent / "rules"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The file of a path or of the name of shipped rules.

    Raises:
        UtcError: there is no such file.
    """
    path = Path(source)
    if is_file(path):
        return path
    if isinstance(source, Path):
        raise UtcError(f"no rule file {str(source)!r:.200}", fix="check the path")
    shipped = shipped_rules()
    if source in shipped:
        return shipped[source]
    why = "it is neither a file nor the name of shipped rules; YAML text would have more than one line"
    raise UtcError(f"no rules {source!r:.200}", why=why, fix=did_you_mean(source, shipped))


def is_file(path: Path) -> bool:
    """Whether a path leads to a file that can be read without waiting: no folder, no pipe, no loop of links."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system cannot have
        return False


def read(path: Path, shown: str) -> str:
    """The text of a rule file; of one that is too large, no more than the limit is read.

    Raises:
        UtcError: at `shown`, the file's name in messages: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(yaml12.MAX_BYTES + 1)
        size = len(content) if len(content) <= yaml12.MAX_BYTES else path.stat().st_size
    except OSError as error:
        raise UtcError("the rule file cannot be read", where=f"{shown}:1:1", why=error.strerror) from None
    yaml12.check_size(size, shown)
    return yaml12.decode(content, shown)

"""Files that belong together, moved into place: all of them, or none."""

from __future__ import annotations

import os
from pathlib import Path

import onnx


def publish(folder: Path, path: Path, last: str) -> None:
    """Move what was written next to `path`; where a file cannot be moved, those that were there are put back.

    Args:
        folder: has what was written, and nothing else.
        last: the name of the file that is moved last, so that it is never there before the others.
    """
    files = sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name == path.name))
    stale = _weights_of(path, {file.name for file in files})
    aside = folder / "aside"
    aside.mkdir()
    moved: list[Path] = []
    try:
        for file in files:
            target = path.with_name(file.name)
            is_safe = _keep(target, aside / file.name)
            file.replace(target)
            if is_safe:
                moved.append(target)
    except BaseException:
        for target in moved:
            old = aside / target.name
            old.replace(target) if old.exists() else target.unlink(missing_ok=True)
        raise
    if stale is not None:
        stale.unlink(missing_ok=True)


def _keep(target: Path, old: Path) -> bool:
    """A second name for a file that is about to be replaced, which stays in its place; False where there is none."""
    if not target.exists():
        return True
    try:
        os.link(target, old)
    except OSError:  # a file system without such names
        return False
    return True


def _weights_of(path: Path, written: set[str]) -> Path | None:
    """The weights next to a graph that is replaced by one without: nothing reads them any more."""
    data = path.with_name(f"{path.name}.data")
    if data.name in written or path.name not in written or not data.is_file():
        return None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # no graph, so the file is not its
        return None
    entries = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return data if data.name in entries else None

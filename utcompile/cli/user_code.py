"""Functions in a user's Python files: `file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from utcompile.errors import UtcError, did_you_mean


def function_of(spec: str, what: str) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names.

    Args:
        what: for messages: `loss`.

    Raises:
        UtcError: there is no such file or function, or importing it failed.
    """
    module, colon, name = spec.rpartition(":")
    if not colon or not module or not name:
        raise UtcError(f"{spec!r} names no function", fix=f"give the {what} as file.py:function", code="model/unknown")
    return function_in(str(Path(module).resolve()) if module.endswith(".py") else module, name, what)


def function_in(module: str, name: str, what: str) -> Callable[..., Any]:
    """A function of a file or module.

    Raises:
        UtcError: as `function_of`.
    """
    try:
        found = module_of_file(module) if module.endswith(".py") else module_of(module)
    except UtcError:
        raise
    except Exception as error:  # whatever a user's code raises
        why = f"{type(error).__name__}: {error}"
        raise UtcError(
            f"the module of the {what} cannot be imported", where=module, why=why, code="model/build"
        ) from error
    function: object = getattr(found, name, None)
    if not callable(function):
        known = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
        raise UtcError(
            f"there is no function {name!r}", where=module, fix=did_you_mean(name, known), code="model/unknown"
        )
    return function


def called(function: Callable[..., Any], spec: str, what: str, **options: object) -> Any:
    """What a user's function returns.

    Raises:
        UtcError: it failed.
    """
    try:
        return function(**options)
    except UtcError:
        raise
    except Exception as error:  # whatever a user's code raises
        raise UtcError(
            f"the {what} failed", where=spec, why=f"{type(error).__name__}: {error}", code="model/build"
        ) from error


def module_of(name: str) -> ModuleType:
    """A module, also one in the current folder, as `python -m` finds it."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def module_of_file(path: str) -> ModuleType:
    """The module of a file, whose folder can be imported from, as `python file.py` does."""
    file = Path(path)
    if not file.is_file():
        raise UtcError("there is no such Python file", where=path, code="model/unknown")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    # Under a name that no installed package has: the file may have the name of one.
    spec = importlib.util.spec_from_file_location(f"utcompile_model_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module

"""Modules that globs choose: the parts of `within=`, and the regions of `nested`. Both refuse in the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from utcompile.errors import UtcError
from utcompile.matching.places import nearest_path, wider_glob
from utcompile.rules import glob_match
from utcompile.rules.globs import glob_problem


@dataclass(frozen=True)
class Chooser:
    """What chooses modules by globs.

    Attributes:
        verb: as a user writes it: `within=`, `nested`.
        word: one of the modules: `part`, `region`.
        example: how it is written.
    """

    verb: str
    word: str
    example: str

    def chosen(
        self, given: object, paths: Sequence[str], otherwise: Callable[[str], UtcError | None] = lambda glob: None
    ) -> list[str]:
        """The paths that globs match, in their order.

        Args:
            given: one glob, or several.
            paths: of the modules that may be chosen.
            otherwise: a better error for a glob that matches none of them.

        Raises:
            UtcError: what is given is no globs, or one of them matches nothing.
        """
        globs = [given] if isinstance(given, str) else list(given) if isinstance(given, (tuple, list)) else []
        what = f"{self.verb} takes one or several globs of module paths, not {given!r:.80}"
        if not globs and isinstance(given, (tuple, list)):
            raise UtcError(what, fix=f"write {self.example}", code="arguments/value")
        if not globs or not all(isinstance(glob, str) for glob in globs):
            raise UtcError(what, fix=f"write {self.example}", code="arguments/type")
        for glob in globs:
            self._check(glob, paths, otherwise)
        return [path for path in paths if any(glob_match(glob, path) for glob in globs)]

    def _check(self, glob: str, paths: Sequence[str], otherwise: Callable[[str], UtcError | None]) -> None:
        if problem := glob_problem(glob):
            raise UtcError(f"{self.verb}: {glob!r} is no glob of module paths", why=problem, code="arguments/value")
        if not any(glob_match(glob, path) for path in paths):
            wider = wider_glob(glob, paths)
            fix = f"did you mean {wider!r}?" if wider else nearest_path(glob, paths)
            error = UtcError(f"{self.verb}: {glob!r} names no submodule of the model", fix=fix, code="parts/not-found")
            raise otherwise(glob) or error

    def check_apart(self, around: Mapping[str, str | None]) -> None:
        """Raise where a chosen module is inside another one.

        Args:
            around: by path, the chosen module that it is inside of.
        """
        for path, outer in around.items():
            if outer is not None:
                raise UtcError(
                    f"the {self.word} {path} is inside the {self.word} {outer}",
                    why="a module is in one graph",
                    fix=f"let {self.verb} name the outer one or the inner ones: '*' is one segment of a path",
                    code="parts/overlap",
                )

"""What a fold is: an exact rewrite with numbered cases, found by the name that it is registered under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar, get_args

from utcompile.errors import UtcError, check_type
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Options, Unfoldable
from utcompile.folding.patch import Added, Patch
from utcompile.folding.report import Status
from utcompile.folding.site import Part, Site
from utcompile.graph import Role


class FaultyFold(UtcError):
    """A fold's code has failed, or has changed the model while it planned: no reason to keep a tuner in silence."""


class _Rewrite:
    """What folds of tuners and of the base have in common.

    Attributes:
        name: what it is called in the documentation and in errors.
        status: what the report calls a site that was folded so.
        cases: when it is exact, and counter-examples.
        local: whether it reads and changes no more of the graph than the site's own nodes.
    """

    name: ClassVar[str]
    status: ClassVar[Status]
    cases: ClassVar[tuple[Case, ...]] = ()
    local: ClassVar[bool] = False


class Fold(_Rewrite, ABC):
    """An exact rewrite of a tuner and the frozen layers around it.

    A subclass states its `status`, says in `requires` which sites it is for, and plans a `Patch`. Everything else is
    done for it: that planning changed nothing is checked; the patch is applied, `ensures` is called, and the site is
    proven in float64 on random inputs. A patch that is disproved is taken back, and its tuner is kept.

    Attributes:
        trusted: planning is known to change nothing, by tests, and is not checked in each call.
    """

    trusted: ClassVar[bool] = False

    @abstractmethod
    def requires(self, site: Site, model: Folding) -> bool:
        """Whether a site is of the kind that this fold is for; otherwise the next fold is tried."""

    @abstractmethod
    def plan(self, site: Site, model: Folding) -> Patch:
        """The changes that fold a site; the model itself stays as it is.

        Raises:
            Unfoldable: a condition does not hold; which one, with names.
        """

    def ensures(self, site: Site, model: Folding, patch: Patch) -> str:
        """What of this fold's promise is not so, once its patch has been applied; empty where all is.

        An absorbed or widened tuner leaves no node, and adds no operation; of a constant one, no call is left.
        """
        roles = (Role.TUNER,) if self.status == "constant" else (Role.TUNER, Role.SUM, Role.BRANCH)
        left = [n for role in roles for n in site.nodes.get(role, ()) if n not in model.gone]
        if left:
            return f"{left[0].name} of the tuner is still there"
        added = (e for e in patch.edits if isinstance(e, Added) and e.op != "get_attr")
        if self.status != "constant" and (new := next(added, None)) is not None:
            return f"it adds the operation {new.target}"
        return ""

    def __call__(self, site: Site, model: Folding) -> Patch:
        """Plan, and check that planning changed nothing.

        Raises:
            Unfoldable: a condition does not hold.
            FaultyFold: the plan changed the model.
        """
        if not self.requires(site, model):
            raise Unfoldable(f"the fold {self.name} is not for a {site.kind}")
        if self.trusted:
            return self.plan(site, model)
        before = model.stamp()
        try:
            return self.plan(site, model)
        finally:
            if not before.is_of(model):
                raise FaultyFold(
                    f"the fold {self.name!r} changed the model while it planned",
                    where=f"site {site.id}",
                    why="a plan that turns out wrong could then not be taken back",
                    fix="write what it changes into the Patch that `plan` returns",
                )


class BaseFold(_Rewrite, ABC):
    """An exact rewrite of the base itself, which finds the parts that it is for.

    Attributes:
        reported: whether the report lists its parts.
    """

    reported: ClassVar[bool] = True

    @abstractmethod
    def wanted(self, options: Options) -> bool:
        """Whether the options say so."""

    @abstractmethod
    def parts(self, model: Folding) -> Iterator[Part]:
        """The parts of the base that it is for; the model is folded while they are gone through."""

    @abstractmethod
    def plan(self, part: Part, model: Folding) -> Patch:
        """As `Fold.plan`."""


_REGISTRY: dict[str, Fold] = {}


def register_fold(name: str) -> Callable[[type[Fold]], type[Fold]]:
    """Class decorator: makes a `Fold` one of those that `utc.fold` tries, after those that are registered already.

    A package may also name its class as an entry point of the group `utcompile.folds`.

    Raises:
        UtcError: the name is taken, or the class is no `Fold` with a status.

    Example:
        >>> import utcompile as utc
        >>> from utcompile.folding import Fold, Patch
        >>> @utc.register_fold("nothing")
        ... class Nothing(Fold):
        ...     status = "absorbed"
        ...     def requires(self, site, model):
        ...         return False
        ...     def plan(self, site, model):
        ...         return Patch((), ())
        >>> Nothing.name
        'nothing'
    """
    check_type(name, str, "name", "a fold's name")

    def register(cls: type[Fold]) -> type[Fold]:
        known = _REGISTRY.get(name)
        if known is not None and type(known).__qualname__ != cls.__qualname__:
            raise UtcError(
                f"a fold {name!r} is registered already",
                why=f"by {type(known).__module__}.{type(known).__qualname__}",
                fix="choose another name",
            )
        if not (isinstance(cls, type) and issubclass(cls, Fold)):
            raise UtcError(f"{cls!r} is no Fold", fix="derive it from utcompile.folding.Fold")
        folded = [s for s in get_args(Status) if s != "kept"]
        if getattr(cls, "status", None) not in folded:
            raise UtcError(
                f"the fold {cls.__qualname__} does not say what becomes of a tuner",
                fix=f"set its class attribute `status` to one of {', '.join(folded)}",
            )
        cls.name = name
        _REGISTRY[name] = cls()
        return cls

    return register


@cache
def _load_plugins() -> None:
    for entry in entry_points(group="utcompile.folds"):
        if entry.name not in _REGISTRY:
            entry.load()


def registered_folds() -> tuple[Fold, ...]:
    """The folds, in the order in which they are tried; plugins included."""
    _load_plugins()
    return tuple(_REGISTRY.values())

"""The parameters that `train:` selects in addition to the tuners: by glob, or all that a named pattern covers.

`pattern:head` is the classifier. The head of a language model is no classifier: it reads the vocabulary back, has the
shape of its embedding table or is that table, and stays frozen unless a line names it. A model without a classifier
trains the tuners alone. The plan has a note in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import fx

from utcompile.errors import UtcError, did_you_mean
from utcompile.graph import GraphView, owner_path
from utcompile.graph.ties import tied_to, ties_of
from utcompile.matching.engine import Engine, named, shown
from utcompile.matching.places import wider_glob
from utcompile.matching.vocabulary import vocabulary_read_back
from utcompile.rules import Pattern, Train, glob_match

Covered = Callable[[Engine, Pattern], Collection[fx.Node]]


@dataclass(frozen=True)
class Trained:
    """The parameters that the lines of `train:` select.

    Attributes:
        names: their names, with all names of tied parameters.
        untied: names that train apart from the parameters that they are tied to.
        notes: remarks of the plan on lines that select less than expected.
    """

    names: tuple[str, ...]
    untied: tuple[str, ...]
    notes: tuple[str, ...]


def find_trained(lines: Sequence[Train], engine: Engine, covered: Covered) -> Trained:
    """Find the parameters that the lines select.

    Args:
        lines: the lines of `train:`.
        engine: the engine of the graph.
        covered: finds the nodes that a named pattern covers.

    Raises:
        UtcError: a line other than `pattern:head` selects nothing.
    """
    found: list[str] = []
    untied: list[str] = []
    notes: list[str] = []
    for line in lines:
        names, said = _of_pattern(line, engine, covered) if line.kind == "pattern" else (_of_glob(line, engine), [])
        found += names
        untied += names if line.kind == "untied" else []
        notes += said
        if not names and not said:
            why, fix = _selects_nothing(line, engine)
            what = f"train: '{line.kind}:{line.glob}' selects no parameter"
            raise UtcError(what, where=str(line.mark), why=why, fix=f"{fix}; or remove the line")
    alone = tuple(dict.fromkeys(untied))
    return Trained(tied_to(found, ties_of(engine.view.module), alone), alone, tuple(notes))


def _of_pattern(line: Train, engine: Engine, covered: Covered) -> tuple[list[str], list[str]]:
    view = engine.view
    if line.glob not in engine.library:
        fix = did_you_mean(line.glob, engine.library)
        raise UtcError(f"unknown pattern {line.glob!r}", where=str(line.mark), fix=fix)
    owned = view.parameters
    found: list[str] = []
    notes: list[str] = []
    for node in sorted(covered(engine, engine.library[line.glob]), key=view.position.__getitem__):
        names = [n for n in view.operations[node].parameters.values() if n in owned]
        table = vocabulary_read_back(node, view) if line.glob == "head" else None
        if table is None:
            found += names
        else:
            name = next(n for n in names if owned[n].dim() == 2)
            notes.append(
                f"train: {name} reads the vocabulary of {table} back, and stays frozen; "
                f"to train it, name it: parameter:{name}"
            )
    if not found and not notes and line.glob == "head":
        notes.append(f"train: no classifier is trained: {_no_classifier(engine)}")
    return found, notes


def _no_classifier(engine: Engine) -> str:
    if not engine.tails.outputs:
        return "the model returns no tensor"
    last = engine.tails.walk("output_tail", engine.tails.outputs[0])[-1]
    return f"the model ends in {named(last, engine.view)}: {shown(last)}"


def _of_glob(line: Train, engine: Engine) -> list[str]:
    names = _names(engine.view)
    of_module = line.kind == "module"
    found = [n for n in names if glob_match(line.glob, owner_path(n) if of_module else n)]
    if of_module and not found:  # the glob may name a container
        found = [n for n in names if any(glob_match(line.glob, p) for p in _prefixes(n))]
    return found


def _names(view: GraphView) -> list[str]:
    return list(view.parameters)


def _selects_nothing(line: Train, engine: Engine) -> tuple[str, str]:
    """Why a line of `train:` selects no parameter, and how to fix it."""
    if line.kind == "pattern":
        pattern = engine.library[line.glob]
        if any(next(engine.solve(pattern, anchor), None) for anchor in engine.anchors(pattern)):
            return "the pattern matches, and covers no parameter of the model", "name another pattern"
        return "the pattern matches nowhere", "run `utcompile inspect` to see the modules"
    names = _names(engine.view)
    owners = list(dict.fromkeys(owner_path(n) for n in names))
    found = wider_glob(line.glob, owners if line.kind == "module" else names)
    why = "no parameter has such a name" if line.kind != "module" else "no module of such a name has a parameter"
    return why, f"write {line.kind}:{found}" if found else "see `utcompile inspect`"


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]

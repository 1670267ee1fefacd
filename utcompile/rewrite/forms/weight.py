"""Tuners of weights: a branch adds to the operation's result, else the operation reads other parameters.

See `rewrite/weights.py` for the parameters.
"""

from __future__ import annotations

from typing import assert_never

from torch import fx

from utcompile.graph import Role
from utcompile.matching import WeightPlace
from utcompile.rewrite.weights import reparametrise
from utcompile.rewrite.writer import Inserted, Writer


def insert(writer: Writer, site: Inserted, place: WeightPlace) -> None:
    """Add the tuner to its operation, or to the calls of its layer."""
    match place.how:
        case "reparametrised":
            reparametrise(writer, place, site)
        case "branch":
            for recorded in place.targets:
                _branch(writer, site, recorded)
        case unknown:
            assert_never(unknown)


def _branch(writer: Writer, site: Inserted, recorded: fx.Node) -> None:
    """Add to the operation's own result; tuners that earlier rules placed on it read the sum."""
    target = writer.mapping[recorded]
    source = writer.mapping[writer.view.operations[recorded].inputs[0]]
    node = writer.tune(site, (source, target), like=target, role=Role.BRANCH, after=target)
    for reader, value in [link for link in writer.running if link[1] is target]:
        reader.replace_input_with(target, node)
        writer.running.remove((reader, value))
        writer.running.add((reader, node))
    writer.running.add((node, target))
    writer.current.setdefault(target, node)

"""`parallel: x -> y` and `sequential: v`: a tuner of values."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Value, readers, tensor, value_of
from utcompile.matching.forms.found import Found
from utcompile.matching.forms.placing import Placed, TunerPlace
from utcompile.matching.parameters import reads_of
from utcompile.rules import ValueInsertion
from utcompile.tuners import ValueSite


@dataclass(frozen=True, kw_only=True)
class ValuePlace(TunerPlace):
    """The place of a tuner of values.

    Attributes:
        site: the site as the tuner's `build` sees it.
        source: the value that the tuner reads.
        targets: the value that the tuner changes; for a parameter, all its reads.
        reader: the operation that alone reads the changed value; None for all readers.
    """

    site: ValueSite = field(compare=False)
    source: fx.Node = field(compare=False)
    targets: tuple[fx.Node, ...] = field(compare=False)
    reader: fx.Node | None = field(default=None, compare=False)

    @property
    def given(self) -> tuple[Value, ...]:
        """The inputs of the tuner's `forward`."""
        return (self.site.source.value,)


def place(found: Found, insertion: ValueInsertion) -> Placed[ValuePlace]:
    """Check that a tuner of values can be inserted at a match.

    Raises:
        UtcError: it cannot; the caller adds `where`.
    """
    view, env = found.view, found.env
    source, target = _aligned(env[insertion.source], env[insertion.target], view)
    reader = _reader(insertion, found)
    site = ValueSite(
        source=found.port(insertion.source, source),
        target=found.port(insertion.target, target),
        captures=found.captures,
        replaces=insertion.replaces,
    )
    found.check_real((source, target))
    if not insertion.replaces and view.depends(source, target):
        raise UtcError(
            f"'{insertion.source}' is computed from '{insertion.target}'",
            why="a parallel tuner must not read what it changes",
            fix="swap the two, or use `sequential:`",
        )
    fitted = found.fitting.fit(found.config, site)
    found.check_unwritten((source, target))
    targets = reads_of(target, view) if target.op == "get_attr" else (target,)
    return Placed(
        place=ValuePlace(site=site, source=source, targets=targets, reader=reader),
        config=found.config,
        parameters=fitted.parameters,
        reads=site.source.value,
        writes=site.target.value,
    )


def _aligned(source: fx.Node, target: fx.Node, view: GraphView) -> tuple[fx.Node, fx.Node]:
    """The same two values in layouts of one shape, where there are such.

    Swin adds attention to a stream `(B, H, W, C)` and the ffn to `(B, N, C)`. A reshape is the only reader of a block's
    end, so a change of its result changes the block's end.
    """
    if value_of(source) is None or value_of(target) is None:
        return source, target
    shape = tensor(source).shape
    end = target
    while tensor(end).shape != shape and len(readers(end)) == 1 and "layout" in view.classes[readers(end)[0]]:
        end = readers(end)[0]
    if tensor(end).shape == shape:
        return source, end
    for node in view.layout_chain(source):
        if tensor(node).shape == tensor(target).shape:
            return node, target
    return source, target


def _reader(insertion: ValueInsertion, found: Found) -> fx.Node | None:
    if insertion.reader is None:
        return None
    node = found.view.without_layout(found.env[insertion.reader])
    if found.env[insertion.target] not in node.all_input_nodes:
        raise UtcError(
            f"'{insertion.reader}' does not read '{insertion.target}' itself",
            fix="name the operation that reads it, or leave out `for:`",
        )
    return node

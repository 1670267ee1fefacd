"""From a match to a site: what is read, what is changed, and why that is legal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Value, describe, readers, tensor, value_of
from utcompile.match.engine import Bindings
from utcompile.match.fitting import Fitted, Fitting
from utcompile.match.grid import grid_of
from utcompile.match.parameters import channel_axis_of, reads_of
from utcompile.match.projection import projection_of
from utcompile.match.tokens import attention_of, tokens_site
from utcompile.match.weights import TunedWeight, beside_module, rows_of, tuned_weight
from utcompile.rules import MatchModule, Rule
from utcompile.tuners import Port, Tuner, TunerConfig, TunerSite, build_tuner, tuner_class


@dataclass(frozen=True)
class Site:
    """One place where a rule inserts a tuner.

    Attributes:
        id: rule name, module path and ordinal, `mha/blocks.0/0`: it survives an upgrade of torch.
        rule: the rule's name.
        path: the module whose call encloses the match.
        form: `parallel`, `sequential`, `weight`, `tokens` or `chain`.
        tuner: the tuner's kind.
        parameters: how many parameters the tuner trains.
        reads: the shape it reads, and `writes`: the shape it changes, with B for the batch.
        note: what the plan says of it below its table.
        how: of a weight tuner, `branch` or `reparametrised`.
        tunes: of a weight tuner, role to the name of the parameter it changes; None for one that it adds.
    """

    id: str
    rule: str
    path: str
    form: str
    tuner: str
    parameters: int
    reads: str
    writes: str
    config: TunerConfig = field(repr=False)
    build_from: TunerSite = field(repr=False, compare=False)
    source: fx.Node = field(repr=False, compare=False)
    targets: tuple[fx.Node, ...] = field(repr=False, compare=False)
    reader: fx.Node | None = field(default=None, repr=False, compare=False)
    bindings: Bindings = field(default_factory=dict, repr=False, compare=False)
    place: Any = field(default=None, repr=False, compare=False)  # what the form needs to know besides
    note: str | None = field(default=None, repr=False)

    @property
    def given(self) -> tuple[Value, ...]:
        """What the tuner's `forward` takes; for a weight tuner, what the operation reads."""
        ports: tuple[Port, ...]
        if self.form == "tokens":
            ports = () if tuner_class(self.tuner).reads_stream else (self.build_from.source, self.build_from.target)
        elif self.form == "chain":
            ports = (self.build_from.source, *filter(None, [self.build_from.previous]))
        else:
            ports = (self.build_from.source,)
        return tuple(port.value for port in ports)

    how: str | None = None
    tunes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def inserts(self) -> str:
        """`parallel adapter`, `weight lora branch`."""
        return " ".join(filter(None, (self.form, self.tuner, self.how)))

    def build(self, shared: dict[Hashable, nn.Module] | None = None) -> Tuner:
        """Make the tuner, on the current default device.

        Args:
            shared: what the sites of one tuned model share (`TunerSite.share`); nothing where there is None.
        """
        site = replace(self.build_from, shared={} if shared is None else shared)
        return build_tuner(tuner_class(self.tuner), self.config, site)


def make_site(rule: Rule, path: str, ordinal: int, env: Bindings, view: GraphView, fitting: Fitting) -> Site:
    """Check that a rule's insertion is legal at a match and describe it.

    Raises:
        UtcError: where (rule file and graph node), why, and how to exclude the place.
    """
    insertion = rule.insert
    config = insertion.tuner.config
    cls = tuner_class(config.kind)
    tuned: TunedWeight | None = None
    place: Any = None
    try:
        if insertion.form == "tokens":
            place = attention_of(rule, env, view)
            source, target, reader = place.key, place.value, None
        elif insertion.form == "weight":
            tuned = _weight(rule, cls, env, view, path)
            source, target, reader = tuned.source, tuned.node, None
        else:
            target = env[insertion.target]
            source = env[insertion.source] if insertion.source else target
            source, target = _aligned(source, target, view)
            reader = _reader(rule, env, view)
        form: Any = insertion.form
        captures = {k: view.operations[view.without_layout(n)] for k, n in env.items()}
        read = port_of(insertion.source or insertion.target, source, view)
        if tuned is None:
            site = TunerSite(form, read, port_of(insertion.target, target, view), captures=captures)
        else:
            written = port_of(insertion.target, target, view) if value_of(target) is not None else read
            slices = getattr(config, "slices", None)
            site = TunerSite(
                form,
                read,
                written,
                tuned.operation,
                tuned.held.shape if tuned.held else tuned.shapes.get("weight") or (),
                captures,
                parameters=tuned.shapes,
                direct=tuned.direct,
                rows=rows_of(slices, env, tuned, view) if slices else (),
                held=tuned.held.why if tuned.held else "",
            )
        if form == "tokens":
            site = tokens_site(rule, place, env, view)
        _check_real(config.kind, cls, tuned, source, target, view)
        _check_parallel(rule, source, target, view)
        if form == "tokens" and cls.reads_stream:
            place = (place, projection_of(place, view))
            site = replace(site, source=port_of("the stream", place[1].stream, view))
        fitted, config = _fitted(config, site, (source, target), fitting, view)
        if site.held and fitted.how != "branch":
            raise _no_branch(config.kind, site.held)
    except UtcError as error:
        at = describe(env[insertion.target])
        raise UtcError(
            f"rule '{rule.name}' at {at}: {error.what}",
            where=error.where or str(insertion.mark),
            why=error.why,
            fix=error.fix,
        ) from error
    return Site(
        f"{rule.name}/{path}/{ordinal}",
        rule.name,
        path,
        insertion.form,
        config.kind,
        fitted.parameters,
        str(read.value),
        str(site.target.value),
        config,
        site,
        source,
        reads_of(target, view) if target.op == "get_attr" and tuned is None else (target,),
        reader,
        env,
        place,
        how=fitted.how if tuned else None,
        tunes=tuned.names if tuned else {},
    )


def _aligned(source: fx.Node, target: fx.Node, view: GraphView) -> tuple[fx.Node, fx.Node]:
    """The same two values in layouts of one shape, where there are such.

    Swin adds attention to a stream `(B, H, W, C)` and the ffn to `(B, N, C)`: a block's end is read by one reshape
    alone, so changing what that yields changes the block's end.
    """
    if value_of(source) is None or value_of(target) is None:
        return source, target
    wanted = tensor(source).shape
    end = target
    while tensor(end).shape != wanted and len(readers(end)) == 1 and "layout" in view.classes[readers(end)[0]]:
        end = readers(end)[0]
    if tensor(end).shape == wanted:
        return source, end
    for node in view.layout_chain(source):
        if tensor(node).shape == tensor(target).shape:
            return node, target
    return source, target


def port_of(name: str, node: fx.Node, view: GraphView) -> Port:
    """A value as a tuner sees it."""
    value = value_of(node)
    if node.op == "get_attr" and value is not None:
        return Port(value, channel_axis_of(node, view), name)
    if value is None:
        raise UtcError(f"'{name}' is no single tensor", fix="name a capture that is one")
    return Port(value, view.channel_axis[node], name, lambda: grid_of(node, view))


def _weight(rule: Rule, cls: type[Tuner], env: Bindings, view: GraphView, path: str) -> TunedWeight:
    found = env[rule.insert.target]
    made = found if found.op == "get_attr" else view.without_layout(found)
    if isinstance(rule.match, MatchModule) and found is env.get("y"):
        beside = beside_module(path, env["x"], found, view)
        if beside is not None:
            return beside
    tuned = tuned_weight(made, cls.roles, rule.insert.target, view)
    for name in filter(None, tuned.names.values()):
        tied = _tied(view, name)
        if tied and not rule.insert.all_uses:
            raise UtcError(
                f"the weight {name} is tied to {', '.join(tied)}",
                why="this tuner would change one use of it alone",
                fix="say `all_uses: true` to let each use have its own tuner, or exclude the place in `where:`",
            )
    return tuned


def _no_branch(kind: str, held: str) -> UtcError:
    return UtcError(
        f"a {kind} tuner cannot change a weight that is quantised: {held}",
        why="its update would be rounded away, and no gradient would reach it",
        fix="use {kind: lora}, whose branch stands beside the layer, an adapter, or a sequential ssf or ia3",
    )


def _tied(view: GraphView, name: str) -> list[str]:
    """The other names under which the graph reads a parameter."""
    parameter = view.parameters.get(name)
    names = view.names_of[parameter] if parameter is not None else ()
    return [n for n in names if n != name and n in view.parameters_read]


def _reader(rule: Rule, env: Bindings, view: GraphView) -> fx.Node | None:
    if rule.insert.reader is None:
        return None
    node = view.without_layout(env[rule.insert.reader])
    if env[rule.insert.target] not in node.all_input_nodes:
        raise UtcError(
            f"'{rule.insert.reader}' does not read '{rule.insert.target}' itself",
            fix="name the operation that reads it, or leave out `for:`",
        )
    return node


def _fitted(
    config: TunerConfig, site: TunerSite, values: Sequence[fx.Node], fitting: Fitting, view: GraphView
) -> tuple[Fitted, TunerConfig]:
    """What the tuner is at a site; changed to `how: reparametrised` where a value is written to that a branch needs.

    A tuner that changes the weight leaves values alone: what is written into the result afterwards is the same write,
    into other numbers.
    """
    fitted = fitting.fit(config, site)
    if site.form == "weight" and fitted.how == "reparametrised":
        return fitted, config
    try:
        check_unwritten(values, view)
    except UtcError:
        if site.form != "weight" or getattr(config, "how", None) != "auto" or getattr(config, "dropout", 0):
            raise
        config = config.model_copy(update={"how": "reparametrised"})
        fitted = fitting.fit(config, site)
    return fitted, config


def _check_real(
    kind: str, cls: type[Tuner], tuned: TunedWeight | None, source: fx.Node, target: fx.Node, view: GraphView
) -> None:
    """Refuse a tuner of real numbers where there are complex ones."""
    if tuned is None:
        found = next((v for n in (source, target) if (v := value_of(n)) is not None and v.dtype.is_complex), None)
        what = "the value" if found is not None else ""
        dtype = found.dtype if found is not None else None
    else:
        named = view.parameters
        name = next((n for n in tuned.names.values() if n is not None and named[n].is_complex()), None)
        what = "" if name is None or cls.takes_complex else f"the weight {name}"
        dtype = named[name].dtype if name is not None else None
    if what:
        raise UtcError(
            f"a {kind} tuner computes with real numbers, and {what} is {str(dtype).removeprefix('torch.')}",
            fix="tune a complex weight with {kind: lora}, which then has complex factors, or a real value near it",
        )


def _check_parallel(rule: Rule, source: fx.Node, target: fx.Node, view: GraphView) -> None:
    if rule.insert.form == "parallel" and view.depends(source, target):
        raise UtcError(
            f"'{rule.insert.source}' is computed from '{rule.insert.target}'",
            why="a parallel tuner must not read what it changes",
            fix="swap the two, or use `sequential:`",
        )


def check_unwritten(nodes: Sequence[fx.Node], view: GraphView) -> None:
    """Raise where the memory of a value is overwritten after it is made."""
    for node in nodes:
        value = value_of(node)
        for write in view.mutations.get(value.storage, ()) if value is not None else ():
            if view.position[write] > view.position[node]:
                raise UtcError(
                    f"the memory of {node.name} is overwritten in place later",
                    why=f"by {describe(write)}",
                    fix="choose another capture, or exclude the place in `where:`",
                )


def merge_shared(sites: Sequence[Site]) -> list[Site]:
    """The calls of one module share its weight tuner: their sites become one."""
    found: dict[tuple[str, str, object], Site] = {}
    result: list[Site] = []
    for site in sites:
        if site.form != "weight":
            result.append(site)
            continue
        named = frozenset(filter(None, site.tunes.values()))
        # a bias that is added belongs to a layer, not to a parameter
        key = (site.rule, site.tuner, named or site.build_from.held or str(site.targets[0].target))
        first = found.get(key)
        if first is None:
            found[key] = site
            result.append(site)
            continue
        joined = replace(first, targets=(*first.targets, *site.targets))
        result[result.index(first)] = found[key] = joined
    return result

"""`tuned.nested("blocks.*")`: a tuned graph as modules again, one per region."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import copy_graph, info, keep_state, origin_of, owner_of, path_in
from utcompile.graph.calls import Signature
from utcompile.graph.ties import ties_of
from utcompile.rewrite.chosen import Chooser
from utcompile.rewrite.flat import hollow
from utcompile.rewrite.originals import NAME, Originals
from utcompile.rewrite.split import Split, split_graph
from utcompile.rewrite.tuned_state import TunedState
from utcompile.rules import glob_match

T = TypeVar("T", bound=TunedState)
Make = Callable[[nn.Module, fx.Graph, str], T]

REGIONS = Chooser("nested", "region", 'tuned.nested("blocks.*")')


def nest(tuned: TunedState, globs: Sequence[str], make: Make[T]) -> T:
    """A tuned module whose regions are tuned modules at their paths.

    Args:
        tuned: a `TunedModule`.
        globs: module paths.
        make: its class.

    Raises:
        UtcError: a glob names nothing that is called, regions lie in one another or share parameters, or one is no
            single call.
    """
    classes = _classes(tuned.graph)
    regions = _regions(tuned, globs, classes)
    _check_ties(tuned, regions)
    cut = split_graph(_out_of_place(tuned.graph), tuned, regions)
    base = split_graph(tuned.base_graph, tuned, regions)
    made = {path: _region(tuned, path, cut, base, make, classes[path]) for path in regions}
    root = _with(tuned, made, cut.moved)
    outside = tuple(name for name in tuned.trained if not any(name.startswith(f"{r}.") for r in regions))
    _set_originals(root, outside, _originals(tuned), base.outer)
    nested = make(root, cut.outer, type(tuned).__name__)
    keep_state(root, nested, again=True)
    nested.inherit(tuned)
    _set(nested, tuned, base.outer, cut, "")
    nested.trained, nested.proven = tuned.trained, tuned.proven
    nested.sites = tuple(replace(s, name=_new_name(s.name, cut.moved)) for s in tuned.sites)
    waiting = [t for tensors in tuned.tasks.waiting.values() for t in tensors.values()]
    nested.__dict__ |= {
        "_flat": hollow(tuned, waiting),
        "_moved": {name: _new_name(name, cut.moved) for name in cut.moved},
    }
    return nested.train(tuned.training)


def _classes(graph: fx.Graph) -> dict[str, str]:
    """Every module whose call has a node in the graph, with its class."""
    return {frame.path: frame.cls for node in graph.nodes for frame in origin_of(node).scope if frame.path}


def _regions(tuned: nn.Module, globs: Sequence[str], called: Mapping[str, str]) -> list[str]:
    found = REGIONS.chosen(globs, list(called), lambda glob: _not_called(tuned, glob, called))
    REGIONS.check_apart({path: next((p for p in found if path.startswith(f"{p}.")), None) for path in found})
    return found


def _not_called(tuned: nn.Module, glob: str, called: Mapping[str, str]) -> UtcError | None:
    """The error for a glob that names modules alone whose call is none of the graph's."""
    others = [path for path, _ in tuned.named_modules() if path and glob_match(glob, path) and "tuners" not in path]
    if not others:
        return None
    return UtcError(
        f"{others[0]} is no region: the graph has no call of it",
        why="it is one layer, or a container whose members are called",
        fix=f'name a module that has operations inside, such as "{next(iter(called), "blocks.*")}"',
        code="parts/not-called",
    )


def _check_ties(tuned: nn.Module, regions: Sequence[str]) -> None:
    for group in ties_of(tuned):
        homes = {next((r for r in regions if name.startswith(f"{r}.")), None): name for name in group}
        if len(homes) > 1:
            names = list(homes.values())
            raise UtcError(
                f"regions share a parameter: {names[0]} is {names[1]}",
                why="each region is sharded, or run again, with its own parameters alone",
                fix="name one region that contains both; or leave them out of the regions",
                code="parts/shared",
            )


def _out_of_place(graph: fx.Graph) -> fx.Graph:
    """A copy in which functions write nothing in place: a region may be run again on what it was given."""
    result = copy_graph(graph)
    for node in result.nodes:
        how = info(node).inplace
        if how is None or node.op == "call_module":
            continue
        if how.written is not None and how.plain is not None:
            node.op, node.target = how.plain
        else:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    return result


def _region(tuned: TunedState, path: str, cut: Split, base: Split, make: Make[T], cls: str) -> T:
    root = _shell(tuned, path)
    for name, (region, place) in cut.moved.items():
        if region == path:
            holder, _, attribute = place.rpartition(".")
            if holder and holder not in root._modules:
                root.add_module(holder, nn.Module())
            root.get_submodule(holder).add_module(attribute, tuned.get_submodule(name))
    for name, (region, place) in base.moved.items():
        if region == path and name not in cut.moved:
            root.add_module(place, tuned.get_submodule(name))
    for node in cut.inner[path].nodes:
        if node.op == "call_module" and info(node).inplace is not None:
            owner, attribute = owner_of(root, str(node.target))
            layer = copy.copy(owner._modules[attribute])
            assert layer is not None
            layer.inplace = False  # type: ignore[assignment]
            owner._modules[attribute] = layer
    inside = {n.removeprefix(f"{path}."): p for n, p in _originals(tuned).items() if n.startswith(f"{path}.")}
    _set_originals(root, tuple(inside), inside, base.inner[path])
    made = make(root, cut.inner[path], cls)
    keep_state(root, made, again=True)
    made.inherit(tuned)
    made.batch_inputs, made.aliased, made.guards, made.ties = (), (), (), ()
    made.model_attributes, made.signature, made.example_inputs, made.part_path = {}, Signature(), None, ""
    _set(made, tuned, base.inner[path], cut, path)
    return made


def _set(module: TunedState, tuned: TunedState, base: fx.Graph, cut: Split, path: str) -> None:
    """The attributes of a tuned module; of a region, those that it has a share in."""
    sites = [s for s in tuned.sites if cut.moved.get(s.name, ("", ""))[0] == path]
    module.sites = tuple(replace(s, name=cut.moved[s.name][1] if path else s.name) for s in sites)
    module.trained = tuple(n.removeprefix(f"{path}.") for n in tuned.trained if n.startswith(f"{path}."))
    module.ruleset, module.base_graph, module.tasks = tuned.ruleset, base, tuned.tasks.alike()
    module.memory = None if tuned.memory is None else tuned.memory.of_part(tuned, module)


def _originals(tuned: nn.Module) -> dict[str, nn.Parameter]:
    """The base's own values of what trains, by name."""
    store = tuned._modules.get(NAME)
    return {n: store.get_parameter(str(i)) for i, n in enumerate(store.names)} if isinstance(store, Originals) else {}


def _set_originals(root: nn.Module, names: tuple[str, ...], values: Mapping[str, nn.Parameter], base: fx.Graph) -> None:
    root._modules.pop(NAME, None)
    if names:
        originals = Originals(names, values)
        originals.add_twins(base, root)
        root.add_module(NAME, originals)


def _shell(tuned: nn.Module, path: str) -> nn.Module:
    """A module with the same members, whose tables may be changed: also in the modules inside."""
    try:
        return _cloned(tuned.get_submodule(path))
    except AttributeError:  # a region without any parameter or layer
        return nn.Module()


def _cloned(module: nn.Module) -> nn.Module:
    """Containers anew, layers as they are."""
    if type(module) is not nn.Module:
        return module
    result = nn.Module()
    result.__dict__.update(
        {k: v for k, v in module.__dict__.items() if k not in ("_modules", "_parameters", "_buffers")}
    )
    result._parameters, result._buffers = dict(module._parameters), dict(module._buffers)
    result._modules = {name: child if child is None else _cloned(child) for name, child in module._modules.items()}
    return result


def _with(tuned: nn.Module, regions: Mapping[str, nn.Module], moved: Mapping[str, tuple[str, str]]) -> nn.Module:
    """The members of a module with its regions in place, and without what has moved into them."""
    root = nn.Module()
    root._parameters, root._buffers = dict(tuned._parameters), dict(tuned._buffers)
    root.__dict__["_non_persistent_buffers_set"] = set(tuned._non_persistent_buffers_set)
    root._modules = {name: child if child is None else _cloned(child) for name, child in tuned._modules.items()}
    for name in moved:
        if name.startswith("tuners."):
            owner, attribute = owner_of(root, name)
            owner._modules.pop(attribute)
    tuners = root._modules.get("tuners")
    if tuners is not None and not tuners._modules:
        root._modules.pop("tuners")
    for path, region in regions.items():
        holder = root
        *around, last = path.split(".")
        for part in around:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder._modules[last] = region
    return root


def _new_name(name: str, moved: Mapping[str, tuple[str, str]]) -> str:
    return path_in(*moved[name]) if name in moved else name

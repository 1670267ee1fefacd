"""One real call of a model, and how its parts are called in it."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph.nested import map_tensors, tensors
from utcompile.parts.calling import computed
from utcompile.parts.read_outside import ReadOutside
from utcompile.recording.example import Example
from utcompile.recording.inputs import Examples
from utcompile.text import listed

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class PartCall:
    """One call of a part.

    Attributes:
        arguments: by name, without those that have their default.
        is_positional: whether all of them were given by position.
    """

    arguments: Mapping[str, object]
    is_positional: bool = False

    @property
    def example(self) -> tuple[object, ...] | dict[str, object]:
        """The arguments as they were given, so that hooks of the part find them where they look for them."""
        return tuple(self.arguments.values()) if self.is_positional else dict(self.arguments)

    @property
    def signature(self) -> Hashable:
        """Equal for calls that one graph can serve: names, containers, plain values, dtypes and ranks."""
        return tuple((name, _kind(value)) for name, value in self.arguments.items())


def example_of(inputs: Examples) -> Example:
    """A call of a whole model, kept for later comparisons: `args` and `kwargs`."""
    if isinstance(inputs, torch.Tensor):
        call: dict[str, object] = {"args": (inputs,), "kwargs": {}}
    elif isinstance(inputs, Mapping):
        call = {"args": (), "kwargs": dict(inputs)}
    elif isinstance(inputs, (tuple, list)):
        call = {"args": tuple(inputs), "kwargs": {}}
    else:
        raise UtcError(
            f"example_inputs must be a tuple, a dict or a tensor, not {type(inputs).__name__}", code="capture/inputs"
        )
    return Example.of(call, compared=True, dtype=torch.float32)


def observe(
    model: nn.Module, parts: Mapping[str, nn.Module], call: dict[str, object]
) -> tuple[dict[str, list[PartCall]], tuple[str, ...]]:
    """Call a model once and note the calls of its parts, and which of their parameters the code around them reads.

    Args:
        model: a copy of the user's, in the modes in which it is called.
        parts: submodules of it, by path.
        call: its `args` and `kwargs`.

    Raises:
        UtcError: the call fails, or a part is not called.
    """
    calls: dict[str, list[PartCall]] = {path: [] for path in parts}
    read = ReadOutside(parts)
    with _noting(parts, calls, read):
        try:
            with read:
                computed(model, call)
        except UtcError:
            raise
        except Exception as error:  # whatever a model's forward raises
            raise UtcError(
                f"{type(model).__name__} does not run on the example inputs",
                why=f"{type(error).__name__}: {error}".partition("\n")[0],
                fix="give what the model takes in the mode that it is in: model.eval() or model.train() first",
                code="capture/forward-failed",
            ) from error
    missing = [path for path, found in calls.items() if not found]
    if missing:
        raise _never_called(model, parts, missing, [path for path in parts if calls[path]])
    return calls, tuple(read.found)


@contextmanager
def _noting(parts: Mapping[str, nn.Module], calls: dict[str, list[PartCall]], read: ReadOutside) -> Iterator[None]:
    with ExitStack() as stack:
        for path, part in parts.items():
            noted = _Noted(path, calls[path], read)
            for handle in (
                part.register_forward_pre_hook(noted.before, with_kwargs=True, prepend=True),
                part.register_forward_hook(noted.after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


class _Noted:
    """The hooks of one part."""

    def __init__(self, path: str, calls: list[PartCall], read: ReadOutside) -> None:
        self.path, self.calls, self.read = path, calls, read
        self.states: list[list[tuple[str, object]]] = []

    def before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note a call, and the state of the objects that it is given."""
        self.read.enter()
        self.calls.append(_bound(module, args, kwargs))
        self.states.append(_state((args, kwargs)))

    def after(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], _: object) -> None:
        """Refuse a call that has changed an object.

        Raises:
            UtcError: it has.
        """
        self.read.leave()
        before = self.states.pop()
        now = _state((args, kwargs))
        if before != now:
            changed = [kind for kind, state in now if (kind, state) not in before]
            raise UtcError(
                f"the part {self.path} ({type(module).__name__}) changes what it is given: a {listed(changed[:2])}",
                why="a graph returns values: what a call leaves in an object, as in a cache of keys, would be lost",
                fix="let `within=` name the submodules that compute: the ffn, the projections of an attention",
                code="parts/unsupported",
            )


def _state(value: object) -> list[tuple[str, object]]:
    """The objects among arguments, each with what is in it."""
    if isinstance(value, (tuple, list, dict)):
        keys, members = (list(value), list(value.values())) if isinstance(value, dict) else ([], list(value))
        inside = [found for member in members for found in _state(member)]
        own = [(type(value).__name__, (*map(str, keys), *map(id, members)))] if not isinstance(value, tuple) else []
        return [*inside, *own]
    if isinstance(value, (torch.Tensor, nn.Module, *_PLAIN)) or not hasattr(value, "__dict__"):
        return []
    return [(type(value).__name__, tuple((id(t), t._version, t.shape) for t in tensors(value)))]


def _bound(module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> PartCall:
    signature = inspect.signature(module.forward)
    found: dict[str, object] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif not _is_default(value, parameter.default):
            found[name] = value
    is_variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())
    is_positional = not kwargs and not is_variadic and len(found) == len(args)
    arguments = {name: map_tensors(lambda t: t.detach().clone(), value) for name, value in found.items()}
    return PartCall(arguments, is_positional)


def _is_default(value: object, default: object) -> bool:
    """Whether a call that leaves out an argument means the same."""
    return isinstance(value, _PLAIN) and type(value) is type(default) and value == default


def _kind(value: object) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.dim()
    if isinstance(value, dict):
        return dict, tuple((key, _kind(v)) for key, v in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_kind, value))
    if isinstance(value, _PLAIN):
        return type(value), value
    return type(value), tuple(map(_kind, tensors(value)))


def _never_called(
    model: nn.Module, parts: Mapping[str, nn.Module], missing: Sequence[str], called: Sequence[str]
) -> UtcError:
    path, module = missing[0], parts[missing[0]]
    why, fix = (
        f"of the parts, the call reaches {listed(called)}" if called else "the call reaches none of the parts",
        "",
    )
    if isinstance(module, _CONTAINERS):
        why, fix = f"it is an nn.{type(module).__name__}, whose members are called", f'write within="{path}.*"'
    else:
        inside = [f"{path}.{name}" for name, _ in module.named_children()]
        fix = (
            f"name what `forward` calls{f': {listed(inside)}, perhaps' if inside else ''}; or give other example inputs"
        )
        why += "; only calls of the module itself are seen, not of its other methods"
    return UtcError(
        f"the part {path} is never called on the example inputs",
        where=f"{type(model).__name__}.forward",
        why=why,
        fix=fix,
        code="parts/not-called",
    )

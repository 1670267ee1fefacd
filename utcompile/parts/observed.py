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
from utcompile.recording.example import Example
from utcompile.recording.inputs import Examples
from utcompile.text import listed

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class PartCall:
    """One call of a part: its arguments by name, as `capture` takes them."""

    arguments: Mapping[str, object]

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


def observe(model: nn.Module, parts: Mapping[str, nn.Module], call: dict[str, object]) -> dict[str, list[PartCall]]:
    """Call a model once and note the calls of its parts.

    Args:
        model: a copy of the user's, in the modes in which it is called.
        parts: submodules of it, by path.
        call: its `args` and `kwargs`.

    Raises:
        UtcError: the call fails, or a part is not called.
    """
    calls: dict[str, list[PartCall]] = {path: [] for path in parts}
    with _noting(parts, calls):
        try:
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
    return calls


@contextmanager
def _noting(parts: Mapping[str, nn.Module], calls: dict[str, list[PartCall]]) -> Iterator[None]:
    with ExitStack() as stack:
        for path, part in parts.items():
            noted = _Noted(path, calls[path])
            for handle in (
                part.register_forward_pre_hook(noted.before, with_kwargs=True, prepend=True),
                part.register_forward_hook(noted.after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


class _Noted:
    """The hooks of one part."""

    def __init__(self, path: str, calls: list[PartCall]) -> None:
        self.path, self.calls = path, calls
        self.states: list[list[tuple[str, object]]] = []

    def before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note a call, and the state of the objects that it is given."""
        self.calls.append(_bound(module, args, kwargs))
        self.states.append(_state((args, kwargs)))

    def after(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], _: object) -> None:
        """Refuse a call that has changed an object.

        Raises:
            UtcError: it has.
        """
        before = self.states.pop()
        now = _state((args, kwargs))
        if before != now:
            changed = [kind for kind, _ in now if kind not in [k for k, s in before if (k, s) in now]]
            raise UtcError(
                f"the part {self.path} ({type(module).__name__}) changes what it is given: a {listed(changed[:2])}",
                why="a graph returns values: what a call leaves in an object, as in a cache of keys, would be lost",
                fix="let `within=` name the submodules that compute: the ffn, the projections of an attention",
                code="parts/unsupported",
            )


def _state(value: object) -> list[tuple[str, object]]:
    """The objects among arguments, each with the tensors in it."""
    if isinstance(value, (tuple, list, dict)):
        return [found for part in (value.values() if isinstance(value, dict) else value) for found in _state(part)]
    if isinstance(value, (torch.Tensor, nn.Module, *_PLAIN)) or not hasattr(value, "__dict__"):
        return []
    return [(type(value).__name__, tuple((id(t), t._version, t.shape) for t in tensors(value)))]


def _bound(module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> PartCall:
    signature = inspect.signature(module.forward)
    found: dict[str, object] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        found |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return PartCall({name: map_tensors(lambda t: t.detach().clone(), value) for name, value in found.items()})


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

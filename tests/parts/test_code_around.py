"""`within=`: what the code around the parts may do with them, and what is refused because no graph could do it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import models as zoo
from support.parts_toys import RULES
from torch import nn

import utcompile as utc

Forward = Callable[["Around", torch.Tensor], torch.Tensor]


class Around(nn.Module):
    """A part `p`, what is kept of its calls, and a forward that is given as a function."""

    def __init__(self, part: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.p, self.calls = part, 0
        self.kept: dict[str, torch.Tensor] = {}
        self.function = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class Keeps(nn.Linear):
    """Keeps its last result in an attribute, and in what it is given."""

    last: torch.Tensor | None = None

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor, out: object = None, scale: float | None = None) -> torch.Tensor:  # type: ignore[override]
        self.last = super().forward(x)
        if isinstance(out, dict):
            out["y"] = self.last
        if isinstance(out, list):
            out.append(self.last)
        return self.last if scale is None else self.last * scale


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def line() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))


def hooked(*, inner: bool) -> Around:
    """Adds the sum of a feature that a hook has kept."""
    model = Around(line(), lambda m, x: m.p(x) + m.kept["f"].sum(-1, keepdim=True))
    (model.p[1] if inner else model.p).register_forward_hook(lambda _, __, out: model.kept.update(f=out))  # type: ignore[index]
    return model


def into(container: Callable[[], object]) -> Forward:
    return lambda m, x: m.p(x, container()) + x


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "reads a weight": (
        lambda: Around(line(), lambda m, x: m.p(x) @ m.p[0].weight.T @ m.p[0].weight),  # type: ignore[index]
        "p.0.weight is read by the model's own code",
        "parts/shared",
    ),
    "calls a member": (
        lambda: Around(line(), lambda m, x: m.p(x) + m.p.get_submodule("2")(m.p.get_submodule("0")(x))),
        "is read by the model's own code",
        "parts/shared",
    ),
    "a feature of the part": (lambda: hooked(inner=False), "other outputs at the start", "tune/not-identity"),
    "a feature inside": (lambda: hooked(inner=True), "other outputs at the start", "tune/not-identity"),
    "an attribute": (
        lambda: Around(Keeps(), lambda m, x: m.p(x) + m.p.last),  # type: ignore[operator]
        "Around does not run with captured parts: AttributeError",
        "parts/unsupported",
    ),
    "a member by number": (
        lambda: Around(line(), lambda m, x: m.p(x) * m.p[0].in_features),  # type: ignore[index]
        "'Sequential' object is not subscriptable",
        "parts/unsupported",
    ),
    "writes into a dict": (
        lambda: Around(Keeps(), into(dict)),
        "changes what it is given: a dict",
        "parts/unsupported",
    ),
    "writes into a list": (
        lambda: Around(Keeps(), into(list)),
        "changes what it is given: a list",
        "parts/unsupported",
    ),
    "writes into an input": (
        lambda: Around(Writes(), lambda m, x: (y := x.clone()) * 0 + m.p(y) + y),
        "what it writes into an input",
        "tune/not-identity",
    ),
    "two dtypes": (
        lambda: Around(nn.Embedding(9, 4), lambda m, x: m.p(x[..., 0].long() % 9) + m.p(x[..., 0].int() % 9)),
        "(input: int64 [2, 5]) and (input: int32 [2, 5])",
        "parts/signatures",
    ),
}


class Writes(nn.Linear):
    """Changes what it is given."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        x.mul_(2)
        return y


@pytest.mark.parametrize("was_called", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_does_not_give_to_the_code_around_it_is_refused(name: str, *, was_called: bool) -> None:
    make, said, code = REFUSED[name]
    model = make()
    if was_called:  # so that what it keeps is right for the example inputs, and for no other
        model(X)
    with pytest.raises(utc.UtcError) as error:
        utc.compile(model, RULES, X, within="p", train=[])
    if name.startswith("a feature") and not was_called:  # there is none to be read
        said, code = "does not run with captured parts: KeyError: 'f'", "parts/unsupported"
    assert said in str(error.value) and error.value.code == code


def test_what_is_not_tuned_may_be_read() -> None:
    model = Around(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), lambda m, x: m.p(x.long() % 9) @ m.p[0].weight.T)  # type: ignore[index]
    assert utc.match(utc.capture_parts(model, X[..., 0], within="p.1"), RULES).apply()(X[..., 0]).shape == (2, 5, 9)


def test_counts_and_hooks_of_the_users_class_are_as_they_were() -> None:
    def forward(m: Around, x: torch.Tensor) -> torch.Tensor:
        m.calls += 1
        result: torch.Tensor = m.p(x) * m.calls
        return result

    model = Around(line(), forward)
    model.p.register_forward_pre_hook(lambda _, given: (given[0] + 1,))
    tuned = utc.compile(model, RULES, X, within="p")
    zoo.shake(tuned, 0.3)
    folded, _ = utc.fold(tuned)
    assert model.calls == tuned.calls == folded.calls == 0
    torch.testing.assert_close(folded(X), tuned(X), rtol=1e-5, atol=1e-5)  # rounding of the folded weights
    with utc.disable_tuners(tuned):
        assert torch.equal(tuned(X) / 2, model(X))


def test_a_default_that_is_given_is_the_same_call() -> None:
    model = Around(Keeps(), lambda m, x: m.p(x) + m.p(x, None) + m.p(x, scale=None))
    assert isinstance(utc.compile(model, RULES, X, within="p").p, utc.TunedModule)


def test_a_guard_names_the_part() -> None:
    tuned = utc.compile(Around(Keeps(), lambda m, x: m.p(x, None, m.calls or None)), RULES, X, within="p")
    tuned.calls = 2
    with pytest.raises(utc.UtcError, match="the part p: "):
        tuned(X)


@pytest.mark.parametrize("both", [False, True])
def test_a_part_under_autocast_is_folded(both: bool) -> None:
    def forward(m: Around, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: torch.Tensor = m.p(x).float()
        return y + m.p(x) if both else y

    tuned = utc.compile(Around(line(), forward), RULES, X, within="p")
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned)
    assert report.is_original
    torch.testing.assert_close(folded(X), tuned(X), rtol=5e-2, atol=5e-2)  # bfloat16 has 8 bits, in three layers


class Shared(nn.Module):
    """One module at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.a = line()
        self.b, self.l = self.a, nn.ModuleList([self.a, line()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(self.a(x)) + self.l[1](self.l[0](x))
        return result


@pytest.mark.parametrize(("within", "parts"), [("a", 1), ("b", 1), ("l.*", 2), (["b", "l.0"], 1)])
def test_a_shared_module_is_found_at_each_of_its_places(within: str | list[str], parts: int, tmp_path: Path) -> None:
    model = Shared()
    tuned = utc.compile(model, RULES, X, within=within)
    found = [path for path, m in tuned.named_modules() if isinstance(m, utc.TunedModule)]
    assert found == ["a", "l.1"][:parts] and tuned.b is tuned.a is tuned.l[0]
    zoo.shake(tuned, 0.3)
    utc.save_tuners(tuned, tmp_path)
    again = utc.load_tuners(utc.compile(model, RULES, X, within=within), tmp_path)
    assert torch.equal(again(X), tuned(X))
    folded, report = utc.fold(copy.deepcopy(tuned))
    assert report.is_original and folded.a is folded.b is folded.l[0]
    torch.testing.assert_close(folded(X), tuned(X), rtol=1e-5, atol=1e-5)


class Levels(nn.Linear):
    """Reads a list of feature maps and a mapping, as the head of a detector does; or as many arguments as there are."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, *levels: object, **more: object) -> torch.Tensor:  # type: ignore[override]
        maps = levels[0] if isinstance(levels[0], list) else levels
        scale = more.get("scale", {"by": torch.ones(())})
        assert isinstance(scale, dict)
        total = torch.stack([super(Levels, self).forward(m).mean(1) for m in maps]).sum(0) * scale["by"]
        return total[:, None].expand(-1, 5, -1)


LEVELS: dict[str, Forward] = {
    "a list": lambda m, x: m.p([x, x[:, :3]]) + m.p([x[:, 1:], x[:, :2]]),
    "a list of several lengths outside": lambda m, x: m.p([x, x[:, :3]]),
    "a mapping": lambda m, x: m.p(x, scale={"by": x.mean()}) + m.p(x[:, 1:], scale={"by": x.sum()}),
    "any number": lambda m, x: m.p(x, x[:, :2]) + m.p(x[:, 1:], x[:, :4]),
}


@pytest.mark.parametrize("name", LEVELS)
def test_sizes_of_nested_inputs_vary(name: str) -> None:
    tuned = utc.compile(Around(Levels(), LEVELS[name]), RULES, X, within="p")
    zoo.shake(tuned, 0.3)
    folded, _ = utc.fold(tuned)
    for x in (X, torch.randn(3, 8 if "outside" in name else 5, 4)):
        torch.testing.assert_close(folded(x), tuned(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_a_part_that_is_wrapped_afterwards_is_saved_under_its_own_name(inside: bool, tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Around(nn.Sequential(line(), line()), lambda m, x: m.p(x))
    within, train = ("p.0", ["module:p.1"]) if inside else ("p", [])
    tuned = utc.compile(model, RULES, X, within=within, train=train)
    zoo.shake(tuned, 0.3)
    expected = tuned(X)
    for wrap in (checkpoint_wrapper, lambda m: torch.compile(m, backend="eager")):
        wrapped = copy.deepcopy(tuned)
        wrapped.p = wrap(wrapped.p)
        utc.save_tuners(wrapped, tmp_path)
        again = utc.load_tuners(utc.compile(model, RULES, X, within=within, train=train), tmp_path)
        assert torch.equal(again(X), expected)
        utc.load_tuners(wrapped, tmp_path)
        folded, report = utc.fold(wrapped)
        assert report.is_original
        torch.testing.assert_close(folded(X), expected, rtol=1e-5, atol=1e-5)


def _compiled(module: nn.Module) -> nn.Module:
    found = torch.compile(module, backend="eager")
    assert isinstance(found, nn.Module)
    return found


def _checkpointed(module: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    found: nn.Module = checkpoint_wrapper(module)
    return found


@pytest.mark.parametrize("wrap", [nn.DataParallel, _compiled, torch.optim.swa_utils.AveragedModel, _checkpointed])
def test_what_is_wrapped_before_is_refused_by_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Around(line(), lambda m, x: m.p(x))
    with pytest.raises(
        utc.UtcError, match=r"the model is wrapped: .*\n.*\n.*model\.(module|_orig_mod|_checkpoint)"
    ) as error:
        utc.compile(wrap(model), RULES, X, within="**.p")
    assert error.value.code == "parts/unsupported"
    model.p = nn.Sequential(wrap(model.p))
    with pytest.raises(utc.UtcError, match=r"p\.0 is wrapped: it is a \w+\n.*\n.*model\.p\.0\."):
        utc.compile(model, RULES, X, within="p.0")


@pytest.mark.parametrize("as_part", [False, True])
def test_a_model_with_a_tuned_part_is_not_tuned_again(as_part: bool) -> None:
    model = Around(nn.Sequential(line(), line()), lambda m, x: m.p(x))
    if as_part:
        model = utc.compile(model, RULES, X, within="p.0")
    else:
        model.p[0] = utc.compile(line(), RULES, X)  # type: ignore[operator]
    with pytest.raises(utc.UtcError, match=r"p\.0 is tuned already") as error:
        utc.compile(model, RULES, X, within="p.1")
    assert error.value.code == "parts/unsupported"
    if as_part:  # after a fold it is as any other model
        folded, _ = utc.fold(model)
        assert isinstance(utc.compile(folded, RULES, X, within="p.1").p[1], utc.TunedModule)  # type: ignore[index]

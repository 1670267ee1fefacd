"""One call of a model as named tensors: which inputs there are, which carry the batch, and random values for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import NoneType

import onnxruntime as ort
import torch
from torch import Tensor, nn

from utcompile.deploy.axes import BATCH, Axes, asked_axes, captured_axes, check_asked, sizes_in
from utcompile.deploy.structure import leaves, substitute, unique
from utcompile.errors import UtcError, check_type, did_you_mean
from utcompile.graph import full_precision
from utcompile.graph.draws import draw_like
from utcompile.modes import evaluating
from utcompile.rewrite import enabled_tuners

_FEW = 4  # integers in a row: a grid, a box, a size
_COLUMNS = 16  # numbers in a row that are looked at one by one
ExampleInputs = Tensor | tuple[object, ...] | Mapping[str, object]


@dataclass(frozen=True)
class Call:
    """An example call of a model, flattened.

    Attributes:
        args, kwargs: what `forward` is called with; tensors may sit in tuples, lists and mappings.
        names: one name a tensor, the arguments' own (upper case too); nested ones as `pair_0`.
        tensors: the example tensors, on the model's device.
        axes: for each tensor the dimensions that vary between calls, with the names of their axes.
        sizes: the size of each axis in the example.
    """

    args: tuple[object, ...]
    kwargs: dict[str, object]
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    axes: Axes
    sizes: Mapping[str, int]

    @property
    def batch(self) -> int:
        """The example's batch size; 1 where no axis is the batch."""
        return self.sizes.get(BATCH, 1)

    @property
    def batch_inputs(self) -> list[str]:
        """The inputs with a batch."""
        return [name for name, shape in zip(self.names, self.axes, strict=True) if BATCH in shape.values()]

    def only(self, axis: str) -> Call:
        """The same call with one axis dynamic, and all other sizes fixed."""
        axes = tuple({d: name for d, name in shape.items() if name == axis} for shape in self.axes)
        return replace(self, axes=axes, sizes={axis: self.sizes[axis]})

    def within(self, opened: ort.InferenceSession) -> Call:
        """The same call, with those axes dynamic that an ONNX file has dynamic."""
        declared = {entry.name: entry.shape for entry in opened.get_inputs()}
        kept = {
            name
            for given, shape in zip(self.names, self.axes, strict=True)
            for dim, name in shape.items()
            if given not in declared or dim >= len(declared[given]) or not isinstance(declared[given][dim], int)
        }
        axes = tuple({d: name for d, name in shape.items() if name in kept} for shape in self.axes)
        return replace(self, axes=axes, sizes={name: size for name, size in self.sizes.items() if name in kept})

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: ExampleInputs,
        batch_inputs: Sequence[str] | None = None,
        dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ) -> Call:
        """Flatten `example_inputs` for `model`.

        Args:
            example_inputs: a tuple (positional), a mapping (keyword) or one tensor.
            batch_inputs: the names of the inputs that carry the batch. None: `model.batch_inputs` where there is
                one, else every tensor whose dimension 0 equals that of the first tensor of rank one or more.
            dynamic: for each input the dimensions that vary, with names. None: what the capture has dynamic; of a
                model that is not captured, the batch.

        Raises:
            UtcError: there is no tensor, `forward` takes fewer arguments, `batch_inputs` names no input, or `dynamic`
                names what is not there or is fixed.
        """
        args, kwargs = positional_and_keyword(example_inputs)
        tree = {**_argument_names(model, args), **kwargs}
        named = [(name, leaf) for name, leaf in leaves(tree) if isinstance(leaf, Tensor)]
        if not any(leaf.ndim for _, leaf in named):
            held = ", ".join(f"{name}: {type(leaf).__name__}" for name, leaf in leaves(tree))
            raise UtcError(
                "the example inputs contain no tensor with a batch dimension",
                why=f"they contain {held or 'nothing'}",
                fix="pass a tensor, a tuple of arguments, or a dict of keyword arguments",
                code="export/inputs",
            )
        names = unique([name for name, _ in named])
        device = _device(model)
        tensors = tuple(leaf.detach().to(device or leaf.device) for _, leaf in named)
        check_type(batch_inputs, (Sequence, NoneType), "batch_inputs", "the names of inputs, or None")
        axes = _axes(model, names, tensors, batch_inputs, dynamic)
        sizes = sizes_in(axes, tensors, names)
        if not all(sizes.values()):
            raise UtcError(
                "the example inputs contain no sample",
                why=f"their {next(n for n, s in sizes.items() if not s)} dimension is 0",
                code="export/inputs",
            )
        return cls(args, kwargs, tuple(names), tensors, axes, sizes)

    def at(self, sizes: int | Mapping[str, int]) -> tuple[Tensor, ...]:
        """The example itself at other sizes (a number is the batch): its parts repeated or sliced."""
        sizes = self._sizes(sizes)
        return tuple(_resized(t, shape, sizes) for t, shape in zip(self.tensors, self.axes, strict=True))

    def random(self, sizes: int | Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Random tensors of the example's dtypes and ranges at other sizes; no global RNG is touched."""
        sizes = self._sizes(sizes)
        batch = sizes.get(BATCH, 1)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(self.batch, (batch,), generator=generator)
        return tuple(
            _random_like(t, _resized(t, shape, sizes, rows), BATCH in shape.values(), generator, self.batch, batch)
            for t, shape in zip(self.tensors, self.axes, strict=True)
        )

    def in_rows(self, sizes: int | Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """The example's own rows in an order that is drawn: for a model that does not take every value in a range."""
        sizes = self._sizes(sizes)
        batch = sizes.get(BATCH, 1)
        rows = torch.randint(self.batch, (batch,), generator=torch.Generator().manual_seed(seed))
        resized = [_resized(t, shape, sizes, rows) for t, shape in zip(self.tensors, self.axes, strict=True)]
        return tuple(
            t if BATCH in shape.values() else _within(t, self.batch, batch)
            for t, shape in zip(resized, self.axes, strict=True)
        )

    def _sizes(self, sizes: int | Mapping[str, int]) -> dict[str, int]:
        return {**self.sizes, **({BATCH: sizes} if isinstance(sizes, int) else sizes)}

    def run(self, model: nn.Module, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Call `model` with `tensors` in the example's places; its result flattened to named tensors.

        Raises:
            UtcError: the result holds something that is neither a tensor nor `None`.
        """
        source = iter(tensors)
        args, kwargs = substitute(self.args, source), substitute(self.kwargs, source)
        found = [(_output_name(name), leaf) for name, leaf in leaves(model(*args, **kwargs)) if leaf is not None]
        for name, leaf in found:
            if not isinstance(leaf, Tensor):
                raise UtcError(
                    f"the model returns a {type(leaf).__name__} at {name!r}, not a tensor",
                    why="an ONNX graph returns tensors only",
                    fix="export a wrapper whose forward returns tensors, or tuples, lists and mappings of tensors",
                    code="export/outputs",
                )
        if not found:
            raise UtcError(
                "the model returns no tensor", why="an ONNX graph has at least one output", code="export/outputs"
            )
        names = [name for name, _ in found]
        return dict(zip(unique(names, self.names), (leaf for _, leaf in found), strict=True))


def positional_and_keyword(example_inputs: ExampleInputs) -> tuple[tuple[object, ...], dict[str, object]]:
    """`example_inputs` as the arguments of a call."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise UtcError(
        f"example_inputs is a {type(example_inputs).__name__}",
        fix="pass a tensor, a tuple of positional arguments, or a dict of keyword arguments",
        code="export/inputs",
    )


def resized(example_inputs: ExampleInputs, batch: int) -> tuple[object, ...] | dict[str, object]:
    """`example_inputs` at another batch size, where no model is at hand to name its arguments.

    >>> resized((torch.ones(1, 3), 0.5), 4)[0].shape
    torch.Size([4, 3])
    """
    args, kwargs = positional_and_keyword(example_inputs)
    tree: tuple[object, ...] | dict[str, object] = kwargs or args
    found = [leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor)]
    if not any(t.ndim for t in found):
        raise UtcError("the example inputs contain no tensor with a batch dimension", code="export/inputs")
    batched = _batched([], tuple(found), None)
    return substitute(tree, iter([_rows(t, batch) if b else t for t, b in zip(found, batched, strict=True)]))


@contextmanager
def as_shipped(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode, its tuners on, without gradients and without TF32; modes are restored afterwards."""
    # TF32 convolutions on CUDA differ from the file by 1e-3, which would hide a wrong export.
    with evaluating(model), enabled_tuners(model), full_precision():
        yield


def _output_name(name: str) -> str:
    """A lone tensor is `output`, the members of a tuple `output_0`, `output_1` …; a mapping keeps its keys."""
    if not name:
        return "output"
    return f"output_{name}" if name[0].isdigit() else name


def _argument_names(model: nn.Module, args: tuple[object, ...]) -> dict[str, object]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    named: dict[str, object] = {}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            named.update({f"{parameter.name}_{i}": value for i, value in enumerate(args[len(named) :])})
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and len(named) < len(args):
            named[parameter.name] = args[len(named)]
    if len(named) < len(args):
        raise UtcError(
            f"{len(args)} example inputs for a forward that takes {len(named)}",
            where=f"{type(model).__name__}.forward",
            fix=f"its arguments are: {', '.join(p.name for p in parameters) or 'none'}",
            code="export/inputs",
        )
    return named


def _batched(names: list[str], tensors: tuple[Tensor, ...], wanted: Sequence[str] | None) -> tuple[bool, ...]:
    if wanted is None:
        batch = next(t.shape[0] for t in tensors if t.ndim)
        return tuple(t.ndim > 0 and t.shape[0] == batch for t in tensors)
    if not wanted:
        raise UtcError(
            "the model runs at one batch size only, and an exported file has a dynamic batch",
            why="it was captured with dynamic={}, or it pins its batch: `captured.report.pinned` says where",
            fix="in forward, take sizes from x.shape, and capture it again",
            code="export/fixed-size",
        )
    for name in wanted:
        # A nested argument is named as a whole: `pair` stands for `pair_0` and `pair_1`.
        if not any(n == name or n.startswith(f"{name}_") for n in names):
            raise UtcError(
                f"batch_inputs names {name!r}, which is no input", fix=did_you_mean(name, names), code="export/inputs"
            )
    chosen = tuple(any(n == name or n.startswith(f"{name}_") for name in wanted) for n in names)
    sizes = {n: t.shape[0] if t.ndim else None for n, t, c in zip(names, tensors, chosen, strict=True) if c}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise UtcError(
            "the inputs named in batch_inputs differ in their first dimension",
            why=", ".join(f"{n}: {'a scalar' if size is None else size}" for n, size in sizes.items())
            or "none is named",
            code="export/inputs",
        )
    return chosen


def _axes(
    model: nn.Module,
    names: list[str],
    tensors: tuple[Tensor, ...],
    batch_inputs: Sequence[str] | None,
    dynamic: Mapping[str, Mapping[int, str]] | None,
) -> Axes:
    """What varies between calls: as asked, as captured, or the batch in dimension 0."""
    captured = captured_axes(model, names)
    if dynamic is not None:
        asked = asked_axes(names, tensors, dynamic)
        if captured is not None:
            check_asked(asked, captured, names, model)
            return tuple({d: known[d] for d in shape} for shape, known in zip(asked, captured, strict=True))
        return asked
    if captured is not None and batch_inputs is None and any(captured):
        return captured
    if batch_inputs is None:
        batch_inputs = getattr(model, "batch_inputs", None)
    batched = _batched(names, tensors, batch_inputs)
    others = captured or ({},) * len(names)
    rest = tuple({d: name for d, name in shape.items() if name != BATCH} for shape in others)
    return tuple({0: BATCH, **shape} if b else shape for b, shape in zip(batched, rest, strict=True))


def _rows(example: Tensor, batch: int) -> Tensor:
    return example[torch.arange(batch, device=example.device) % example.shape[0]]


def _resized(example: Tensor, shape: Mapping[int, str], sizes: Mapping[str, int], rows: Tensor | None = None) -> Tensor:
    """A tensor at other sizes: repeated or sliced; along the batch, the rows that are given."""
    for dim, name in shape.items():
        index = torch.arange(sizes[name]) % example.shape[dim] if rows is None or name != BATCH else rows
        if rows is not None or sizes[name] != example.shape[dim]:
            example = example.index_select(dim, index.to(example.device))
    return example


def _random_like(
    example: Tensor, kept: Tensor, is_batched: bool, generator: torch.Generator, before: int, batch: int
) -> Tensor:
    """A tensor like the example's: what is drawn lies in its range, what says how much or where is the example's.

    Integers in a range may be drawn where a row has many: token ids. A row of few, or one number per sample, may be a
    length, a grid or a place; so it is that of another sample. A mask is drawn by rows, for one that masks all is none.

    Args:
        kept: the example's own values at the wanted sizes.
    """
    values = example.cpu()
    kept = kept.cpu() if is_batched else _within(kept.cpu(), before, batch)
    if not values.numel():
        return torch.zeros(kept.shape, dtype=values.dtype).to(example.device)
    if values.is_floating_point() or values.is_complex():
        return _drawn(values, kept, generator).to(example.device)
    is_ids = is_batched and values.dim() > 1 and values.shape[-1] > _FEW and values.dtype is not torch.bool
    if is_ids and values.unique().numel() > 2:
        low, high = int(values.min()), int(values.max())
        kept = torch.randint(low, high + 1, kept.shape, generator=generator, dtype=values.dtype)
    return kept.to(example.device)


def _drawn(values: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in the example's range; columns of whole numbers, as a batch index in boxes, are the example's."""
    if values.is_complex():
        return draw_like(kept, generator)
    finite = values[values.isfinite()].double()
    least, most = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    is_constant = least == most
    if is_constant:  # zeros or ones as a placeholder: constants would prove little
        least, most = (min(0.0, least), max(0.0, most)) if least else (-1.0, 1.0)
    drawn = torch.rand(kept.shape, generator=generator, dtype=torch.float64) * (most - least) + least
    drawn = drawn.to(values.dtype)
    if is_constant or values.dim() < 2 or values.shape[-1] > _COLUMNS:
        return drawn
    told = values if values.shape[-1] == kept.shape[-1] else kept
    whole = (told == told.round()).flatten(0, -2).all(0)
    return torch.where(whole, kept, drawn)


def _within(example: Tensor, before: int, batch: int) -> Tensor:
    """What carries no batch, at a smaller one: what could be the number of a sample is that of one that is there."""
    if batch >= before or not example.numel() or example.dtype is torch.bool or example.is_complex():
        return example
    index = example == example.round() if example.is_floating_point() else torch.ones_like(example, dtype=torch.bool)
    index &= (example >= 0) & (example < before)
    if example.dim() > 1 and example.shape[-1] <= _COLUMNS:
        index = index.flatten(0, -2).all(0)
        return torch.where(index, example % batch, example)
    return example % batch if index.all() else example


def _device(model: nn.Module) -> torch.device | None:
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return None

"""The example call of a captured model, and calls like it: proofs compare two modules on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import fx, nn

from utcompile.graph.draws import draw_like
from utcompile.graph.meta import value_of
from utcompile.graph.nested import map_tensors, tensors

_ROWS = 4  # of the example that are kept where the rows are independent samples
_STILL = frozenset("to long int view reshape flatten contiguous clone unsqueeze squeeze transpose permute".split())


@dataclass(frozen=True)
class Likeness:
    """A call that a captured model is known to take, and calls like it.

    Attributes:
        arguments: by the names of the graph's inputs, on the CPU; tensors may sit in tuples, lists and dicts.
        batched: for each tensor, in order, whether its dimension 0 is the batch.
    """

    arguments: Mapping[str, object]
    batched: tuple[bool, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, object], batch_inputs: Collection[str]) -> Likeness:
        """All rows of the example, or the first few where the rows are independent samples."""
        moved = map_tensors(lambda t: t.detach() if t.is_meta else t.detach().cpu(), dict(arguments))
        batch = batch_of(moved, batch_inputs)
        flags = [
            name in batch_inputs and t.dim() > 0 and t.shape[0] == batch for name in moved for t in tensors(moved[name])
        ]
        whole = cls(moved, tuple(flags))
        return whole.at(min(whole.batch or 0, _ROWS)) if whole.is_resizable else whole

    @property
    def batch(self) -> int | None:
        """The number of samples; None where no dimension is the batch."""
        return next((t.shape[0] for t, b in zip(tensors(self.arguments), self.batched, strict=True) if b), None)

    @property
    def is_resizable(self) -> bool:
        """Whether every tensor is a batch of independent samples.

        A list of integers may count the rows of another input, or say to which sample each row belongs.
        """
        found = tensors(self.arguments)
        alone = all(t.is_floating_point() or t.dim() > 1 for t in found)
        return bool(found) and all(self.batched) and alone and bool(self.batch)

    def at(self, batch: int) -> Likeness:
        """The call at another batch size, with rows repeated or left out; the call itself where it has no batch."""
        if not self.is_resizable:
            return self
        rows = torch.arange(batch) % (self.batch or 1)
        return replace(self, arguments=map_tensors(lambda t: t[rows], self.arguments))

    def drawn(self, seed: int, tables: Mapping[str, int], batch: int | None) -> Likeness:
        """A similar call.

        Args:
            seed: of what is drawn.
            tables: for each input that is ids and nothing else, the number of rows of its table.
            batch: the number of samples; None where there is no batch.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(self.batch, (batch,), generator=generator) if self.batch and batch else None
        flags = iter(self.batched)

        def draw(tensor: torch.Tensor, table: int | None) -> torch.Tensor:
            return draw_like(tensor, generator, rows if next(flags) else None, table)

        made = {k: map_tensors(partial(draw, table=tables.get(k)), value) for k, value in self.arguments.items()}
        return replace(self, arguments=made)

    def on(self, device: torch.device) -> dict[str, object]:
        """The arguments on a device."""
        return map_tensors(lambda t: t.to(device), dict(self.arguments))


def batch_of(arguments: Mapping[str, object], batch_inputs: Collection[str]) -> int | None:
    """The commonest size of dimension 0 among the inputs that carry the batch; None where there are none."""
    carrying = [t for name in arguments if name in batch_inputs for t in tensors(arguments[name]) if t.dim()]
    sizes = Counter(t.shape[0] for t in carrying).most_common(1)
    return sizes[0][0] if sizes else None


def without_example(graph: fx.Graph, batch: int) -> Likeness:
    """Arguments of the captured shapes, for a module that has no example: random numbers, and ones for integers."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    for node in graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if value is not None:
            sizes = value.sizes(batch)
            is_drawn = value.dtype.is_floating_point or value.dtype.is_complex
            made[str(node.target)] = (
                torch.randn(sizes, generator=generator, dtype=value.dtype)
                if is_drawn
                else torch.ones(sizes, dtype=value.dtype)
            )
    return Likeness(made, (False,) * len(made))


def tables_of(graph: fx.Graph, root: nn.Module) -> dict[str, int]:
    """The inputs that index a table of known size, with the number of its rows."""
    found = {str(n.target): rows_indexed(n, root) for n in graph.nodes if n.op == "placeholder"}
    return {name: rows for name, rows in found.items() if rows is not None}


def rows_indexed(ids: fx.Node, root: nn.Module) -> int | None:
    """The number of rows of the tables that a value of integers indexes; None where it indexes none."""
    value = value_of(ids)
    if value is None or value.dtype not in (torch.int64, torch.int32):
        return None
    found, stack = [], [ids]
    while stack:
        node = stack.pop()
        for user in node.users:
            if user.op == "call_module" and user.args[:1] == (node,):
                leaf = root.get_submodule(str(user.target))
                found += [leaf.num_embeddings] if isinstance(leaf, (nn.Embedding, nn.EmbeddingBag)) else []
            elif user.op == "call_function" and user.target is nn.functional.embedding and user.args[:1] == (node,):
                table = user.args[1] if len(user.args) > 1 else None
                shape = value_of(table).shape if isinstance(table, fx.Node) and value_of(table) else None  # type: ignore[union-attr]
                found += [shape[0]] if shape and isinstance(shape[0], int) else []
            elif user.op == "call_method" and user.target in _STILL and user.args[:1] == (node,):
                stack.append(user)
    return min(found, default=None)

"""What a plan's tuners cost: floating-point operations of their forward, and what they save for backward.

*FLOPs* are what `torch.utils.flop_counter.FlopCounterMode` counts for a tuner's forward: two for each multiply-add of
matrix products, convolutions and attention, none for elementwise work. The model's, of which they are a share, are
counted by the same measure.

*Saved bytes* are those of the distinct storages that autograd saves for backward in the tuner's own forward, in
training, reading an input that requires grad; parameters are not counted. Inputs that several tuners save count once
in the plan's sum. A weight tuner that is no branch makes a second weight, which is computed again for backward: what
counts is its operation's input. Left out: what the frozen backbone saves because a gradient now flows through it,
whatever the backbone would save anyway (a tuner's input counts all the same), the backward's temporaries, gradients,
and the optimizer's state.

Both are found by running the tuners on fake tensors, and only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from utcompile.graph import GraphView, Value, flops
from utcompile.matching.fitting import site_key
from utcompile.matching.sites import Site
from utcompile.ops import Trait, having
from utcompile.text import amount, counted, percent
from utcompile.tuners import Tuner

_COUNTED = having(Trait.COUNTED)


@dataclass(frozen=True)
class SiteCost:
    """What one site's tuner costs.

    Attributes:
        flops: of its forward.
        saved_bytes: that autograd saves in its forward, its inputs among them.
        inputs: those of its inputs that it saves: bytes by storage.
    """

    flops: int
    saved_bytes: int
    inputs: Mapping[int, int]


@dataclass(frozen=True)
class PlanCost:
    """What the tuners of a plan cost at one batch size; other sizes that vary are the example's.

    Attributes:
        batch: the batch size.
        sites: by site id. A tuner that does not run on fake tensors is missing.
        unknown: why it is missing, by site id.
        model_flops: of the model without tuners; what is inside opaque modules is not counted.
    """

    batch: int
    sites: Mapping[str, SiteCost]
    unknown: Mapping[str, str]
    model_flops: int

    @property
    def flops(self) -> int:
        """Of all tuners."""
        return sum(cost.flops for cost in self.sites.values())

    @property
    def saved_bytes(self) -> int:
        """Of all tuners; an input that several of them save counts once."""
        own = sum(cost.saved_bytes - sum(cost.inputs.values()) for cost in self.sites.values())
        return own + sum({s: n for cost in self.sites.values() for s, n in cost.inputs.items()}.values())

    @property
    def share(self) -> float | None:
        """The tuners' FLOPs as a share of the model's; None for a model that has none."""
        return self.flops / self.model_flops if self.model_flops else None

    def shown(self, site: str) -> tuple[str, str]:
        """FLOPs and saved bytes of a site, for a table."""
        cost = self.sites.get(site)
        return (amount(cost.flops), amount(cost.saved_bytes, "B")) if cost else ("?", "?")

    def __str__(self) -> str:
        share = f" ({percent(self.share)} of the model's {amount(self.model_flops)})" if self.share is not None else ""
        saved = f"{amount(self.saved_bytes, 'B')} saved for backward"
        text = f"tuners: {amount(self.flops, 'FLOPs')}{share}, {saved}, at batch {self.batch}"
        for site, why in list(self.unknown.items())[:1]:
            text += f"\nnot counted: {counted(len(self.unknown), 'site')}; {site}: {why}"
        return text

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        keys = ("batch", "flops", "model_flops", "share", "saved_bytes")
        return {**{k: getattr(self, k) for k in keys}, "unknown": dict(self.unknown)}


def plan_cost(sites: Sequence[Site], view: GraphView, batch: int) -> PlanCost:
    """Count what the tuners of a plan cost; sites that are alike are run once."""
    found: dict[str, SiteCost] = {}
    unknown: dict[str, str] = {}
    known: dict[tuple[Hashable, ...], tuple[int, int, tuple[bool, ...]]] = {}
    for site in sites:
        read = site.place.read(view)
        key = _key(site, read)
        try:
            if key not in known:
                known[key] = _measure(site, read, batch)
        except Exception as error:  # a plugin may do in `forward` what fake tensors cannot
            unknown[site.id] = f"{type(error).__name__}: {error}".partition("\n")[0]
            continue
        count, own, saved = known[key]
        inputs = {value.storage: _bytes(value, batch) for value, kept in zip(read, saved, strict=True) if kept}
        found[site.id] = SiteCost(count, own + sum(inputs.values()), inputs)
    return PlanCost(batch, found, unknown, model_flops(view, batch))


def model_flops(view: GraphView, batch: int) -> int:
    """The FLOPs of a captured model's forward, by the measure of `FlopCounterMode`."""
    return sum(flops(node, op, batch) for node, op in view.operations.items() if op.name in _COUNTED)


def _key(site: Site, read: Sequence[Value]) -> tuple[Hashable, ...]:
    """Equal for sites that cost the same: what a tuner is built from, and what it is run on."""
    values = tuple((value.shape, value.dtype) for value in read)
    return type(site.config), str(site.config), values, *site_key(site.build_from)


def _measure(site: Site, read: Sequence[Value], batch: int) -> tuple[int, int, tuple[bool, ...]]:
    """FLOPs, saved bytes without the inputs', and which inputs are saved."""
    dtype, device = site.build_from.target.value.dtype, site.build_from.target.value.device
    with torch.device("meta"):
        tuner = site.build().train()
    with FakeTensorMode(), torch.device(device):
        _give_state(tuner, dtype)
        inputs = [_input(value, batch) for value in read]
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(saved: torch.Tensor) -> torch.Tensor:
            storage = saved.untyped_storage()
            storages[storage._cdata] = storage  # held, so that no other storage gets its address
            return saved

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda saved: saved):
            keeps = site.place.run(tuner, inputs)
        for parameter in (*tuner.parameters(), *tuner.buffers()):
            storages.pop(parameter.untyped_storage()._cdata, None)
        addresses = [t.untyped_storage()._cdata for t in inputs]
        own = {address: s.nbytes() for address, s in storages.items() if address not in addresses}
        saved = tuple(keeps or address in storages for address in addresses)
        return int(counter.get_total_flops()), sum(own.values()), saved


def _give_state(tuner: Tuner, dtype: torch.dtype) -> None:
    """State without values, floating-point state in the dtype of what the tuner changes.

    The tuner was built without memory: how it draws its first values says nothing of its cost, and some ways read them.
    """
    for module in tuner.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_empty(parameter, dtype), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer, dtype)


def _empty(state: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    both_floating = state.is_floating_point() and dtype.is_floating_point
    return torch.empty(state.shape, dtype=dtype if both_floating else state.dtype)


def _input(value: Value, batch: int) -> torch.Tensor:
    return torch.empty(value.sizes(batch), dtype=value.dtype, requires_grad=value.dtype.is_floating_point)


def _bytes(value: Value, batch: int) -> int:
    return prod(value.sizes(batch)) * value.dtype.itemsize

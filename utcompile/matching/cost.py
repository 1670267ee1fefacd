"""The cost of a plan's tuners: floating-point operations of their forward, and bytes saved for backward.

*FLOPs* are counted as by `torch.utils.flop_counter.FlopCounterMode` for a tuner's forward: two per multiply-add of
matrix products, convolutions and attention, none for elementwise work. The FLOPs of the model are counted in the same
way.

*Saved bytes* are those of the distinct storages that autograd saves for backward in the tuner's own forward, in
training, reading an input that requires grad; parameters are not counted. Inputs that several tuners save count once
in the plan's sum. A weight tuner without a branch makes a second weight, which is computed again in backward; its
operation's input is counted. Not counted: tensors that the frozen backbone saves because a gradient now flows through
it, tensors that the backbone saves anyway (except inputs of tuners), temporaries of backward, gradients, and the state
of the optimizer.

Both are found by running the tuners on fake tensors, on demand.
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
    """The cost of the tuner of one site.

    Attributes:
        flops: the FLOPs of its forward.
        saved_bytes: the bytes that autograd saves in its forward, with its inputs.
        inputs: the saved inputs: bytes by storage.
    """

    flops: int
    saved_bytes: int
    inputs: Mapping[int, int]


@dataclass(frozen=True)
class PlanCost:
    """The cost of the tuners of a plan at one batch size; other sizes that vary are those of the example.

    Attributes:
        batch: the batch size.
        sites: costs by site id, without tuners that do not run on fake tensors.
        unknown: the reasons for missing tuners, by site id.
        model_flops: the FLOPs of the model without tuners; opaque modules are not counted.
    """

    batch: int
    sites: Mapping[str, SiteCost]
    unknown: Mapping[str, str]
    model_flops: int

    @property
    def flops(self) -> int:
        """The FLOPs of all tuners."""
        return sum(cost.flops for cost in self.sites.values())

    @property
    def saved_bytes(self) -> int:
        """The saved bytes of all tuners; an input that several tuners save counts once."""
        own = sum(cost.saved_bytes - sum(cost.inputs.values()) for cost in self.sites.values())
        return own + sum({s: n for cost in self.sites.values() for s, n in cost.inputs.items()}.values())

    @property
    def share(self) -> float | None:
        """The tuners' FLOPs as a share of the model's; None for a model without FLOPs."""
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
    """Count the cost of the tuners of a plan; of equal sites one is run."""
    found: dict[str, SiteCost] = {}
    unknown: dict[str, str] = {}
    known: dict[tuple[Hashable, ...], tuple[int, int, tuple[bool, ...]]] = {}
    for site in sites:
        read = site.place.read(view)
        key = _key(site, read)
        try:
            if key not in known:
                known[key] = _measure(site, read, batch)
        except Exception as error:  # a plugin's `forward` may do more than fake tensors can
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
    """A key that is equal for sites of equal cost: the facts from which a tuner is built, and its inputs."""
    values = tuple((value.shape, value.dtype) for value in read)
    return type(site.config), str(site.config), values, *site_key(site.build_from)


def _measure(site: Site, read: Sequence[Value], batch: int) -> tuple[int, int, tuple[bool, ...]]:
    """FLOPs, saved bytes without inputs, and which inputs are saved."""
    dtype, device = site.build_from.target.value.dtype, site.build_from.target.value.device
    with torch.device("meta"):
        tuner = site.build().train()
    with FakeTensorMode(), torch.device(device):
        _give_state(tuner, dtype)
        inputs = [_input(value, batch) for value in read]
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(saved: torch.Tensor) -> torch.Tensor:
            storage = saved.untyped_storage()
            storages[storage._cdata] = storage  # kept alive, so that no other storage gets its address
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
    """Replace parameters and buffers by tensors without values, in the dtype of the changed value.

    The tuner was built on the meta device: its first values have no influence on the cost.
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

"""What the tensors of a PEFT checkpoint are to the sites of a tuned model: each has a place, and each site its own."""

from __future__ import annotations

from typing import assert_never

import torch

from utcompile.errors import UtcError
from utcompile.rewrite.peft_checkpoint import PeftCheckpoint, PeftScale, PeftTuner
from utcompile.rewrite.peft_layout import (
    Problems,
    called_layer,
    check_reads_inside,
    from_parameter,
    from_peft,
    layer_of,
    module_of,
)
from utcompile.rewrite.peft_prefix import check_positions
from utcompile.rewrite.tuned import TunedModule, state_of_base
from utcompile.rewrite.tuned_site import TunedSite, TunedStage, TunedStreamTokens, TunedTokens, TunedValue, TunedWeight
from utcompile.tuners import Bias, ConvLora, Ia3, Lora, Prefix

Values = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name to a parameter and what it becomes
_NOTHING = "the checkpoint has nothing for it"


class Placing:
    """Finds the places of a checkpoint's tensors in a model.

    Attributes:
        values: the places so far.
        problems: what has none, and why.
    """

    def __init__(self, tuned: TunedModule, checkpoint: PeftCheckpoint) -> None:
        self.tuned, self.checkpoint = tuned, checkpoint
        self.values: Values = {}
        self.problems: Problems = []
        self.base = state_of_base(tuned)
        self._tuners = {tuner.parameter: tuner for tuner in checkpoint.tuners}
        self._scales = {scale.path: scale for scale in checkpoint.scales}
        self._prefixes = list(enumerate(checkpoint.prefix.layers)) if checkpoint.prefix is not None else []
        self._biases = {tuner.path: tuner for tuner in checkpoint.tuners if tuner.bias is not None}

    def place(self) -> Values:
        """Place everything; what cannot be placed is a problem."""
        for site in self.tuned.sites:
            try:
                found = self._of_site(site)
            except UtcError as error:
                self.problems.append((site.id, error.what))
                continue
            mine = dict(self.tuned.tuner(site.id).named_parameters())
            for name, value in found.items():
                self.values[f"{site.id}:{name}"] = (mine[name], value)
        self._rest()
        left = (*(t.parameter if t.place != "module" else t.path for t in self._tuners.values()), *self._scales)
        self.problems += [(name, "the model has no site there") for name in left]
        self.problems += [(f"the prefix of layer {i}", "the model has no site there") for i, _ in self._prefixes]
        self.problems += [(f"{path}.bias", "the model has no site there") for path in self._biases]
        for name, (parameter, value) in self.values.items():
            if parameter.shape != value.shape:
                here = list(parameter.shape)
                self.problems.append((name, f"{list(value.shape)} in the checkpoint, {here} here"))
        return self.values

    def _of_site(self, site: TunedSite) -> dict[str, torch.Tensor]:
        match site.place:
            case TunedWeight() as place if site.tuner == Ia3.kind:
                return self._scale(site, place)
            case TunedWeight() as place if site.tuner == Bias.kind:
                return self._bias(site, place)
            case TunedWeight() as place:
                return self._low_rank(site, place)
            case TunedValue() if site.tuner == ConvLora.kind:
                return self._parallel(site)
            case TunedTokens() if site.tuner == Prefix.kind:
                return self._prefix()
            case TunedValue() | TunedTokens() | TunedStreamTokens() | TunedStage():
                raise UtcError(f"its tuner is {site.form} {site.tuner}, and PEFT has no such tuner")
            case unknown:
                assert_never(unknown)

    def _low_rank(self, site: TunedSite, place: TunedWeight) -> dict[str, torch.Tensor]:
        names = place.names
        if len(names) == 1 and names[0] in self._tuners and self._tuners[names[0]].place != "module":
            return self._parameter(site, self._tuners.pop(names[0]))
        path = module_of(site)
        layer = layer_of(self.tuned, path)
        tuner = self._tuners.pop(f"{path}.weight", None)
        if tuner is None:
            raise UtcError(_NOTHING)
        self._compare(site, tuner)
        return from_peft(layer, tuner.tensors)

    def _parameter(self, site: TunedSite, tuner: PeftTuner) -> dict[str, torch.Tensor]:
        self._compare(site, tuner)
        check_reads_inside(self.tuned, tuner.parameter, tuner.path)
        tensors, shape = tuner.tensors, tuple(self.base[tuner.parameter].shape)
        if tuner.siblings:  # PEFT goes through a module's parameters in their order, from the inside out
            own = [f"{tuner.path}.{name}" for name in self.tuned.get_submodule(tuner.path)._parameters]
            tensors = tuner.layers[[name for name in own if name in tuner.siblings].index(tuner.parameter)]
        return from_parameter(shape, tuner.r, tensors)

    def _parallel(self, site: TunedSite) -> dict[str, torch.Tensor]:
        called_layer(self.tuned, site.path)
        if sum(n.op == "call_module" and n.target == site.path for n in self.tuned.base_graph.nodes) > 1:
            raise UtcError("its module is called several times, and a conv_lora is parallel to one call")
        tuner = self._tuners.pop(f"{site.path}.weight", None)
        if tuner is None:
            raise UtcError(_NOTHING)
        self._compare(site, tuner)
        return {"lora_A": tuner.tensors["lora_A.weight"], "lora_B": tuner.tensors["lora_B.weight"]}

    def _compare(self, site: TunedSite, wanted: PeftTuner) -> None:
        tuner = self.tuned.tuner(site.id)
        assert isinstance(tuner, Lora | ConvLora)
        if site.tuner != wanted.kind:
            raise UtcError(f"it is {site.tuner}, the checkpoint {wanted.kind}")
        if tuner.rank != wanted.r or abs(tuner.scaling - wanted.scaling) > 1e-6 * abs(wanted.scaling):
            raise UtcError(
                f"its rank is {tuner.rank} and its scale {tuner.scaling:.6g}, "
                f"in the checkpoint {wanted.r} and {wanted.scaling:.6g}"
            )

    def _scale(self, site: TunedSite, place: TunedWeight) -> dict[str, torch.Tensor]:
        names = place.names
        path = names[0].rpartition(".")[0] if names else site.path
        called_layer(self.tuned, path)
        scale: PeftScale | None = self._scales.pop(path, None)
        if scale is None:
            raise UtcError(_NOTHING)
        tuner = self.tuned.tuner(site.id)
        assert isinstance(tuner, Ia3)
        if tuner.of_inputs != scale.inputs:
            raise UtcError(f"the checkpoint scales what its module {'reads' if scale.inputs else 'yields'}")
        return {"gamma": scale.factors}

    def _prefix(self) -> dict[str, torch.Tensor]:
        """The sites are in the order of the layers."""
        if not self._prefixes or self.checkpoint.prefix is None:
            raise UtcError(_NOTHING)
        _, (keys, values) = self._prefixes.pop(0)
        check_positions(self.tuned, self.checkpoint.prefix.length)
        return {"keys": keys, "values": values}

    def _bias(self, site: TunedSite, place: TunedWeight) -> dict[str, torch.Tensor]:
        tuner = self._biases.pop(site.path, None)
        if tuner is None:
            raise UtcError(_NOTHING)
        name = place.tunes.get("bias")
        return {"value": _with_bias(tuner, self.base[name].cpu() if name is not None else None)}

    def _rest(self) -> None:
        """What `train:` names, and what it becomes. Frozen state that the checkpoint brings must be the base's own."""
        trained, found = self.tuned.trained, set[str]()
        for name, value in self.checkpoint.rest.items():
            if name in trained:
                found.add(name)
                lora = self._biases.pop(name.rpartition(".")[0], None) if name.endswith(".bias") else None
                self.values[name] = (
                    self.tuned.get_parameter(name),
                    value if lora is None else _with_bias(lora, value),
                )
            elif name not in self.base:
                self.problems.append((name, "the model has no such parameter"))
            elif self.base[name].shape != value.shape or not torch.equal(
                self.base[name].cpu(), value.to(self.base[name].dtype)
            ):
                self.problems.append((name, "it is frozen here, and other than the checkpoint's"))
        missing = [name for name in trained if name not in found]
        self.problems += [(name, "it is trained here, and not in the checkpoint") for name in missing]


def _with_bias(tuner: PeftTuner, bias: torch.Tensor | None) -> torch.Tensor:
    """The bias of a layer with that of its LoRA."""
    assert tuner.bias is not None
    own = tuner.bias * tuner.scaling
    return own if bias is None else bias + own.to(bias.dtype)

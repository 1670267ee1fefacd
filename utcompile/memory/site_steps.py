"""One training step of one site alone, in each of the forms in which LoRA of its weight can be computed."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import function_of
from utcompile.memory.functions import frozen_conv_of_kept
from utcompile.memory.one_call import has_plain_settings
from utcompile.memory.tuned_call import DTYPES, TunedCall
from utcompile.ops import Trait, having
from utcompile.tuners import HALVES, Lora, LoraConfig, Tuner, WeightSite, build_tuner, edges, recomputed, tuner_class
from utcompile.tuners.forms import TimedForm, cheaper_form, cheapest_form
from utcompile.tuners.gradients import FUNCTIONS

_CONVS = having(Trait.CONV)
_TRANSPOSED = having(Trait.CONV_TRANSPOSE)
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "groups": 1}


def forms_of(config: LoraConfig, site: WeightSite) -> tuple[TimedForm, ...]:
    """The forms in which a site can be computed, the branch first."""
    try:
        with torch.device("meta"):
            tuner = build_tuner(tuner_class(config.kind), with_form(config, "branch"), site)
    except UtcError:
        return ("reparametrised",)
    if config.dropout or site.only_branch:
        return ("branch",)
    can_be_one = config.as_one is not False and type(tuner) is Lora and _can_be_one(site)
    if can_be_one and config.as_one:
        return ("one",)
    return ("branch", "reparametrised", "one") if can_be_one else ("branch", "reparametrised")


def _can_be_one(site: WeightSite) -> bool:
    op = site.operation
    is_one = op.name in _CONVS and has_plain_settings(op.attributes)
    return (is_one or op.name == "linear") and site.source.value.dtype in DTYPES


def counted_form(config: LoraConfig, site: WeightSite, forms: tuple[TimedForm, ...]) -> TimedForm:
    """The form that `how: auto` would take."""
    rank = config.r * max(len(site.rows), 1)
    if len(forms) == 1:
        return forms[0]
    read, written = (prod(port.value.sizes(8)) for port in (site.source, site.target))
    if "one" in forms and cheapest_form(site.weight_shape, rank, read, written) == "one":
        return "one"
    return cheaper_form(site.operation.name, site, rank)


def with_form(config: LoraConfig, form: TimedForm) -> LoraConfig:
    """The config of a site that is computed in one form."""
    how = "reparametrised" if form == "reparametrised" else "branch"
    return config.model_copy(update={"how": how, "as_one": form == "one"})


def site_step(config: LoraConfig, site: WeightSite, form: TimedForm, batch: int) -> Callable[[], object]:
    """A function that runs forward and backward of a site at a batch size, on its device and in its dtype.

    It has the gradients of the input and of both factors. Frozen weights and inputs are random.
    """
    value, target = site.source.value, site.target.value
    device, dtype = target.device, target.dtype
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    weight = nn.Parameter(random(*site.weight_shape), requires_grad=False)
    if value.dtype.is_floating_point:
        x = random(*value.sizes(batch)).requires_grad_()
    else:  # of an embedding
        rows = site.weight_shape[0]
        x = torch.randint(rows, value.sizes(batch), dtype=value.dtype, device=device, generator=generator)
    tuner = _tuner(with_form(config, form), site, device, dtype)
    run = _forward(tuner, site, form)
    grad, wanted = random(*target.sizes(batch)), [t for t in (x, *tuner.parameters()) if t.requires_grad]

    def step() -> object:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            return torch.autograd.grad(run(x, weight), wanted, grad)

    return step


def _tuner(config: LoraConfig, site: WeightSite, device: torch.device, dtype: torch.dtype) -> Tuner:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        tuner = build_tuner(tuner_class(config.kind), config, site)
    return tuner.to(device, torch.float32 if dtype in HALVES else dtype).train()


def _forward(tuner: Tuner, site: WeightSite, form: TimedForm) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The site's operation with its tuner, as a planned graph calls them."""
    name, found = site.operation.name, {**_DEFAULTS, **site.operation.attributes}
    conv = (found["stride"], found["padding"], found["dilation"], found["groups"])
    settings: tuple[object, ...] = ()
    if name in _CONVS:
        settings = (None, *conv)
    elif name in _TRANSPOSED:
        settings = (None, conv[0], conv[1], found["output_padding"], conv[3], conv[2])
    elif name == "embedding":
        settings = (found.get("padding_idx"),)

    def padded(x: torch.Tensor) -> torch.Tensor:
        sides = edges(found["padding"], site.weight_shape[2:], found["dilation"])
        return F.pad(x, sides, mode=found["padding_mode"])

    pads = name in _CONVS and found.get("padding_mode", "zeros") != "zeros"
    if pads:
        settings = (None, conv[0], 0, conv[2], conv[3])
    is_plain = name in _CONVS and not isinstance(settings[2], str)

    def apart(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        given = padded(x) if pads else x
        operation: Callable[..., torch.Tensor] = frozen_conv_of_kept if is_plain else function_of(name)
        y = operation(given, weight, *settings)
        result: torch.Tensor = tuner(x, y)
        return result

    def changed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        args = (padded(x) if pads else x, tuner(weight), *settings)
        result: torch.Tensor = recomputed(name, *args) if name in FUNCTIONS else function_of(name)(*args)
        return result

    def one(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert isinstance(tuner, Lora)
        return TunedCall(name, conv[:3] if name in _CONVS else ())(tuner, x, weight, None)

    return {"branch": apart, "reparametrised": changed, "one": one}[form]

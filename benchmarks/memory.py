"""Memory and time of a training step (forward, loss, backward): as torch keeps things, planned, with a budget, by PEFT,
and the floor, which is the frozen model with a gradient to what its first layer yields.

"Kept" is what the allocator has alive after the forward pass and had not before it; "peak" is the most that is alive in
the step beyond what was alive before it. Both are exact, and the same in every run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import utcompile as utc
from benchmarks.measure import Row, paired
from benchmarks.rivals import R, by_peft
from utcompile.memory import MemoryPlan


@dataclass(frozen=True)
class Case:
    """A model and its rules, PEFT's model of it, and the module whose result the floor differentiates."""

    what: str
    model: nn.Module
    rules: str
    inputs: dict[str, torch.Tensor]
    first: str
    peft: Callable[[nn.Module], nn.Module] | None = None
    variables: tuple[tuple[str, int], ...] = (("r", R), ("alpha", R))
    budget: float | None = None


def run(quick: bool) -> Iterator[Row]:
    """Each case in turns in this process; the first of a case is the reference of its ratios of times."""
    for case in (*cases(2 if quick else 8, quick), *_budgets()):
        yield from compare(case, rounds=2 if quick else 7)


def _budgets() -> Iterator[Case]:
    """Budgets for steps of two images: shares of the peak of a step without a plan."""
    torch.manual_seed(0)
    images = {"x": torch.randn(2, 3, 224, 224)}
    vit, resnet = (timm.create_model(n, num_classes=10).eval() for n in ("vit_small_patch16_224", "resnet50"))
    draw_norms(resnet)
    yield Case(
        f"ViT-S/16, LoRA r={R} on every linear, batch 2, a budget", vit, "lora/all_linear", images, "patch_embed",
        lambda m: by_peft(m, nn.Linear, "head"), budget=0.5,
    )  # fmt: skip
    yield Case(
        f"ResNet-50, LoRA r={R} on every convolution, batch 2, a budget", resnet, "lora/all_conv", images, "conv1",
        lambda m: by_peft(m, nn.Conv2d, "fc"), budget=0.85,
    )  # fmt: skip
    yield Case(
        f"ResNet-50, LoRA r={R} on every convolution, batch 2, 160 px, a budget", resnet, "lora/all_conv",
        {"x": torch.randn(2, 3, 160, 160)}, "conv1", lambda m: by_peft(m, nn.Conv2d, "fc"), budget=0.9,
    )  # fmt: skip


def cases(batch: int, quick: bool) -> Iterator[Case]:
    """Vision and language models with LoRA, and adapters."""
    torch.manual_seed(0)
    images = {"x": torch.randn(batch, 3, 224, 224)}
    vit, resnet = (timm.create_model(n, num_classes=10).eval() for n in ("vit_small_patch16_224", "resnet50"))
    draw_norms(resnet)
    yield Case(
        f"ViT-S/16, LoRA r={R} on every linear, batch {batch}", vit, "lora/all_linear", images, "patch_embed",
        lambda m: by_peft(m, nn.Linear, "head"),
    )  # fmt: skip
    yield Case(
        f"ResNet-50, LoRA r={R} on every convolution, batch {batch}", resnet, "lora/all_conv", images, "conv1",
        lambda m: by_peft(m, nn.Conv2d, "fc"),
    )  # fmt: skip
    yield Case(
        f"ResNet-50, adapters parallel to every block, batch {batch}", resnet, "convnet/residual_parallel", images,
        "conv1", variables=(),
    )  # fmt: skip
    if find_spec("transformers"):
        yield from _language_models(quick)


def _language_models(quick: bool) -> Iterator[Case]:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    depth: dict[str, Any] = {
        "num_hidden_layers": 2 if quick else 6,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "vocab_size": 1000,
    }
    ids = {"input_ids": torch.randint(1000, (8, 128))}
    bert = BertModel(BertConfig(**depth, intermediate_size=1536), add_pooling_layer=False).eval()
    llama = LlamaForCausalLM(LlamaConfig(**depth, intermediate_size=1024, num_key_value_heads=2, use_cache=False))
    for name, model, first in (
        ("BERT", bert, "embeddings"),
        ("Llama", llama.eval(), "model.embed_tokens"),
    ):
        what = f"{name} 6x384, LoRA r={R} on every linear, 8 x 128 tokens"
        yield Case(what, model, "lora/all_linear", ids, first, _peft_on_linears)


def _peft_on_linears(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(copy.deepcopy(model), LoraConfig(r=R, lora_alpha=R, target_modules="all-linear")).eval()


def draw_norms(model: nn.Module) -> None:
    """The last norm of each branch is zero at the start, and a zero stops every gradient."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)


def compare(
    case: Case, rounds: int, clock: Callable[[], float] = time.perf_counter, of: str = "as torch keeps things"
) -> Iterator[Row]:
    """The rows of a case; the times' ratios are those to the row that is named."""
    tuned = utc.compile(case.model, case.rules, case.inputs, vars=dict(case.variables), verify="shapes")
    plain = copy.deepcopy(tuned)
    plain.memory = None
    models: dict[str, nn.Module] = {"as torch keeps things": plain, "planned": tuned}
    if case.peft is not None and find_spec("peft"):
        models["PEFT"] = case.peft(case.model)
    if case.budget is None:
        models["floor"] = _floor(case.model, case.first)
    else:
        models[f"memory={case.budget}"] = within = copy.deepcopy(tuned)
        within.plan_memory(case.budget, case.inputs)
    steps = {name: _step(model, case.inputs) for name, model in models.items()}
    memory = {name: allocated(step) for name, step in steps.items()}
    first = sorted(steps, key=lambda name: name != of)
    rows = paired(f"memory, {case.what}", {n: steps[n].whole for n in first}, rounds, warmup=1, clock=clock)
    for name, row in rows.items():
        yield replace(row, note=_note(memory, name) + _predicted(models[name], case.inputs))


def _predicted(model: nn.Module, inputs: dict[str, torch.Tensor]) -> str:
    """What a plan says of the peak: of this model's step, without its loss."""
    if not isinstance(model, utc.TunedModule) or not isinstance(model.memory, MemoryPlan):
        return ""
    step = model.memory.expected or model.memory.surveyed(model, inputs).expected
    return f"; predicted peak {step.peak / 1e6:,.1f} MB" if step else ""


def _note(memory: dict[str, tuple[int, int]], name: str) -> str:
    kept, peak = memory[name]
    of_peft = f" ({kept / memory['PEFT'][0]:.3f} of PEFT's)" if "PEFT" in memory else ""
    first = memory["as torch keeps things"]
    ratios = f"{kept / first[0]:.3f} and {peak / first[1]:.3f} of the first"
    return f"kept {kept / 1e6:,.1f} MB{of_peft}, peak {peak / 1e6:,.1f} MB; {ratios}"


def _floor(model: nn.Module, first: str) -> nn.Module:
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen.get_submodule(first).register_forward_hook(lambda _, __, y: y.detach().requires_grad_())
    return frozen


@dataclass(frozen=True)
class Step:
    """A training step without its optimizer, which is the same for all."""

    forward: Callable[[], torch.Tensor]
    forget: Callable[[], None]

    def whole(self) -> None:
        """Forward and backward; the gradients are forgotten."""
        self.forward().backward()
        self.forget()


def _step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Step:
    labels = torch.zeros(8, dtype=torch.long)[: len(next(iter(inputs.values())))]

    def forward() -> torch.Tensor:
        given = model(*inputs.values()) if "x" in inputs else model(**inputs)
        return F.cross_entropy(_numbers(given), labels)

    return Step(forward, lambda: model.zero_grad())


def _numbers(result: Any) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        return result
    found: torch.Tensor = result.logits[:, -1] if "logits" in result else result.last_hidden_state[:, 0]
    return found


def allocated(step: Step) -> tuple[int, int]:
    """Bytes alive after a forward that were not before it, and the most that are alive in a step."""
    step.whole()  # what a first call makes once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        loss = step.forward()
    kept = sum(_sizes(forward))
    del loss
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as whole:
        step.forward().backward()
    alive = peak = 0
    for size in _sizes(whole):
        alive += size
        peak = max(peak, alive)
    step.forget()
    return kept, peak


def _sizes(recorded: Any) -> list[int]:
    """The bytes of every allocation, and less than zero of every release, in order."""
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]

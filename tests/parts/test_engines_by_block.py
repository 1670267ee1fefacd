"""Models that no region was developed with: sharded, run again in backward, and compiled block by block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import models as zoo
from support.processes import one_process_group
from support.saved import saved_bytes
from torch import nn

import utcompile as utc

pytestmark = pytest.mark.full
Inputs = dict[str, torch.Tensor]


def timm_model(name: str, **options: int) -> tuple[nn.Module, Inputs]:
    import timm

    return timm.create_model(name, num_classes=5, **options), {"x": torch.randn(2, 3, 64, 64)}


def gemma() -> tuple[nn.Module, Inputs]:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 60, "pad_token_id": 0}
    ids = torch.randint(3, 60, (2, 7))
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, tie_word_embeddings=False))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Inputs]], str, str]] = {
    "resmlp": (lambda: timm_model("resmlp_12_224", img_size=64), "lora/all_linear", "blocks.*"),
    "mobilevit": (lambda: timm_model("mobilevitv2_050"), "lora/all_conv", "stages.*"),
    "pvt": (lambda: timm_model("pvt_v2_b0"), "lora/all_linear", "stages.*.blocks.*"),
    "gemma": (gemma, "lora/all_linear", "model.layers.*"),
}


def result_of(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    found: Any = model(**inputs)
    result: torch.Tensor = getattr(found, "logits", found)
    return result


def step(model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The output, and the gradients by their names inside a tuner or in the base."""
    model.zero_grad()
    out = result_of(model, inputs)
    out.square().mean().backward()
    found = {"": out.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad: Any = parameter.grad
            plain = name.replace("_checkpoint_wrapped_module.", "").rpartition("tuners.")[2]
            found[plain] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
    return found


def regions(nested: nn.Module) -> list[nn.Module]:
    return [m for m in nested.modules() if isinstance(m, utc.TunedModule) and m is not nested]


@pytest.fixture
def group() -> Iterator[None]:
    with one_process_group():
        yield


@pytest.mark.filterwarnings("ignore:.*get no gradient")  # random weights have norms of zero
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks whether inputs of a region have one
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # of views, into which a nested graph never writes
@pytest.mark.parametrize("name", CASES)
def test_engines_work_by_block(name: str, group: None) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    build, rules, glob = CASES[name]
    torch.manual_seed(0)
    model, inputs = build()
    tuned = utc.compile(model.eval(), rules, inputs, verify="shapes")
    zoo.shake(tuned, 0.1)
    expected, before = step(tuned, inputs), saved_bytes(tuned, lambda: result_of(tuned, inputs))
    nested = tuned.nested(glob)
    assert len(regions(nested)) > 1
    assert same(step(nested, inputs), expected)

    again = copy.deepcopy(nested)
    blocks = set(regions(again))
    apply_activation_checkpointing(again, check_fn=lambda module: module in blocks)
    assert (
        saved_bytes(again, lambda: result_of(again, inputs)) < 0.5 * before
    )  # the inputs of blocks, and what lies outside of them
    assert same(step(again, inputs), expected)

    sharded = copy.deepcopy(nested)
    for block in regions(sharded):
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    assert same(step(sharded, inputs), expected)

    regions(nested)[0].compile(backend="eager", fullgraph=True)
    found = step(nested, inputs)
    for key, value in expected.items():  # the compiler splits some operations of torch
        assert (found[key] - value).abs().max() <= 1e-4 * value.abs().max() + 1e-6, key


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())

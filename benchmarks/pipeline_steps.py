"""One pass through the pipeline, timed step by step. Weights and inputs are seeded.

This file is also a program. It reads the names of pairs of a model and rules, and answers each with a line of JSON:
the CPU seconds of each step, the numbers of nodes, and a hash of the checkpoint. It imports nothing of this package, so
that it can time another checkout of utcompile, which PYTHONPATH names.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def _image(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import timm

        return timm.create_model(name), torch.randn(2, 3, 224, 224)

    return make


def _text(name: str, **sizes: object) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import transformers

        config = getattr(transformers, f"{name.removesuffix('Model')}Config")(**sizes)
        return getattr(transformers, name)(config), {"input_ids": torch.randint(1, 90, (2, 12))}

    return make


_BERT = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
_GPT = {"n_embd": 64, "n_layer": 4, "n_head": 2}
PAIRS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str]] = {
    "vit_tiny lora/all_linear": (_image("vit_tiny_patch16_224"), "lora/all_linear"),
    "vit_tiny u_tuning/dual_foldable": (_image("vit_tiny_patch16_224"), "u_tuning/dual_foldable"),
    "resnet18 convnet/residual_parallel": (_image("resnet18"), "convnet/residual_parallel"),
    "convnext_atto ssf/all_layers": (_image("convnext_atto"), "ssf/all_layers"),
    "bert prefix/prefix": (_text("BertModel", **_BERT), "prefix/prefix"),
    "gpt2 lora/qv": (_text("GPT2Model", **_GPT), "lora/qv"),
}
STEPS = ("capture", "match", "match again", "apply", "step", "fold")


def run(pair: str) -> dict[str, Any]:
    """The CPU seconds of each step, and what must be the same in every checkout."""
    import utcompile as utc

    make, rules = PAIRS[pair]
    torch.manual_seed(0)
    model, inputs = make()
    given = inputs if isinstance(inputs, dict) else {"x": inputs}
    seconds: dict[str, float] = {}

    def timed(step: str, function: Callable[[], Any]) -> Any:
        gc.collect()
        started = time.process_time()
        result = function()
        seconds[step] = time.process_time() - started
        return result

    captured = timed("capture", lambda: utc.capture(model.eval(), inputs))
    timed("match", lambda: utc.match(captured, rules))
    plan = timed("match again", lambda: utc.match(captured, rules))
    torch.manual_seed(0)
    tuned = timed("apply", plan.apply)
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)

    def step() -> None:
        for _ in range(3):
            out = tuned(**given) if isinstance(inputs, dict) else tuned(inputs)
            value = out if isinstance(out, torch.Tensor) else out[0]
            value.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    timed("step", step)
    with tempfile.TemporaryDirectory() as folder:
        utc.save_tuners(tuned, folder)
        tensors = next(Path(folder).glob("*.safetensors")).read_bytes()
    folded, _ = timed("fold", lambda: utc.fold(tuned))
    nodes = [sum(1 for _ in m.graph.nodes) for m in (captured, tuned, folded)]
    # the header names an identity of the run, which is drawn at random
    size = int.from_bytes(tensors[:8], "little")
    return {"seconds": seconds, "nodes": nodes, "checkpoint": hashlib.sha256(tensors[8 + size :]).hexdigest()[:12]}


def main() -> None:
    """Answer each line of the input."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            print(json.dumps(run(line.strip())), flush=True)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:400]}), flush=True)


if __name__ == "__main__":
    main()

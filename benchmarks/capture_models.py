"""Models whose capture is timed: of timm in full depth, of transformers with few layers. Weights are random.

This file is also a program. It reads lines `MODEL VERIFY` and answers each with a line of JSON: the CPU seconds of one
capture, the number of nodes, or why the capture failed. It imports nothing of this package, so that it can time another
checkout of utcompile, which PYTHONPATH names.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, Any]


def _image(name: str, size: int = 224) -> Callable[[], Made]:
    def make() -> Made:
        import timm

        return timm.create_model(name), torch.randn(2, 3, size, size)

    return make


def _text(name: str, *, decoder: bool = False, **sizes: object) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        config = getattr(transformers, f"{name.partition('For')[0].removesuffix('Model')}Config")(**sizes)
        ids = torch.randint(1, 90, (2, 12))
        given = {"input_ids": ids, **({"decoder_input_ids": ids[:, :7]} if decoder else {})}
        return getattr(transformers, name)(config), given

    return make


def _whisper() -> Made:
    from transformers import WhisperConfig, WhisperModel

    sizes = {"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=100, **sizes, **_ENDS)
    given = {"input_features": torch.randn(2, 80, 3000), "decoder_input_ids": torch.randint(1, 90, (2, 7))}
    return WhisperModel(config), given


def _vit() -> Made:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=64, num_hidden_layers=6, num_attention_heads=2, intermediate_size=128)
    return ViTModel(config), torch.randn(2, 3, 224, 224)


_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_HEADS = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}

MODELS: dict[str, Callable[[], Made]] = {
    "resnet18": _image("resnet18"),
    "resnet50": _image("resnet50"),
    "vit_tiny": _image("vit_tiny_patch16_224"),
    "swin_tiny": _image("swin_tiny_patch4_window7_224"),
    "convnext_tiny": _image("convnext_tiny"),
    "efficientnet_b0": _image("efficientnet_b0"),
    "mobilenetv3": _image("mobilenetv3_large_100"),
    "regnety": _image("regnety_008"),
    "coatnet": _image("coatnet_nano_rw_224"),
    "llama": _text("LlamaForCausalLM", vocab_size=100, num_key_value_heads=2, **_HEADS),
    "bert": _text("BertModel", vocab_size=100, **_HEADS),
    "gpt2": _text("GPT2Model", vocab_size=100, n_embd=64, n_layer=4, n_head=4),
    "t5": _text("T5Model", decoder=True, vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4),
    "whisper": _whisper,
    "mamba": _text("MambaModel", vocab_size=100, hidden_size=64, num_hidden_layers=4, state_size=8),
    "vit_hf": _vit,
}


def main() -> None:
    """Answer every line of the standard input."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import utcompile as utc

    made: dict[str, Made] = {}
    for line in sys.stdin:
        name, verify = line.split()
        if name not in made:
            made.clear()
            torch.manual_seed(0)
            model, example = MODELS[name]()
            made[name] = model.eval(), example
        gc.collect()
        model, example = made[name]
        started = time.process_time()
        try:
            captured = utc.capture(model, (example,) if isinstance(example, torch.Tensor) else example, verify=verify)
            answer: dict[str, Any] = {"nodes": len(captured.graph.nodes)}
        except utc.UtcError as error:
            answer = {"error": str(error).partition("\n")[0]}
        answer["seconds"] = time.process_time() - started
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

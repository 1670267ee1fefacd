"""Small models of many kinds for the tests of the named patterns, with random weights and their example inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import timm
import torch
import transformers
from timm.layers import GatedMlp, GluMlp, SwiGLUPacked
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import utcompile as utc
from support import models as zoo
from utcompile.graph import GraphView
from utcompile.matching import Engine
from utcompile.rules import library_patterns

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
_PAIR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}


def _image(name: str, size: int, **kwargs: Any) -> tuple[nn.Module, Inputs]:
    return timm.create_model(name, num_classes=5, **kwargs), torch.randn(2, 3, size, size)


def _tokens() -> Tensor:
    return torch.arange(14).reshape(2, 7)


def _text(kind: str, head: str, attention: str | None = None, **kwargs: Any) -> tuple[nn.Module, Inputs]:
    config = getattr(transformers, f"{kind}Config")(**kwargs)
    config.use_cache = False
    if attention is not None:
        config._attn_implementation = attention
    return getattr(transformers, f"{kind}{head}")(config), {"input_ids": _tokens()}


def _pair(kind: str, **kwargs: Any) -> tuple[nn.Module, Inputs]:
    config = getattr(transformers, f"{kind}Config")(use_cache=False, **kwargs)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model, {"input_ids": _tokens(), "decoder_input_ids": _tokens()[:, :5]}


def _mixer(**kwargs: Any) -> tuple[nn.Module, Inputs]:
    model = MlpMixer(num_classes=5, img_size=64, patch_size=16, num_blocks=3, embed_dim=48, **kwargs)
    return model, torch.randn(2, 3, 64, 64)


def _convmixer() -> tuple[nn.Module, Inputs]:
    return ConvMixer(dim=16, depth=4, kernel_size=5, patch_size=4, num_classes=5), torch.randn(2, 3, 32, 32)


def _swiglu() -> tuple[nn.Module, Inputs]:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, mlp_layer=SwiGLUPacked
    )
    return model, torch.randn(2, 3, 32, 32)


def _clip() -> tuple[nn.Module, Inputs]:
    sizes = {k: v for k, v in _TEXT.items() if k != "vocab_size"}
    config = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    return transformers.CLIPVisionModelWithProjection(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def _perceiver() -> tuple[nn.Module, Inputs]:
    config = transformers.PerceiverConfig(
        num_latents=6, d_latents=32, d_model=24, num_blocks=1, num_self_attends_per_block=2, qk_channels=32,
        num_self_attention_heads=4, num_cross_attention_heads=4, v_channels=32,
    )  # fmt: skip
    return transformers.PerceiverModel(config), {"inputs": torch.randn(2, 9, 24)}


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    **{kind: partial(zoo.make, kind) for kind in zoo.MODELS},
    "vgg": partial(_image, "vgg11", 32),
    "densenet": partial(_image, "densenet121", 32, block_config=(2, 2, 2, 2)),
    "resnet18": partial(_image, "resnet18", 64),
    "resnet50": partial(_image, "resnet50", 64),
    "regnety": partial(_image, "regnety_002", 64),
    "mobilenetv3": partial(_image, "mobilenetv3_small_050", 64),
    "efficientnet_b0": partial(_image, "efficientnet_b0", 64),
    "convmixer": _convmixer,
    "poolformer": partial(_image, "poolformer_s12", 64),
    "resmlp": partial(_mixer, block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4),
    "gmixer": partial(_mixer, mlp_layer=GluMlp, act_layer=nn.SiLU),
    "gmlp": partial(_mixer, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=4),
    "levit": partial(_image, "levit_128s", 224),
    "swinv2": partial(_image, "swinv2_tiny_window8_256", 64, img_size=64, window_size=4, depths=(2, 1, 1, 1)),
    "pvt": partial(_image, "pvt_v2_b0", 64),
    "vit_swiglu": _swiglu,
    "clip": _clip,
    "llama": partial(_text, "Llama", "ForCausalLM", num_key_value_heads=2, **_TEXT),
    "llama_eager": partial(_text, "Llama", "ForCausalLM", attention="eager", num_key_value_heads=2, **_TEXT),
    "gemma2": partial(_text, "Gemma2", "ForCausalLM", num_key_value_heads=2, head_dim=8, **_TEXT),
    "phi3": partial(_text, "Phi3", "ForCausalLM", num_key_value_heads=2, pad_token_id=0, **_TEXT),
    "neox": partial(_text, "GPTNeoX", "ForCausalLM", **_TEXT),
    "falcon": partial(
        _text, "Falcon", "ForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    ),
    "gpt2": partial(
        _text, "GPT2", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=1
    ),
    "bert": partial(_text, "Bert", "ForSequenceClassification", **_TEXT),
    "mamba": partial(_text, "Mamba", "ForCausalLM", hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=50),
    "mamba2": partial(
        _text, "Mamba2", "ForCausalLM", hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=50, num_heads=8,
        head_dim=8, n_groups=2, chunk_size=4,
    ),
    "jamba": partial(
        _text, "Jamba", "ForCausalLM", num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=4, expert_layer_offset=3, num_experts=2, **_TEXT,
    ),
    "t5": partial(_pair, "T5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50),
    "bart": partial(_pair, "Bart", **_PAIR),
    "perceiver": _perceiver,
}  # fmt: skip


@lru_cache(maxsize=16)
def captured(kind: str) -> utc.CapturedModule:
    if kind in zoo.MODELS:
        return zoo.captured(kind)
    torch.manual_seed(0)
    model, inputs = MODELS[kind]()
    return utc.capture(model.eval(), inputs, verify="shapes")


@lru_cache(maxsize=16)
def engine(kind: str) -> Engine:
    module = captured(kind)
    return Engine(GraphView(module.graph, module), library_patterns())


def found(kind: str, name: str) -> list[dict[str, str]]:
    """The matches of a named pattern in graph order: each name of it with its value's node."""
    searcher = engine(kind)
    searcher.start()
    pattern = library_patterns()[name]
    first = (next(searcher.solve(pattern, anchor), None) for anchor in searcher.anchors(pattern))
    return [{key: node.name for key, node in env.items()} for env in first if env is not None]

"""Small real models of fourteen kinds, with inputs to tune, fold and export them on, and how far each goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

T = torch.Tensor
Inputs = dict[str, Any]
_HF: Mapping[str, Any] = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "use_cache": False,
}


def _ids(batch: int, length: int, words: int = 60) -> T:
    return torch.randint(3, words, (batch, length))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_HF, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_layer=2, n_embd=32, n_head=4, n_positions=64, use_cache=False))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, use_cache=False)
    )


def _whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=30,
        use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def _mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
    )


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            **{k: v for k, v in _HF.items() if k != "use_cache"}, intermediate_size=48, max_position_embeddings=64
        )
    )


def _vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, reg_tokens=4, num_classes=5)


def _wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embedding_groups=4,
        num_conv_pos_embeddings=16, mask_time_prob=0.0, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config)


class UNet(nn.Module):
    """Two levels with a skip connection; no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, 8), self._block(8, 16)
        self.up, self.join, self.out = nn.ConvTranspose2d(16, 8, 2, 2), self._block(16, 8), nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(i: int, o: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU()
        )

    def forward(self, image: T) -> T:
        first = self.down1(image)
        second = self.up(self.down2(F.max_pool2d(first, 2)))
        found: T = self.out(self.join(torch.cat([first, second], 1)))
        return found


def _detector() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None)


def _segmenter() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


class Tagger(nn.Module):
    """A GRU over packed sequences, with a class for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(30, 16), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 5)

    def forward(self, ids: T, lengths: T) -> T:
        packed = pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=ids.shape[1])
        found: T = self.head(y)
        return found


class Int8Linear(nn.Module):
    """Weights of int8 with a scale for each row, made floating in each call."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        w = torch.randn(o, i) / i**0.5
        scale = w.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (w / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(torch.zeros(o))

    def forward(self, x: T) -> T:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def _int8() -> nn.Module:
    return nn.Sequential(Int8Linear(16, 32), nn.GELU(), Int8Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))


class SpectralConv(nn.Module):
    """Multiplies the low frequencies by a complex weight (arXiv:2010.08895)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes, self.weight = modes, nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, x: T) -> T:
        f = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", f[..., : self.modes], self.weight)
        return torch.fft.irfft(F.pad(low, (0, f.shape[-1] - self.modes)), n=x.shape[-1])


class FNO(nn.Module):
    """A Fourier neural operator on one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.drop = nn.Conv1d(1, 12, 1), nn.Conv1d(12, 1, 1)
        self.spectral = nn.ModuleList(SpectralConv(12, 6) for _ in range(2))
        self.local = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(2))

    def forward(self, u: T) -> T:
        h = self.lift(u)
        for spectral, local in zip(self.spectral, self.local, strict=True):
            h = F.gelu(spectral(h) + local(h))
        found: T = self.drop(h)
        return found


def _wave(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length * 3 // 4 :] = 0
    return {"input_values": torch.randn(batch, length), "attention_mask": mask}


@dataclass(frozen=True)
class Case:
    """A model, how it is called, and how far it goes.

    Attributes:
        inputs: of a batch and a length or width.
        sizes: batch and length of the example, and of a call beyond it.
        rules: a shipped rule file, or rules.
        head: the path of its classifier, which a later process makes anew; empty where it has none.
        dynamic: as in `utc.compile`.
        beyond: a text of the error of the call beyond the example, where the model pins its length.
        kept: whether a tuner is kept when folding.
        export: a text of the error that ends it, where it cannot be exported.
        full: whether it is left to `make test-full`.
    """

    model: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    rules: str
    head: str = ""
    dynamic: Any = None
    beyond: str = ""
    kept: bool = False
    export: str = ""
    full: bool = True


def _text(batch: int, length: int) -> Inputs:
    return {"input_ids": _ids(batch, length)}


def _masked(batch: int, length: int) -> Inputs:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": _ids(batch, length), "attention_mask": mask}


def _to_text(name: str) -> Callable[[int, int], Inputs]:
    return lambda batch, length: {name: _ids(batch, length), "decoder_input_ids": _ids(batch, 5)}


def _of_sound(batch: int, length: int) -> Inputs:
    return {"input_features": torch.randn(batch, 8, 40), "decoder_input_ids": _ids(batch, length)}


def _sentences(batch: int, length: int) -> Inputs:
    return {"ids": _ids(batch, length, 30), "lengths": torch.tensor([length, *[length - 2] * (batch - 1)])}


def _vectors(batch: int, _: int) -> Inputs:
    return {"input": torch.randn(batch, 16)}


def _image(name: str, channels: int = 3) -> Callable[[int, int], Inputs]:
    return lambda batch, size: {name: torch.randn(batch, channels, size, size)}


_HW = {0: "B", 2: "H", 3: "W"}
_WORDS = """
version: 1
name: words
rules:
  - {name: words, match: {op: embedding}, insert: {weight: h, tuner: {kind: lora, r: 2}}}
train: ["module:head"]
"""
CASES = {
    "tied llama": Case(_llama, _text, ((2, 7), (3, 9)), "lora/all_linear"),
    "gpt2": Case(_gpt2, _text, ((2, 7), (3, 9)), "lora/qv"),
    "t5": Case(_t5, _to_text("input_ids"), ((2, 7), (3, 9)), "lora/qv"),
    "whisper": Case(_whisper, _of_sound, ((2, 5), (3, 7)), "lora/qv"),
    "mamba": Case(_mamba, _text, ((2, 7), (3, 9)), "lora/all_linear", beyond=r"input_ids\.shape\[1\]=7, not 9"),
    "bert": Case(_bert, _masked, ((2, 8), (3, 11)), "bitfit/biases"),
    "vit with registers": Case(_vit, _image("x"), ((2, 64), (3, 64)), "u_tuning/dual_foldable", head="head"),
    "wav2vec2": Case(
        _wav2vec2, _wave, ((2, 400), (3, 500)), "lora/qv", head="lm_head",
        dynamic={"input_values": {0: "B", 1: "L"}, "attention_mask": {0: "B", 1: "L"}},
    ),
    "unet": Case(UNet, _image("image"), ((2, 16), (3, 24)), "lora/all_conv", dynamic={"image": _HW}),
    "detection backbone": Case(_detector, _image("x"), ((2, 64), (3, 96)), "lora/all_conv", dynamic={"x": _HW}),
    "segmentation": Case(_segmenter, _image("input"), ((2, 64), (3, 96)), "ssf/all_layers", dynamic={"input": _HW}),
    "gru tagger": Case(
        Tagger, _sentences, ((2, 6), (3, 6)), _WORDS, head="head", export="cannot be exported to ONNX", full=False
    ),
    "int8": Case(_int8, _vectors, ((2, 0), (5, 0)), "lora/all_linear", head="4", kept=True),
    "fno": Case(
        FNO, lambda b, n: {"u": torch.randn(b, 1, n)}, ((2, 32), (3, 48)), "lora/all_conv", dynamic={"u": {0: "B", 2: "L"}},
        export="cannot be exported to ONNX",
    ),
}  # fmt: skip


def build(case: Case, head_seed: int = 0) -> nn.Module:
    """A case's model in eval, the same in every process; with a head of other values where a seed is given."""
    torch.manual_seed(0)
    model = case.model().eval()
    if head_seed and case.head:
        torch.manual_seed(head_seed)
        model.get_submodule(case.head).reset_parameters()  # type: ignore[operator]
    return model


def example(case: Case, beyond: bool = False) -> Inputs:
    """A case's example inputs, or those of a call beyond it."""
    torch.manual_seed(1)
    return case.inputs(*case.sizes[beyond])


def outputs(model: torch.nn.Module, inputs: Inputs) -> list[T]:
    """The floating-point tensors that a model yields."""
    with torch.no_grad():
        found = model(**inputs)
    found = found.to_tuple() if hasattr(found, "to_tuple") else found
    return [t for t in pytree.tree_leaves(found) if isinstance(t, T) and t.is_floating_point()]

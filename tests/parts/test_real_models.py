"""`within=` on models whose Python must stay: detectors, a segmenter, language models that generate, a sampling loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc

pytestmark = pytest.mark.full
Targets = list[dict[str, torch.Tensor]]
ROUNDING = 1e-4  # of folded float32 weights, through some twenty layers


def trained(tuned: nn.Module, loss: Callable[[int], torch.Tensor], steps: int, lr: float) -> list[float]:
    """The losses of a plain loop."""
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=lr)
    found = []
    for step in range(steps):
        value = loss(step)
        found.append(value.item())
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.grad is not None], 1.0)
        optimizer.step()
    return found


def scene(step: int, width: int = 96) -> tuple[list[torch.Tensor], Targets]:
    """Two images with one bright square each, in the channel of its class."""
    generator = torch.Generator().manual_seed(step)
    images, targets = [], []
    for i in range(2):
        image = torch.rand(3, 64, width, generator=generator) * 0.1
        x, y = torch.randint(4, 28, (2,), generator=generator).tolist()
        image[i, y : y + 32, x : x + 32] = 1
        images.append(image)
        box = torch.tensor([[x, y, x + 32, y + 32]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([1 + i])})
    return images, targets


def pyramid() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = resnet18(norm_layer=partial(nn.GroupNorm, 8))  # random weights, which no statistics belong to
    return BackboneWithFPN(body, {"layer2": "0", "layer3": "1"}, [128, 256], 32)


def faster_rcnn() -> nn.Module:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    return FasterRCNN(
        pyramid(),
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "pool"], 7, 2),
        box_head=TwoMLPHead(32 * 49, 64),
        box_predictor=FastRCNNPredictor(64, 3),
        min_size=64,
        max_size=96,
    )


def retinanet() -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return RetinaNet(pyramid(), 3, min_size=64, max_size=96, anchor_generator=anchors)


@pytest.mark.parametrize(
    ("build", "steps", "within", "train"),
    [
        (faster_rcnn, 12, "backbone", ["module:rpn", "module:roi_heads"]),
        (retinanet, 32, ["backbone", "head.*.conv"], ["parameter:head.*.cls_logits.*", "parameter:head.*.bbox_reg.*"]),
    ],
)
def test_a_detector_trains_with_its_own_losses(
    build: Callable[[], nn.Module], steps: int, within: str | list[str], train: list[str], tmp_path: Path
) -> None:
    model = build().train()
    tuned = utc.compile(model, "lora/all_conv", scene(0), vars={"r": 4}, within=within, train=train)
    assert type(tuned) is type(model)

    def loss(step: int) -> torch.Tensor:
        images, targets = scene(step % 2, 80 + 8 * (step % 3))
        return cast("torch.Tensor", sum(tuned(images, targets).values()))

    losses = trained(tuned, loss, steps, lr=2e-3)
    assert min(losses[-4:]) < 0.8 * min(losses[:4])
    folded, report = utc.fold(tuned.eval())
    assert report.is_original and not any(isinstance(m, utc.TunedModule) for m in folded.modules())
    images, _ = scene(99)
    with torch.no_grad():
        found, expected = folded(images), tuned(images)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine["scores"], theirs["scores"], rtol=ROUNDING, atol=ROUNDING)
    utc.save_tuners(tuned, tmp_path)
    again = utc.compile(model, "lora/all_conv", scene(0), vars={"r": 4}, within=within, train=train).eval()
    utc.load_tuners(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images)[0]["scores"], expected[0]["scores"])


def test_a_segmenter_with_an_auxiliary_head_trains_and_is_exported(tmp_path: Path) -> None:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    model = FCN(
        IntermediateLayerGetter(resnet18(), {"layer4": "out", "layer3": "aux"}), FCNHead(512, 4), FCNHead(256, 4)
    )
    x = torch.rand(2, 3, 64, 64)
    y = (x.mean(1) * 4).long().clamp(max=3)
    train = ["module:classifier", "module:aux_classifier"]
    tuned = utc.compile(model.train(), "lora/all_conv", x, vars={"r": 2}, within="backbone", train=train)

    def loss(_: int) -> torch.Tensor:
        out = tuned(x)
        return F.cross_entropy(out["out"], y) + 0.4 * F.cross_entropy(out["aux"], y)

    losses = trained(tuned, loss, 6, lr=3e-3)
    assert losses[-1] < losses[0]
    folded, report = utc.fold(tuned)
    assert report.is_original and type(folded) is FCN
    for name, module in (("folded", folded), ("tuned", tuned)):
        result = utc.export_onnx(module, tmp_path / f"{name}.onnx", (x,))
        assert result.output_names == ("out", "aux") and result.max_error < 1e-4


def greedy(model: nn.Module, **inputs: object) -> torch.Tensor:
    found: torch.Tensor = cast(Any, model).generate(**inputs, max_new_tokens=8, do_sample=False)
    return found


def test_llama_generates_with_a_cache_and_the_folded_model_gives_the_same_tokens() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=100, pad_token_id=0)).eval()
    ids = torch.randint(3, 100, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parts = ["model.layers.*.mlp", "model.layers.*.self_attn.*_proj"]
    tuned = utc.compile(model, "lora/all_linear", inputs, vars={"r": 4}, within=parts)
    assert torch.equal(greedy(tuned, **inputs), greedy(model, **inputs))
    tuned(**inputs, labels=ids).loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned)
    tokens = greedy(tuned, **inputs)
    assert not torch.equal(tokens, greedy(model, **inputs))
    assert torch.equal(tokens, greedy(folded, **inputs))
    assert report.is_original and type(folded.model.layers[0].mlp) is type(model.model.layers[0].mlp)
    with utc.disable_tuners(tuned):
        assert torch.equal(greedy(tuned, **inputs), greedy(model, **inputs))


def qwen2() -> tuple[nn.Module, list[str]]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=60, pad_token_id=0)
    return Qwen2ForCausalLM(config), ["model.layers.*.mlp", "model.layers.*.self_attn.*_proj"]


def neox() -> tuple[nn.Module, list[str]]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(**SIZES, vocab_size=60, pad_token_id=0)
    return GPTNeoXForCausalLM(config), ["gpt_neox.layers.*.mlp", "gpt_neox.layers.*.attention.*"]


def t5() -> tuple[nn.Module, list[str]]:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    parts = [
        "**.DenseReluDense",
        *(f"**.{kind}.{name}" for kind in ("SelfAttention", "EncDecAttention") for name in "qo"),
    ]
    return T5ForConditionalGeneration(T5Config(**sizes, **tokens)), parts


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.mark.parametrize("build", [qwen2, neox, t5])
def test_language_models_of_other_families_generate(
    build: Callable[[], tuple[nn.Module, list[str]]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, within = build()
    ids = torch.randint(3, 60, (2, 7))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    compiled = partial(utc.compile, model.eval(), "lora/all_linear", {**given, "labels": ids}, vars={"r": 2})
    tuned: nn.Module = compiled(within=within)
    original = greedy(model, **given)
    assert torch.equal(greedy(tuned, **given), original)
    untrained = copy.deepcopy(tuned)
    zoo.shake(tuned, 0.5)
    tuned(**given, labels=ids).loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    tokens = greedy(tuned, **given)
    folded, report = utc.fold(tuned)
    assert report.is_original and torch.equal(greedy(folded, **given), tokens) and not torch.equal(tokens, original)
    with utc.disable_tuners(tuned):
        assert torch.equal(greedy(tuned, **given), original)
    utc.save_tuners(tuned, tmp_path)
    utc.load_task(untrained, "task", tmp_path)
    utc.set_task(untrained, "task")
    assert torch.equal(greedy(untrained, **given), tokens)


def test_whisper_generates() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 100, "num_mel_bins": 8}
    lengths = {"max_source_positions": 50, "max_target_positions": 40}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = WhisperForConditionalGeneration(WhisperConfig(**heads, **sizes, **lengths, **tokens)).eval()
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    features = torch.randn(2, 8, 100)
    parts = ["model.*.layers.*.fc*", "model.*.layers.*.*_attn.*_proj"]
    inputs = {"input_features": features, "decoder_input_ids": torch.randint(3, 100, (2, 5))}
    tuned = utc.compile(model, "lora/all_linear", inputs, vars={"r": 2}, within=parts)
    assert torch.equal(greedy(tuned, input_features=features), greedy(model, input_features=features))
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned)
    assert report.is_original
    assert torch.equal(greedy(tuned, input_features=features), greedy(folded, input_features=features))


class Block(nn.Module):
    """Two convolutions, told the time."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm, self.first = nn.GroupNorm(4, before), nn.Conv2d(before, after, 3, padding=1)
        self.time, self.second = nn.Linear(16, after), nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(F.silu(self.norm(x))) + self.time(t)[:, :, None, None]
        result: torch.Tensor = self.second(F.silu(h)) + self.skip(x)
        return result


class UNet(nn.Module):
    """Predicts noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.down, self.middle, self.up = Block(8, 8), Block(8, 16), Block(24, 8)
        self.embed = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angle = t.float()[:, None] * torch.exp(-torch.arange(8) * 0.5)
        time = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        high = self.down(self.first(x), time)
        low = self.middle(F.avg_pool2d(high, 2), time)
        joined = torch.cat([F.interpolate(low, scale_factor=2.0), high], 1)
        result: torch.Tensor = self.last(self.up(joined, time))
        return result


class Diffusion(nn.Module):
    """The loss and the sampling loop around a U-Net."""

    beta: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet()
        self.register_buffer("beta", torch.linspace(1e-3, 0.2, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t, noise = torch.randint(0, 10, (x.shape[0],)), torch.randn_like(x)
        kept = torch.cumprod(1 - self.beta, 0)[t][:, None, None, None]
        return F.mse_loss(self.unet(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)

    @torch.no_grad()
    def sample(self, count: int, size: int = 16) -> torch.Tensor:
        """Images from noise."""
        torch.manual_seed(1)
        x = torch.randn(count, 1, size, size)
        for i in reversed(range(10)):
            x = x - self.beta[i] * self.unet(x, torch.full((count,), i))
        return x


def test_a_diffusion_model_samples_in_its_own_loop() -> None:
    model, x = Diffusion(), torch.rand(4, 1, 16, 16).round()
    tuned = utc.compile(model, "lora/all_conv", x, vars={"r": 4}, within="unet")
    assert torch.equal(tuned.sample(2), model.sample(2))
    losses = trained(tuned, lambda _: tuned(x), 40, lr=1e-2)
    assert sum(losses[-8:]) < sum(losses[:8])
    folded, report = utc.fold(tuned)
    assert report.is_original and type(folded) is Diffusion and type(folded.unet) is UNet
    for size in (16, 24):
        torch.testing.assert_close(folded.sample(3, size), tuned.sample(3, size), rtol=ROUNDING, atol=ROUNDING)


class Arc(nn.Module):
    """A metric-learning loss with its own weights, around a backbone."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.centres = body, nn.Parameter(torch.randn(classes, features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        cosine = F.linear(F.normalize(self.body(x)), F.normalize(self.centres))
        return F.cross_entropy(8 * (cosine - 0.2 * F.one_hot(y, len(self.centres))), y)


def test_a_timm_model_in_a_metric_learning_loss() -> None:
    model = Arc(timm.create_model("test_vit", num_classes=0, img_size=64), 64, 5)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(0, 5, (4,))
    compiled = partial(utc.compile, model, "u_tuning/dual_foldable", (x, y), within="body", train=["parameter:centres"])
    tuned: nn.Module = compiled()
    losses = trained(tuned, lambda _: tuned(x, y), 8, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    folded, report = utc.fold(tuned.eval())
    assert {s.status for s in report.sites} == {"absorbed", "widened"} and type(folded) is Arc
    torch.testing.assert_close(folded(x, y), tuned(x, y), rtol=ROUNDING, atol=ROUNDING)


def test_the_trainer_takes_a_model_with_tuned_parts(tmp_path: Path) -> None:
    from utcompile.train import Data, fit

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model("test_resnet", num_classes=0)
            self.head = nn.Linear(self.body.num_features, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.body(x))
            return result

    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    images += labels[:, None, None, None]
    samples = torch.utils.data.TensorDataset(images, labels)
    tuned = utc.compile(Classifier(), "lora/all_conv", images[:2], within="body", train=["module:head"])
    data = Data(samples, samples, 2, ("a", "b"))
    result = fit(
        tuned,
        data,
        out=tmp_path / "run",
        save=partial(utc.save_tuners, tuned),
        load=partial(utc.load_tuners, tuned),
        epochs=3,
        batch_size=8,
        lr=1e-2,
        cpu=True,
    )
    assert result.best_accuracy > 0.6

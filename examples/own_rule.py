"""Your own rule file, `own_rule.yaml`, applied to a Vision Transformer.

python examples/own_rule.py
"""

from pathlib import Path

import timm
import torch

import utcompile as utc

RULES = Path(__file__).with_name("own_rule.yaml")


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    images = torch.randn(2, 3, 160, 160)

    # The places that the rule finds, and the tuners that it adds.
    plan = utc.match(utc.capture(model, images), RULES, vars={"dim": 8})
    print(plan)
    print(plan.explain("blocks.2"))  # a block that `select: {last: 3}` leaves out

    # A few steps, so that there is something to fold.
    tuned = plan.apply()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(tuned(images), torch.tensor([1, 3])).backward()
        optimizer.step()

    # The tuned ffn becomes the same operations, a little wider.
    folded, report = utc.fold(tuned, strict=True)
    print(report)
    print(utc.export_onnx(folded, "own_rule.onnx", images))


if __name__ == "__main__":
    main()

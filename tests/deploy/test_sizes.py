"""Every size that a capture has dynamic is dynamic in the file, within the bounds of its guards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from support.models import shake
from support.onnx_toys import IDS, IMAGES, MASK, Pixels, SequenceFirst, Texts
from torch import nn

import utcompile as utc
from utcompile.deploy.metadata import KEYS


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, utc.ExportResult]:
    tuned = utc.compile(Texts().eval(), "bitfit/biases", (IDS, MASK))
    shake(tuned)
    path = tmp_path_factory.mktemp("texts") / "texts.onnx"
    labels, steps = ["cat", "dog", "bird"], {"tokenizer": "words"}
    return tuned.eval(), utc.export_onnx(
        tuned, path, (IDS, MASK), labels=labels, preprocessing=steps, metadata={"mine": "1"}
    )


def test_sizes_are_dynamic_and_bounded(texts: tuple[nn.Module, utc.ExportResult]) -> None:
    tuned, result = texts
    inputs = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in onnx.load(result.path).graph.input}
    assert inputs == {"ids": ["batch", "length"], "mask": ["batch", "length"]}
    assert [str(axis) for axis in result.axes] == ["batch from 1", "length 2 to 20 in steps of 2"]
    assert set(result.guards) == {"length % 2 == 0", "length <= 20"} and not result.fixed
    tried = {entry.sizes for entry in result.parity.outputs}
    assert tried == {"length=6", "length=2", "length=20"}
    model = utc.OnnxModel(result.path)
    for batch, length in ((1, 4), (5, 18)):
        ids, mask = torch.randint(0, 50, (batch, length)), torch.ones(batch, length, dtype=torch.long)
        with torch.no_grad():
            np.testing.assert_allclose(model(ids, mask), tuned(ids, mask).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "shape2", "why"),
    [
        ((2, 22), (2, 22), "length is 22"),
        ((2, 7), (2, 7), "length is 7"),
        ((2, 6), (2, 8), "length is 6 in one input and 8 in 'mask'"),
        ((2, 6, 1), (2, 6), "is of shape"),
    ],
)
def test_other_sizes_are_refused(
    texts: tuple[nn.Module, utc.ExportResult], shape: tuple[int, ...], shape2: tuple[int, ...], why: str
) -> None:
    with pytest.raises(utc.UtcError, match=why):
        utc.OnnxModel(texts[1].path)(torch.zeros(shape, dtype=torch.long), torch.ones(shape2, dtype=torch.long))


def test_the_metadata_is_documented_json(texts: tuple[nn.Module, utc.ExportResult]) -> None:
    session = ort.InferenceSession(str(texts[1].path), providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    assert entries.pop("mine") == "1"
    facts = {key.removeprefix("utcompile."): json.loads(text) for key, text in entries.items()}
    assert set(facts) <= set(KEYS) and {"axes", "guards", "base", "rules", "parity", "version"} <= set(facts)
    assert facts["labels"] == ["cat", "dog", "bird"] and facts["preprocessing"] == {"tokenizer": "words"}
    assert facts["rules"]["name"] == texts[0].ruleset.name  # type: ignore[union-attr]


def test_the_file_is_clean_and_quantises(texts: tuple[nn.Module, utc.ExportResult], tmp_path: Path) -> None:
    tuned, result = texts
    proto = onnx.load(result.path)
    assert not proto.graph.value_info and not any(n.metadata_props or n.doc_string for n in proto.graph.node)
    named = {i.name for i in proto.graph.initializer}
    assert {n for n, p in tuned.named_parameters() if p.dim() > 1 and not n.startswith("base_values")} <= named
    quantize_dynamic(result.path, tmp_path / "int8.onnx")
    found = ort.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = found.run(None, {"ids": IDS.numpy(), "mask": MASK.numpy()})
    with torch.no_grad():
        expected = tuned(IDS, MASK).numpy()
    # int8 has steps of 1/127 of each tensor's range; two layers of it stay within a twentieth of the outputs
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter([{"x": IMAGES.numpy()}] * 2)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


@pytest.mark.full
@pytest.mark.parametrize("folds", [False, True])
def test_height_and_width(folds: bool, tmp_path: Path) -> None:
    dynamic = {"x": {0: "B", 2: "H", 3: "W"}}
    tuned = utc.compile(Pixels().eval(), "lora/all_conv", (IMAGES,), dynamic=dynamic)
    shake(tuned)
    model = utc.fold(tuned)[0] if folds else tuned
    result = utc.export_onnx(model, tmp_path / "m.onnx", (IMAGES,))
    assert [axis.name for axis in result.axes] == ["batch", "H", "W"] and result.fixed == ("x[1]=3",)
    found = utc.OnnxModel(result.path)(x := torch.randn(3, 3, 32, 10))
    with torch.no_grad():
        np.testing.assert_allclose(found, tuned(x).numpy(), atol=1e-4)
    quantize_static(result.path, tmp_path / "int8.onnx", Samples())
    (logits,) = ort.InferenceSession(str(tmp_path / "int8.onnx")).run(None, {"x": IMAGES.numpy()})
    with torch.no_grad():
        expected = tuned(IMAGES).numpy()
    np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())


class Halves(nn.Module):
    """Halves the sizes `count` times, doubles them as often and joins both: it fails at other sizes, without a guard."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(count))
        self.up = nn.ModuleList(nn.ConvTranspose2d(3, 3, 2, 2) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in [*self.down, *self.up]:
            y = layer(y)
        return torch.cat([x, y], 1)


@pytest.mark.full
@pytest.mark.parametrize("count", [1, 3])
def test_steps_that_no_guard_names_are_found(count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x, step = torch.randn(2, 3, 16, 24), 2**count
    captured = utc.capture(Halves(count).eval(), (x,), dynamic={"x": {0: "B", 2: "H", 3: "W"}})
    capfd.readouterr()
    result = utc.export_onnx(captured, tmp_path / "m.onnx", (x,))
    assert [str(axis) for axis in result.axes[1:]] == [f"{name} from {step} in steps of {step}" for name in "HW"]
    assert {"H=16, W=24", "H=32, W=24", "H=16, W=48"} <= {entry.sizes for entry in result.parity.outputs}
    assert capfd.readouterr().err == ""  # sizes that are tried leave no traceback
    model = utc.OnnxModel(result.path)
    assert model(torch.randn(1, 3, 4 * step, step)).shape == (1, 6, 4 * step, step)  # type: ignore[union-attr]
    with pytest.raises(utc.UtcError, match="H is 17"):
        model(torch.randn(1, 3, 17, step))


@pytest.mark.full
def test_the_batch_may_be_anywhere_and_a_guard_may_exclude_one(tmp_path: Path) -> None:
    x = torch.randn(6, 3, 8)
    captured = utc.capture(SequenceFirst().eval(), (x,), dynamic={"x": {0: "L", 1: "B"}})
    result = utc.export_onnx(captured, tmp_path / "m.onnx", (x,))
    assert {axis.name: axis.low for axis in result.axes} == {"length": 1, "batch": 2}
    model = utc.OnnxModel(result.path)
    assert isinstance(found := model(torch.randn(9, 2, 8)), np.ndarray) and found.shape == (9, 2, 8)
    with pytest.raises(utc.UtcError, match="batch is 1"):
        model(torch.randn(9, 1, 8))


def test_what_is_fixed_is_not_exported_as_dynamic(tmp_path: Path) -> None:
    captured = utc.capture(Pixels().eval(), (IMAGES,))
    with pytest.raises(utc.UtcError, match=r"dimension 2 of 'x' is fixed in the captured model") as caught:
        utc.export_onnx(captured, tmp_path / "m.onnx", (IMAGES,), dynamic={"x": {0: "batch", 2: "height"}})
    assert caught.value.code == "export/fixed-size" and not list(tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16-weights", "float16"])
def test_half_precision_has_float32_inputs_and_outputs(dtype: str, tmp_path: Path) -> None:
    model = Pixels().eval()
    whole = utc.export_onnx(model, tmp_path / "whole.onnx", IMAGES)
    result = utc.export_onnx(model, tmp_path / "m.onnx", IMAGES, dtype=dtype)
    graph = onnx.load(result.path).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    weight = next(i for i in graph.initializer if i.name == "a.weight")
    assert weight.data_type == onnx.TensorProto.FLOAT16 and 0 < result.max_error < 1e-2
    assert whole.max_error < 1e-5
    with pytest.raises(utc.UtcError, match="bfloat16 file cannot be proven"):
        utc.export_onnx(model, tmp_path / "b.onnx", IMAGES, dtype="bfloat16")

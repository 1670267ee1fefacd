"""Export: real models, names, dynamic batch, one file, and nothing left behind where it fails."""

from __future__ import annotations

import copy
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import torchvision
import transformers
from support.models import shake
from torch import Tensor, nn

import utcompile as utc
from utcompile.deploy import export as export_module
from utcompile.deploy import export_onnx
from utcompile.errors import UtcError
from utcompile.recording import capture

MODELS = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "mobilenetv3_small_050": {},
    "test_resnet": {},
    "mixer_s32_224": {"img_size": 64},
}
EACH_RUN = ("vit_tiny_patch16_224", "test_resnet")


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, Pixels: Tensor, mask: Tensor | None = None, gain: float = 2.0) -> dict[str, object]:
        logits = self.linear(Pixels) * gain
        if mask is not None:
            logits = logits * mask[:, None]
        return {"Logits": logits, "state": (logits.sum(-1), self.table + 0), "nothing": None}


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Lambda(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)  # type: ignore[operator]


def axes(path: Path) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    graph = onnx.load(str(path)).graph
    inputs, outputs = (
        {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        for values in (graph.input, graph.output)
    )
    return inputs, outputs


def export_fails(model: nn.Module, path: Path, inputs: object, **options: object) -> str:
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    with pytest.raises(UtcError) as caught:
        export_onnx(model, path, inputs, **options)  # type: ignore[arg-type]
    if path.parent.is_dir():
        assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


# test_main_job.py exports small ones of the others in every run; here the models were never captured
@pytest.mark.parametrize("name", [n if n in EACH_RUN else pytest.param(n, marks=pytest.mark.full) for n in MODELS])
def test_real_models(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **MODELS[name]).train()
    nn.init.normal_(model.get_classifier().weight)  # some heads start at zero, which would prove nothing
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3, 64, 64))

    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert result.bytes == (tmp_path / "m.onnx").stat().st_size
    assert result.opset >= 18 and result.max_error < 1e-3 and result.batch_sizes == (1, 3, 8)
    assert axes(result.path) == ({"x": ["batch", 3, 64, 64]}, {"output": ["batch", 5]})
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    session = ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-3, rtol=1e-4)


def test_half(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).half()
    result = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3, 32, 32).half())
    proto = onnx.load(str(result.path))
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert 0 < result.max_error < 1e-2 and model.training


class Caches(nn.Module):
    """Keeps what it computed of its parameters by device, as LeViT does with the biases of its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cache = nn.Parameter(torch.randn(3, 64)), {}
        self.register_buffer("places", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if str(x.device) not in self.cache:
            self.cache[str(x.device)] = self.table[self.places]
        return x.mean((1, 2)) @ self.cache[str(x.device)].T


def _levit() -> nn.Module:
    return timm.create_model("levit_128s", num_classes=3, depth=(1, 1, 1), img_size=64)


@pytest.mark.parametrize("make", [Caches, pytest.param(_levit, marks=pytest.mark.full)])
def test_cached_biases_survive(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x = make().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        export_onnx(model, tmp_path / "m.onnx", x[:1], batch_sizes=(1, 2))
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_names_and_structure(how: str, tmp_path: Path) -> None:
    model, x, mask = TwoInTwoOut(), torch.randn(3, 4), torch.tensor([1.0, 0.0, 1.0])
    inputs = (x, mask, 3.0) if how == "positional" else {"Pixels": x, "mask": mask, "gain": 3.0}
    result = export_onnx(model, tmp_path / "m.onnx", inputs)
    assert result.input_names == ("Pixels", "mask")
    assert result.output_names == ("Logits", "state_0", "state_1")
    assert axes(result.path) == (
        {"Pixels": ["batch", 4], "mask": ["batch"]},
        {"Logits": ["batch", 3], "state_0": ["batch"], "state_1": [3]},
    )
    weights = {tensor.name for tensor in onnx.load(str(result.path)).graph.initializer}
    assert {"linear.weight", "linear.bias"} <= weights
    assert str(result).startswith(f"{result.path}: 0.0 MB, opset 20, (Pixels, mask) -> (Logits, state_0, state_1)\n")


def test_keyword_order_is_the_callers(tmp_path: Path) -> None:
    result = export_onnx(TwoInTwoOut(), tmp_path / "m.onnx", {"mask": torch.rand(2), "Pixels": torch.randn(2, 4)})
    assert result.input_names == ("mask", "Pixels")


def test_nested_and_variable_arguments(tmp_path: Path) -> None:
    class Positional(nn.Module):
        def forward(self, x: Tensor, *more: Tensor) -> Pair:
            return Pair(x * more[0], x - more[1])

    x = torch.randn(2, 3)
    result = export_onnx(Positional(), tmp_path / "p.onnx", (x, x + 1, x + 2))
    assert result.input_names == ("x", "more_1", "more_2") or result.input_names == ("x", "more_0", "more_1")
    assert result.output_names == ("left", "right")

    class Keyword(nn.Module):
        def forward(self, x: Tensor, pair: tuple[Tensor, dict[str, Tensor]]) -> list[Tensor]:
            return [x + pair[0] * pair[1]["Right"]]

    result = export_onnx(Keyword(), tmp_path / "k.onnx", {"x": x, "pair": (x + 1, {"Right": x + 2})})
    assert result.input_names == ("x", "pair_0", "pair_1_Right") and result.output_names == ("output_0",)


def test_output_named_as_an_input(tmp_path: Path) -> None:
    result = export_onnx(Lambda(lambda x: {"x": x * 2}), tmp_path / "m.onnx", torch.randn(2, 3))
    assert (result.input_names, result.output_names) == (("x",), ("x_",))


def test_parameter_named_as_an_input_stays_constant(tmp_path: Path) -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.weight

    result = export_onnx(Clash(), tmp_path / "m.onnx", torch.randn(2, 3))
    session = ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["weight"]


def test_tokens_and_masks(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            weights = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]  # nan where a row masks all
            return self.head((self.embed(input_ids) * weights).sum(1))

    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    result = export_onnx(Text(), tmp_path / "m.onnx", (torch.randint(10, (2, 4)), mask))
    assert result.max_error < 1e-5


def test_batch_inputs(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x @ table

    model, inputs = Shared(), (torch.randn(4, 4), torch.randn(4, 4))
    message = export_fails(model, tmp_path / "m.onnx", inputs)
    assert message.startswith("the model does not run at batch size 1\n  why: RuntimeError: ")
    assert message.endswith("name the inputs that carry the batch in `batch_inputs`")
    result = export_onnx(model, tmp_path / "m.onnx", inputs, batch_inputs=["x"])
    assert axes(result.path)[0] == {"x": ["batch", 4], "table": [4, 4]}
    model.batch_inputs = ("x",)  # type: ignore[assignment]
    assert axes(export_onnx(model, tmp_path / "m.onnx", inputs).path)[0] == {"x": ["batch", 4], "table": [4, 4]}
    message = export_fails(model, tmp_path / "m.onnx", inputs, batch_inputs=["tabel"])
    assert message == "batch_inputs names 'tabel', which is no input\n  fix: did you mean 'table'?"
    message = export_fails(model, tmp_path / "m.onnx", (inputs[0][:2], inputs[1]), batch_inputs=["x", "table"])
    assert message == "the inputs named in batch_inputs differ in their first dimension\n  why: x: 2, table: 4"


def test_metadata_and_no_local_paths(tmp_path: Path) -> None:
    result = export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", torch.randn(1, 2), metadata={"task": "digits"})
    proto = onnx.load(str(result.path))
    assert {"task": "digits"}.items() <= {entry.key: entry.value for entry in proto.metadata_props}.items()
    assert str(Path(torch.__file__).parent).encode() not in result.path.read_bytes()
    message = export_fails(nn.Linear(2, 2), tmp_path / "n.onnx", torch.randn(1, 2), metadata={"epochs": 3})
    assert message == "metadata 'epochs' is a int\n  fix: ONNX metadata is text: use json.dumps"


def test_opset(tmp_path: Path) -> None:
    assert export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", torch.randn(1, 2), opset=23).opset == 23
    message = export_fails(
        Lambda(lambda x: x.reshape(x.shape[0], -1)), tmp_path / "n.onnx", torch.randn(1, 2, 2), opset=13
    )
    assert message.startswith("the model cannot be exported at opset 13\n  why: the exporter gives opset")


@pytest.mark.full
def test_attention_is_one_node_from_opset_23_on(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    result = export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3, 32, 32), opset=23)
    operations = [node.op_type for node in onnx.load(result.path).graph.node]
    assert operations.count("Attention") == len(model.blocks) and "Softmax" not in operations


@pytest.mark.full
def test_boxes_of_roi_align(tmp_path: Path) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 2)

        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return self.head(torchvision.ops.roi_align(self.conv(x), boxes, 2, aligned=True).flatten(1))

    boxes = torch.tensor([[0, 1, 1, 6, 7.5], [1, 0, 2.5, 7, 7]])
    result = export_onnx(Regions().eval(), tmp_path / "m.onnx", (torch.randn(2, 3, 8, 8), boxes))
    assert "RoiAlign" in [node.op_type for node in onnx.load(result.path).graph.node] and result.max_error < 1e-4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_and_a_folder_without_access(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")

    def fails(file: Path, entries: object) -> None:
        file.write_bytes(b"a part")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(export_module, "finish", fails)
    message = export_fails(nn.Linear(2, 2), path, torch.ones(1, 2))
    assert "the ONNX file cannot be written" in message and os.strerror(number) in message
    assert path.read_bytes() == b"an older file" and list(tmp_path.iterdir()) == [path]


def test_modes_are_restored_one_by_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    model[2].eval()
    export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3))
    assert [module.training for module in model] == [True, True, False]
    message = export_fails(Lambda(torch.special.bessel_j0).train(), tmp_path / "n.onnx", torch.randn(2, 3))
    assert "why: DispatchError: No ONNX function found for <OpOverload(op='" in message and "bessel_j0" in message


def test_writes_in_place_are_exported_out_of_place(tmp_path: Path) -> None:
    """The exporter would trace them into other operations, slowly; the model keeps them."""
    acts = (nn.ReLU6, nn.Hardswish, nn.SiLU)
    captured, plain = (
        capture(
            nn.Sequential(nn.Conv2d(3, 4, 3), *(act(inplace=how) for act in acts), nn.Flatten()),
            torch.randn(2, 3, 4, 4),
        )
        for how in (True, False)
    )
    before, code = str(captured.graph), captured.code
    for name, module in (("m", captured), ("plain", plain)):
        export_onnx(module, tmp_path / f"{name}.onnx", torch.randn(2, 3, 4, 4), batch_sizes=[3])
    assert (str(captured.graph), captured.code) == (before, code)
    assert [captured.get_submodule(str(i)).inplace for i in (1, 2, 3)] == [True] * 3
    found, expected = ([n.op_type for n in onnx.load(tmp_path / f"{f}.onnx").graph.node] for f in ("m", "plain"))
    assert found == expected


def test_random_state_and_loggers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    export_onnx(nn.Linear(2, 2).requires_grad_(False), tmp_path / "m.onnx", torch.ones(1, 2))
    loggers = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    assert not any(logger.disabled for logger in loggers)
    torch.manual_seed(7)
    export_onnx(nn.Dropout(), tmp_path / "n.onnx", torch.ones(1, 2))
    assert torch.equal(torch.rand(3), expected)


def test_failed_parity_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    noisy = Lambda(lambda x: x + torch.rand_like(x))
    message = export_fails(noisy, path, torch.randn(2, 3))
    assert message.startswith(f"{path}: ONNX Runtime and PyTorch disagree on 'output' at batch size")
    assert "\n  why: 4 of 4 comparisons differ:\n    output at batch 2 (example): " in message
    assert message.endswith(
        "fix: see that the model is deterministic in eval mode; raise `tolerance` only where the reason is known"
    )
    path.write_bytes(b"an older file")
    export_fails(noisy, path, torch.randn(2, 3))
    assert path.read_bytes() == b"an older file"


def test_a_wrong_weight_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 3)
    translate = export_module.translate

    def spoiled(model: nn.Module, *rest: object, **options: object) -> object:
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.weight[0, 0] += 0.01  # type: ignore[index]
        return translate(wrong, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(export_module, "translate", spoiled)
    assert "disagree on 'output'" in export_fails(model, tmp_path / "m.onnx", torch.randn(2, 3))


def test_an_output_below_the_tolerance_is_still_compared(tmp_path: Path) -> None:
    class Tiny(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting() else x * 2) * 1e-5

    assert "disagree on 'output'" in export_fails(Tiny(), tmp_path / "m.onnx", torch.randn(2, 3))


def test_fixed_batch(tmp_path: Path) -> None:
    message = export_fails(Lambda(lambda x: x.view(2, 3)), tmp_path / "m.onnx", torch.randn(2, 3), batch_sizes=(2,))
    assert message.startswith("Lambda: the model fixes its batch size\n  why: ")
    assert message.endswith("or name the inputs that carry the batch in `batch_inputs`")


ONES = torch.ones(1, 2)
NO_BATCH = "the example inputs contain no tensor with a batch dimension\n  why: they contain"


@pytest.mark.parametrize(
    ("model", "inputs", "options", "expected"),
    [
        (nn.Linear(2, 2), (), {}, f"{NO_BATCH} nothing\n"),
        (nn.Linear(2, 2), (1.5,), {}, f"{NO_BATCH} input: float\n"),
        (nn.Linear(2, 2), 3, {}, "example_inputs is a int\n  fix: pass a tensor, a tuple"),
        (nn.Linear(2, 2), ONES[:0], {}, "the example inputs contain no sample\n  why: their batch dimension is 0"),
        (nn.Linear(2, 2), (ONES, 1), {}, "Linear.forward: 2 example inputs for a forward that takes 1\n  fix: its arg"),
        (nn.Linear(2, 2), {"X": ONES}, {}, "TypeError: Linear.forward() got an unexpected keyword argument 'X'"),
        (nn.Linear(2, 2), ONES, {"batch_sizes": (0,)}, "batch_sizes is (0,)\n  fix: name at least one positive"),
        (nn.Linear(2, 2).bfloat16(), ONES, {}, "weight: a bfloat16 model cannot be proven"),
        (Lambda(lambda x: (x, 3)), ONES, {}, "the model returns a int at 'output_1', not a tensor"),
        (Lambda(lambda x: None), ONES, {}, "the model returns no tensor"),
        (Lambda(lambda x: x / 0), ONES, {}, "output 'output' contains no finite value, so nothing can be proven"),
        (Lambda(lambda x: x if x.sum() > 0 else -x), ONES, {}, "exported to ONNX\n  why: GuardOnDataDependent"),
    ],
)
def test_errors(
    model: nn.Module,
    inputs: object,
    options: dict[str, object],
    expected: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert expected in export_fails(model, tmp_path / "m.onnx", inputs, **options)
    assert capfd.readouterr() == ("", "")


def test_bad_targets(tmp_path: Path) -> None:
    message = export_fails(nn.Linear(2, 2), tmp_path / "no" / "m.onnx", torch.ones(1, 2))
    assert message == f"{tmp_path / 'no'}: the folder to write to does not exist\n  fix: create it first"
    message = export_fails(nn.Linear(2, 2), tmp_path, torch.ones(1, 2))
    assert message.startswith(f"{tmp_path}: the path to write to is a folder\n  fix: name a file")


def test_external_data_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What happens above the exporter's limit for one file, with the limit lowered.
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    result = export_onnx(nn.Linear(64, 64), tmp_path / "m.onnx", torch.randn(1, 64))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert result.bytes == sum(file.stat().st_size for file in files)
    ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])


def test_a_model_that_pins_its_batch(tmp_path):
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(0, (2, 2))), torch.randn(4, 4))
    with pytest.raises(UtcError, match="runs at one batch size only"):
        export_onnx(captured, tmp_path / "m.onnx", torch.randn(4, 4))
    assert list(tmp_path.iterdir()) == []


PREFIX = """
version: 1
name: t
rules:
  - name: a
    match: o = sdpa(q, k, v)
    insert: {tokens: [k, v], tuner: {kind: prefix, length: 3, init: normal}}
"""
LORA = PREFIX.replace("o = sdpa(q, k, v)", "{op: addmm}").replace("tokens: [k, v]", "weight: h")
LORA = LORA.replace("{kind: prefix, length: 3, init: normal}", "{kind: lora, r: 2}")


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        pytest.param("llama", "lora/qv", id="llama, lora"),
        pytest.param("llama", PREFIX, id="llama, prefix", marks=pytest.mark.full),
        pytest.param("gpt2", LORA, id="gpt2, lora", marks=pytest.mark.full),
    ],
)
def test_attention_that_is_causal_and_shares_keys(kind: str, rules: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50, "use_cache": False}
    config, cls = (
        (transformers.LlamaConfig(**sizes, intermediate_size=24, num_key_value_heads=2), transformers.LlamaForCausalLM)
        if kind == "llama"
        else (transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1), transformers.GPT2LMHeadModel)
    )
    ids = torch.randint(50, (1, 9))
    tuned = utc.compile(cls(config).eval(), rules, {"input_ids": ids}).eval()
    shake(tuned, 1.0)
    result = export_onnx(utc.fold(tuned)[0], tmp_path / "m.onnx", {"input_ids": ids})
    assert result.max_error < 1e-4
    session = ort.InferenceSession(str(result.path), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        ids = torch.randint(50, (batch, 9))
        with torch.no_grad():
            expected = tuned(input_ids=ids).logits.numpy()
        np.testing.assert_allclose(session.run(None, {"input_ids": ids.numpy()})[0], expected, atol=1e-4, rtol=1e-3)

"""Files of ONNX that were made to run for ever end all the same."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from utcompile.deploy import verify_onnx
from utcompile.errors import UtcError


def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def endless(path: Path, nested: bool) -> Path:
    """A loop whose condition stays true; nested: inside another, which would end."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "v2")]
    keep = helper.make_node("Identity", ["c"], ["c2"])
    body = helper.make_graph(
        [keep, helper.make_node("Mul", ["v", "v"], ["v2"])],
        "body",
        [scalar("i", TensorProto.INT64), scalar("c", TensorProto.BOOL), values[0]],
        [scalar("c2", TensorProto.BOOL), values[1]],
    )
    nodes = [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)]
    if nested:
        ios = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("w", "y")]
        inner = helper.make_node("Loop", ["", "true", "w"], ["y"], body=body)
        outer = helper.make_graph(
            [helper.make_node("Identity", ["d"], ["d2"]), inner],
            "outer",
            [scalar("j", TensorProto.INT64), scalar("d", TensorProto.BOOL), ios[0]],
            [scalar("d2", TensorProto.BOOL), ios[1]],
        )
        nodes = [helper.make_node("Loop", ["three", "", "x"], ["y_out"], body=outer)]
    graph = helper.make_graph(
        nodes,
        "endless",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y_out" if nested else "y", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor("true", TensorProto.BOOL, [], [1]),
            helper.make_tensor("three", TensorProto.INT64, [], [3]),
        ],
    )
    for node in graph.node:
        node.input[:] = ["input" if name == "x" else name for name in node.input]
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_runs_for_ever_is_stopped(tmp_path: Path, nested: bool) -> None:
    path = endless(tmp_path / "endless.onnx", nested)
    with pytest.raises(UtcError, match=r"had not finished after 0.2 s, and was stopped"):
        verify_onnx(path, nn.Identity(), (torch.ones(2, 4),), seconds=0.2)

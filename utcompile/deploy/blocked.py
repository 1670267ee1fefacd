"""Biases of convolutions as inputs, in ONNX Runtime's blocked layout of images, which takes only constants.

On a CPU, ONNX Runtime rewrites convolutions whose weight and bias are constants into a layout of channels in blocks,
which is 2 to 3 times faster. It leaves out those whose bias is an input, although the kernel reads the bias in each
call. So the file is optimised here with biases that are constants, random and unlike one another; by their values they
are found again in the optimised graph, and become inputs there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

_DOMAIN = "com.microsoft.nchwc"
_MOST_BYTES = 1e9  # of a file; it is in memory twice while it is optimised


@dataclass(frozen=True)
class Blocked:
    """A session in the blocked layout.

    Attributes:
        session: it has the inputs of the file, but for some names and lengths of biases.
        places: per bias its input and the length of it, which is a multiple of the block.
    """

    session: ort.InferenceSession
    places: Mapping[str, tuple[str, int]]

    def values(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values of a task as inputs of the session."""
        found = {}
        for name, value in values.items():
            place, length = self.places.get(name, (name, len(value)))
            whole = np.pad(value, (0, length - len(value))) if name in self.places else value
            found[place] = np.ascontiguousarray(whole)
        return found


def blocked(path: Path, biases: Collection[str], options: ort.SessionOptions) -> Blocked | None:
    """Open a file in the blocked layout; None where this build, processor or file has none of it.

    Args:
        biases: the optional inputs that are biases of convolutions.
        options: of the session; they are changed.
    """
    if not biases or path.stat().st_size > _MOST_BYTES or Path(f"{path}.data").exists():
        return None
    try:
        return _blocked(onnx.load(str(path)), biases, options)
    except Exception:  # the plain session computes the same, slower
        return None


def _blocked(model: onnx.ModelProto, biases: Collection[str], options: ort.SessionOptions) -> Blocked | None:
    graph, random = model.graph, np.random.default_rng(0)
    defaults = {entry.name: entry for entry in graph.initializer if entry.name in biases}
    marks = {name: random.random(tuple(entry.dims)).astype(np.float32) for name, entry in defaults.items()}
    own = {name: numpy_helper.to_array(entry) for name, entry in defaults.items()}
    for name, entry in defaults.items():
        entry.CopyFrom(numpy_helper.from_array(marks[name], name))
    _keep_inputs(graph, [entry for entry in graph.input if entry.name not in marks])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blocked.onnx"
        options.optimized_model_filepath = str(file)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(str(file))
    if not any(node.domain == _DOMAIN for node in model.graph.node):
        return None
    places = _found(model.graph, marks, own)
    if places is None:
        return None
    options.optimized_model_filepath = ""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Blocked(session, places)


def _found(
    graph: onnx.GraphProto, marks: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, int]] | None:
    """Make the marked constants inputs with their own defaults; None where one is not found once."""
    short = [entry for entry in graph.initializer if len(entry.dims) == 1]
    values = {entry.name: numpy_helper.to_array(entry) for entry in short}
    entries = {entry.name: entry for entry in short}
    places: dict[str, tuple[str, int]] = {}
    for name, mark in marks.items():
        at = [key for key, value in values.items() if _is_padded(value, mark)]
        if len(at) != 1:
            return None
        length = len(values[at[0]])
        padded = np.pad(own[name], (0, length - len(mark)))
        entries[at[0]].CopyFrom(numpy_helper.from_array(padded, at[0]))
        graph.input.append(onnx.helper.make_tensor_value_info(at[0], onnx.TensorProto.FLOAT, [length]))
        places[name] = at[0], length
    return places


def _is_padded(value: np.ndarray, mark: np.ndarray) -> bool:
    size = len(mark)
    return len(value) >= size and np.array_equal(value[:size], mark) and not np.any(value[size:])


def _keep_inputs(graph: onnx.GraphProto, inputs: list[onnx.ValueInfoProto]) -> None:
    kept = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in inputs]
    del graph.input[:]
    graph.input.extend(kept)

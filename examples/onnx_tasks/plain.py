"""A task of an ONNX file with nothing but onnxruntime and numpy: as an adapter, and as ordinary inputs.

python plain.py pets.onnx pets.cats.onnx_adapter inputs.npz
"""

import sys

import numpy as np
import onnxruntime as ort


def main(model: str, adapter: str, inputs: str) -> list[list[np.ndarray]]:
    """The outputs, in both ways."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(inputs) as file:
        feeds = dict(file)

    loaded, options = ort.LoraAdapter(), ort.RunOptions()
    loaded.Load(adapter)  # keep `loaded` as long as it is used
    options.add_active_adapter(loaded)
    adapted = session.run(None, feeds, options)

    values = ort.AdapterFormat.read_adapter(adapter).get_parameters()
    fed = session.run(None, {**feeds, **{name: value.numpy() for name, value in values.items()}})
    return [adapted, fed]


if __name__ == "__main__":
    for outputs in main(*sys.argv[1:]):
        print(*outputs, sep="\n")

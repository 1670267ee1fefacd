"""The examples for plain users: one task in Python, Node and a browser, and everywhere the same numbers.

Node and the browser need the npm package onnxruntime-web: in `examples/onnx_tasks/node_modules`, or in the folder that the
variable NODE_MODULES names.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from support.browser import BROWSER, needs_browser
from support.models import shake
from support.onnx_toys import IDS, MASK, Texts

import utcompile as utc

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_tasks"
MODULES = Path(os.environ.get("NODE_MODULES", EXAMPLE / "node_modules"))
needs_web = pytest.mark.skipif(not (MODULES / "onnxruntime-web").is_dir(), reason="onnxruntime-web is not installed")
NODE = shutil.which("node")
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files and a model with a task of five classes, whose outputs are in `wanted.npy`."""
    folder = tmp_path_factory.mktemp("files")
    run = utc.compile(Texts(5).eval(), "bitfit/biases", (IDS, MASK))
    shake(run)
    utc.save_tuners(run, folder / "cats")
    with torch.no_grad():
        np.save(folder / "wanted.npy", run.eval()(IDS, MASK).numpy())
    tuned = utc.compile(Texts().eval(), "bitfit/biases", (IDS, MASK)).eval()
    utc.export_onnx(tuned, folder / "pets.onnx", (IDS, MASK), tasks={"cats": folder / "cats"}, batch_sizes=(2,))
    arrays = {"ids": IDS.numpy(), "mask": MASK.numpy()}
    np.savez(folder / "inputs.npz", ids=arrays["ids"], mask=arrays["mask"])
    inputs = {n: {"type": "int64", "dims": a.shape, "data": a.ravel().tolist()} for n, a in arrays.items()}
    (folder / "inputs.json").write_text(json.dumps(inputs))
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    if MODULES.is_dir():
        (folder / "node_modules").symlink_to(MODULES)
    return folder


def same(text: str, files: Path) -> None:
    (found,) = json.loads(text).values()
    np.testing.assert_allclose(np.reshape(found["data"], found["dims"]), np.load(files / "wanted.npy"), atol=1e-5)


def test_in_python(files: Path) -> None:
    given = [str(files / name) for name in ("pets.onnx", "pets.cats.onnx_adapter", "inputs.npz")]
    for outputs in runpy.run_path(str(files / "plain.py"))["main"](*given):
        np.testing.assert_allclose(outputs[0], np.load(files / "wanted.npy"), atol=1e-5)


@needs_web
@pytest.mark.skipif(NODE is None, reason="Node is not installed")
def test_in_node(files: Path) -> None:
    assert NODE is not None
    given = [NODE, "node.mjs", "pets.onnx", "pets.cats.onnx_adapter", "inputs.json"]
    same(subprocess.run(given, cwd=files, check=True, capture_output=True, text=True, timeout=120).stdout, files)


@pytest.fixture
def address(files: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_web
@needs_browser
def test_in_a_browser(files: Path, address: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--timeout=60000"]
    page = f"{address}/page.html?model=pets.onnx&adapter=pets.cats.onnx_adapter&inputs=inputs.json"
    given = [BROWSER, *options, "--virtual-time-budget=60000", "--dump-dom", page]
    found = subprocess.run(given, check=True, capture_output=True, text=True, timeout=180).stdout
    text = unescape(found.partition('id="outputs">')[2].partition("</pre>")[0])
    assert text.startswith("{"), text
    same(text, files)

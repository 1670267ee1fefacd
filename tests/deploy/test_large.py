"""Files above 2 GB: the weights lie next to the graph, under a fixed relative name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.cli_toys import parsed
from support.models import shake
from torch import Tensor, nn

import utcompile as utc
from utcompile.deploy import verify_onnx, verify_tasks

pytestmark = pytest.mark.full
IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
ROWS = 2**29 // 256 + 50_000  # of 256 numbers of 4 bytes: 2.2 GB


class Large(nn.Module):
    """An embedding above 2 GB, of which the first rows are not zero: zeros take no memory until they are written."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.zeros(ROWS, 256)
        weight[:50].normal_()
        self.tokens = nn.Embedding.from_pretrained(weight)
        self.up, self.head = nn.Linear(256, 16), nn.Linear(16, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.up(self.tokens(ids)).relu().mean(1))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, utc.TunedModule]:
    """A file with two tasks on such a base, and one more run."""
    folder = tmp_path_factory.mktemp("large")
    tuned = utc.compile(Large().eval(), "lora/all_linear", (IDS,), vars={"r": 2}, verify="shapes").eval()
    for seed, name in enumerate(("a", "b", "c")):
        torch.manual_seed(seed)
        shake(tuned)
        utc.save_tuners(tuned, folder / name, {"classes": ["x", "y", "z"]})
    result = utc.export_onnx(tuned, folder / "m.onnx", (IDS,), tasks={n: folder / n for n in "ab"}, batch_sizes=(1,))
    assert result.bytes > 2**31
    return folder, tuned


def test_tasks_on_a_base_above_2_gb(large: tuple[Path, utc.TunedModule], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tuned = large
    path = folder / "m.onnx"
    graph = onnx.load(str(path), load_external_data=False).graph
    places = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {"m.onnx.data"} and path.stat().st_size < 2**20
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    utc.add_task(path, folder / "c")
    with torch.no_grad():
        np.testing.assert_allclose(utc.OnnxModel(path)(IDS, task="c"), tuned(IDS).numpy(), atol=1e-5)
    assert verify_tasks("../m.onnx", tuned, (IDS,), [folder / n for n in "abc"], (1,)).passed
    np.savez("ids.npz", ids=IDS.numpy())
    found = parsed("predict", "../m.onnx", "ids.npz", "--task", "b", "--json")
    assert len(found) == 2 and {entry["label"] for entry in found[0]["top"]} == {"x", "y", "z"}


def test_both_files_move_together(large: tuple[Path, utc.TunedModule], tmp_path: Path) -> None:
    folder, _ = large
    before = utc.OnnxModel(folder / "m.onnx")(IDS, task="a")
    for file in folder.glob("m.*"):
        (tmp_path / file.name).hardlink_to(file)
    np.testing.assert_array_equal(utc.OnnxModel(tmp_path / "m.onnx")(IDS, task="a"), before)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(utc.UtcError, match="ONNX Runtime cannot open the file") as caught:
        utc.OnnxModel(tmp_path / "m.onnx")
    assert "m.onnx.data" in str(caught.value)


def test_a_failure_leaves_the_old_pair(large: tuple[Path, utc.TunedModule], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tuned = large
    before = {file.name: (file.stat().st_ino, file.stat().st_size) for file in folder.glob("m.*")}
    replace, count = Path.replace, [0]

    def fails(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(utc.UtcError, match="the ONNX file cannot be written"):
            utc.export_onnx(tuned, folder / "m.onnx", (IDS,), batch_sizes=(1,))
    assert {file.name: (file.stat().st_ino, file.stat().st_size) for file in folder.glob("m.*")} == before
    result = utc.export_onnx(tuned, folder / "m.onnx", (IDS,), batch_sizes=(1,))  # one model takes the tasks' place
    assert verify_onnx(result.path, tuned, (IDS,), (1,)).passed
    utc.export_onnx(nn.Linear(4, 2), folder / "m.onnx", torch.ones(1, 4))
    assert not (folder / "m.onnx.data").exists()  # its graph is gone

"""Headers of `.npz` files that claim more than there is, or more than the machine has."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.train_toys import SMALL, images

from utcompile.errors import UtcError
from utcompile.train import array_sizes, load_data


def header(shape: tuple[int, ...], version: int, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def write(path: Path, x: bytes) -> Path:
    labels = io.BytesIO()
    np.save(labels, np.zeros(4, np.int64))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", labels.getvalue())
    return path


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("shape", [(10**12,), (4, 10**6, 10**6), (2**62, 4), (2**70,)])
def test_a_header_that_claims_too_much_is_one_error(tmp_path: Path, version: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(UtcError, match="'x' cannot be read") as caught:
        load_data(write(tmp_path / "a.npz", header(shape, version) + b"1234"), **SMALL)
    assert "its header claims" in str(caught.value)


@pytest.mark.parametrize(
    "content", [header((-4, 8, 8), 1), b"\x93NUMPY", b"", b"\x93NUMPY\x01\x00\xff\xff{", header((4,), 9)]
)
def test_a_damaged_header_is_one_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UtcError):
        load_data(write(tmp_path / "a.npz", content), **SMALL)


def test_arrays_beyond_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = images(8)[1]
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((8, 100, 100), np.uint8), y=y)
    load_data(tmp_path / "a.npz", **SMALL)
    monkeypatch.setattr(array_sizes, "memory_of_machine", lambda: 10_000)
    with pytest.raises(UtcError, match="do not fit into memory"):
        load_data(tmp_path / "a.npz", **SMALL)

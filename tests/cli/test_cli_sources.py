"""Where models come from: heads of folders, factories, a hub that cannot be reached, what is warned of once."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
from support.cli_toys import passed, write_data

from utcompile.cli.hf import split_head, with_head
from utcompile.cli.hub_reach import offline_if_unreachable
from utcompile.cli.sources import source_of

NET = """
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def counted(num_classes):
    return plain()

def open_to_all(**options):
    return plain()

def mute():
    model = plain()
    nn.init.zeros_(model[3].weight)
    return model
"""


def test_heads_of_a_folder() -> None:
    assert split_head("bert@text") == (Path("bert"), "text")
    assert split_head("me@home") == (Path("me@home"), None)
    assert with_head("hf:bert", "text") == "hf:bert@text" and with_head("hf:bert@base", "text") == "hf:bert@base"
    assert (
        with_head("hf:vit", "classify") == "hf:vit@image" and with_head("timm:resnet18", "segment") == "timm:resnet18"
    )


def test_factories_that_take_the_number_of_classes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    taken = {
        name: source_of(f"{tmp_path / 'net.py'}:{name}").takes_num_classes()
        for name in ("plain", "counted", "open_to_all")
    }
    assert taken == {"plain": False, "counted": True, "open_to_all": True}


@pytest.mark.parametrize(("proxy", "offline"), [(None, True), ("http://proxy:1", False)])
def test_a_hub_that_cannot_be_reached(proxy: str | None, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with offline_if_unreachable():
        assert offline == hub.HF_HUB_OFFLINE
    assert not hub.HF_HUB_OFFLINE


def test_sites_without_a_gradient_are_warned_of_in_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "net.py").write_text(NET)
    model = ("-m", f"{tmp_path / 'net.py'}:mute", "--input-size", "8", "--train", "none")
    data = write_data(tmp_path / "data.npz")
    passed("train", *model, "-r", "lora/all_conv", "-d", data, "-o", tmp_path / "run", "epochs=1", "--no-report")
    assert "get no gradient" in caplog.text
    caplog.clear()
    passed("evaluate", tmp_path / "run", "--trust")
    assert "get no gradient" not in caplog.text

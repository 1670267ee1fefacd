"""Two processes: replicated and sharded models have the gradients of one, and their checkpoints are those of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes import WRAPPED, check_all, check_shares, run_both, tuned_of

import utcompile as utc

pytestmark = pytest.mark.full


def _manifest(folder: Path) -> dict[str, object]:
    """A manifest but for the versions of what its process had imported, which its identity covers too."""
    content = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in content.items() if name not in ("identity", "versions")}


def test_gradients_and_checkpoints_are_those_of_one_process(tmp_path: Path) -> None:
    utc.save_tuners(tuned_of(seed=2), tmp_path / "of_one")
    run_both(check_all, tmp_path)
    utc.save_tuners(tuned_of(), tmp_path / "same")
    expected = _manifest(tmp_path / "same")
    for kind in WRAPPED:
        assert _manifest(tmp_path / kind) == expected
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["manifest.json", "tuners.safetensors"]


def test_a_shared_batch_has_the_loss_of_one_process_where_classes_weigh_or_pixels_are_ignored() -> None:
    run_both(check_shares)

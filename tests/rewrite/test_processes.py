"""Two processes: replicated and sharded models have the gradients of one, and their checkpoints are those of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import WRAPPED, check_all, check_shares, run_both, tuned_of

import utcompile as utc

pytestmark = pytest.mark.full


def test_gradients_and_checkpoints_are_those_of_one_process(tmp_path: Path) -> None:
    utc.save_tuners(tuned_of(seed=2), tmp_path / "of_one")
    run_both(check_all, tmp_path)
    utc.save_tuners(tuned_of(), tmp_path / "same")
    expected = (tmp_path / "same/manifest.json").read_text()
    for kind in WRAPPED:
        assert (tmp_path / kind / "manifest.json").read_text() == expected
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["manifest.json", "tuners.safetensors"]


def test_a_shared_batch_has_the_loss_of_one_process_where_classes_weigh_or_pixels_are_ignored() -> None:
    run_both(check_shares)

"""Folding reports in a terminal."""

from __future__ import annotations

import pytest

from utcompile.cli.fold_lines import report_lines, sibling_named, summary_lines
from utcompile.errors import UtcError
from utcompile.folding import FoldReport
from utcompile.folding.report import FoldedSite

SITES = (
    *(FoldedSite(f"lora/blocks.{i}.fc/0", "absorbed", 10.0**-i, dtype_error=1e-6) for i in range(12, 15)),
    FoldedSite("lora/head/0", "absorbed", parameters=(9, 5), dtype_error=None),
    *(FoldedSite(f"ffn/blocks.{i}/0", "kept", reason=f"it reads blocks_{i}_add") for i in range(2)),
    FoldedSite("ffn//0", "kept", reason="its weight is tied"),
)
REPORT = FoldReport(SITES, 1e-7, (20, 10))


def test_repeated_blocks_are_one_line() -> None:
    lines = report_lines(REPORT).splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["lora/blocks.12…14.fc", "3", "absorbed"],
        ["lora/head/0", "1", "absorbed"],
        ["ffn/blocks.0…1", "2", "kept"],
        ["ffn/(root)/0", "1", "kept"],
    ]
    assert "1e-12" in lines[1]  # the largest error
    assert lines[3].split()[3:] == ["-"] * 5
    assert summary_lines(REPORT).splitlines() == [
        "4 absorbed, 3 kept",
        "largest error of a site 1.0e-12 (float64), of the model 1.0e-07 (its dtype)",
        "parameters 20 -> 10",
        "  kept ffn/blocks.0…1: it reads blocks_0_add (2 alike)",
        "  kept ffn/(root)/0: its weight is tied",
    ]
    assert report_lines(FoldReport((), 0.0, (1, 1))).startswith("no tuners")


def test_an_error_names_the_foldable_sibling() -> None:
    error = UtcError("12 tuners cannot be folded", fix="another", code="fold/kept")
    with pytest.raises(UtcError, match="train with u_tuning/dual_foldable"), sibling_named("dual"):
        raise error
    with pytest.raises(UtcError, match="fix: another"), sibling_named("mine"):
        raise error

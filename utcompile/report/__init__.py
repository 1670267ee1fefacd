"""Pictures and pages: what a plan inserts, and how a run went."""

from utcompile.report.history import read_history
from utcompile.report.page import parts_page, plan_page
from utcompile.report.predictions import Predictions, look
from utcompile.report.run_sections import RunFacts, Speed, run_page
from utcompile.report.svg import svg_of

__all__ = [
    "Predictions",
    "RunFacts",
    "Speed",
    "look",
    "parts_page",
    "plan_page",
    "read_history",
    "run_page",
    "svg_of",
]

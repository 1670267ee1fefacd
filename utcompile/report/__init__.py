"""Pictures and pages: what a plan inserts, and how a run went."""

from utcompile.report.page import plan_page
from utcompile.report.svg import svg_of

__all__ = ["plan_page", "svg_of"]

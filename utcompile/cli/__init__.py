"""The command line: one file per verb, each a thin layer over the public API."""

from utcompile.cli.program import app, main

__all__ = ["app", "main"]

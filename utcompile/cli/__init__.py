"""The command line: one file a verb, each a thin layer over the public API."""

from utcompile.cli.app import app, main

__all__ = ["app", "main"]

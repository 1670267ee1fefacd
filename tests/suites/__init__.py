"""Suites of models from the installed torch, each captured and called."""

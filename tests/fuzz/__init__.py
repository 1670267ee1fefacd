"""Random models against their captures: `python -m tests.fuzz --help`."""

"""`python -m utcompile` is the command `utcompile`."""

from utcompile.cli import main

if __name__ == "__main__":
    main()

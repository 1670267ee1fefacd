"""The checks, one module per group; each has a function `checks(device, quick)`."""

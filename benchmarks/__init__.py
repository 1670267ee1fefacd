"""Small pairwise benchmarks in one process: `python -m benchmarks [NAME …] [--quick] [--json FILE]`."""

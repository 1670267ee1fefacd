"""Is utcompile right on a GPU, and what does it cost there? `python -m benchmarks.gpu [--quick] [--out DIR]`.

One call, bounded in time. Each check is a row, also where it fails, crashes or is not run. The modules by their job:

- `row`, `known`, `table`: what a check found, which failures are known, and the Markdown of it.
- `supervisor`, `worker`: the checks run in a child process, which is replaced where it crashes or hangs.
- `plan`: the groups of checks, the most valuable first. Each group is a module with a function `checks`.
- `subjects`, `steps`, `memory`, `rules_of_cuda`: models, training steps and their comparisons, bytes, and what a GPU
  does otherwise than a CPU.
"""

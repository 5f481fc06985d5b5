"""Benchmarks: contenders for the same work, each checked before it is timed, beside what the machine can do at most.

A suite is a module of this package with `NAMES`, what `--op` may choose, and `cases(options)`, which yields a `Case`
for every comparison. `ostrack-fast bench` and the pytest-benchmark files of `bench/` run the same cases.
"""

SUITES = ("ops", "model", "track", "training")

"""Everything that measures, installed as `ostrack_fast.bench`: implementations of the same work, each checked before it
is timed, beside the roofline of the machine.

A suite is a module with `NAMES`, what `--op` may choose, and `cases(options)`, which yields a `Case` for every
comparison. The suite `ops` collects the files `bench_X.py`, one an op, which run under pytest-benchmark too.
"""

SUITES = ("ops", "model", "track", "training", "switches", "ragged")

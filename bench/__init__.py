"""Everything that measures, installed as `ostrack_fast.bench`: implementations of the same work, each checked before it
is timed, beside the roofline of the machine.
"""

# Name of a suite -> the function of options that yields its cases. `NAMES` of the function's module is what `--op` may
# choose. `ops` and `ragged` collect the files `bench_X.py`, one an op, which run under pytest-benchmark too.
SUITES = {
    "ops": "suite_ops:cases",
    "model": "suite_model:cases",
    "track": "suite_track:cases",
    "training": "suite_training:cases",
    "ragged": "suite_ops:ragged",
    "overhead": "suite_ops:overhead",
}

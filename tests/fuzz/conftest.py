"""Random inputs by the thousand: a short run with the other tests, a long one where it is asked for.

`OSTRACK_FAST_FUZZ=long pytest -m slow -s tests/fuzz` runs the long mode and prints what was tried, also when Ctrl-C
ends it early. The short mode tries the same inputs every time; the long mode tries new ones.
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

LONG = os.environ.get("OSTRACK_FAST_FUZZ") == "long"


@pytest.fixture(
    params=["short", pytest.param("long", marks=pytest.mark.slow)],
)
def long(request):
    """Whether this is the long mode."""
    if request.param == "long" and not LONG:
        pytest.skip("the long mode runs with OSTRACK_FAST_FUZZ=long")
    return request.param == "long"


@pytest.fixture
def counts(request):
    """Count here what was tried; printed at the end."""
    counted = Counter()
    yield counted
    told = ", ".join(f"{count} {what}" for what, count in sorted(counted.items()))
    print(f"\n{request.node.name}: {told}")


def scenarios(count, long, run, reduce=True):
    """Call `run(random)` this many times, with a `random.Random` that hypothesis draws from.

    A failing one is reduced, unless that would take too long.
    """
    phases = [Phase.generate, Phase.shrink] if reduce else [Phase.generate]
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    options = settings(max_examples=count, derandomize=not long, database=None, deadline=None, phases=phases)
    settings(options, suppress_health_check=checks)(given(st.randoms(use_true_random=False))(run))()

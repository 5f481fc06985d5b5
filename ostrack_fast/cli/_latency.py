"""How long frames take, without keeping each one's time."""

from __future__ import annotations

from math import ceil, log

_SHORTEST, _STEP, _BINS = 1e-6, 1.01, 2200  # from a microsecond to 50 minutes, to one percent


class Latencies:
    """Durations in a histogram whose size does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._bins = [0] * _BINS

    def add(self, seconds: float) -> None:
        index = ceil(log(max(seconds, _SHORTEST) / _SHORTEST) / log(_STEP))
        self._bins[min(index, _BINS - 1)] += 1
        self.count += 1

    def percentile(self, percent: float) -> float:
        """The duration, in seconds, that this share of all does not exceed; at most one percent too long."""
        wanted, seen = max(1, ceil(percent / 100 * self.count)), 0
        for index, count in enumerate(self._bins):
            seen += count
            if seen >= wanted:
                return _SHORTEST * _STEP**index
        return 0.0

"""Interleaved timing: implementations alternate, so that the noise of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch

# One sample on the CPU lasts at least this long: the clock's own cost and grain vanish.
_MIN_SAMPLE = 2e-4
_MIN_ROUNDS, _MAX_ROUNDS = 7, 200


class CpuClock:
    """Seconds of a call on the CPU, with caches as the implementation before left them."""

    def prepare(self, run: Callable[[], Any]) -> tuple[int, float]:
        """Warm up; returns the number of calls a sample takes, and about its seconds."""
        run()
        once = min(_timed(run, 1) for _ in range(3))
        calls = ceil(_MIN_SAMPLE / once)
        return calls, once * calls

    def sample(self, run: Callable[[], Any], calls: int) -> float:
        return _timed(run, calls) / calls


class CudaClock:
    """Seconds of device time of a call whose inputs are in no cache.

    A buffer larger than the second-level cache is written first. That work also covers the time the host takes to
    launch, so that between the two events there is device time alone, unless the implementation waits for the device.
    """

    def __init__(self, device: torch.device):
        facts = torch.cuda.get_device_properties(device)
        self._device = device
        self._flush = torch.empty(max(256 << 20, 4 * facts.L2_cache_size), dtype=torch.uint8, device=device)
        self._flush.zero_()
        self._flush_seconds = self._between(self._flush.zero_)

    def _between(self, run: Callable[[], Any]) -> float:
        stream = torch.cuda.current_stream(self._device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def prepare(self, run: Callable[[], Any]) -> tuple[int, float]:
        """Warm up; returns how often the buffer is written before a call, and about the seconds of a sample."""
        for _ in range(3):
            run()
        torch.cuda.synchronize(self._device)
        start = perf_counter()
        run()
        launched = perf_counter() - start
        torch.cuda.synchronize(self._device)
        # An implementation that waits for the device never gets ahead of it, however much is written.
        writes = min(1 + ceil(2 * launched / self._flush_seconds), 20)
        return writes, perf_counter() - start + writes * self._flush_seconds

    def sample(self, run: Callable[[], Any], writes: int) -> float:
        for _ in range(writes):
            self._flush.zero_()
        return self._between(run)


Clock = CpuClock | CudaClock


def clock(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def interleave(
    runs: dict[str, Callable[[], Any]], timer: Clock, seconds: float, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of a call, one number a round, of every run. Each round calls all of them, beginning with another one.

    All rounds together take about `seconds`; a few are run whatever it says.

    Args:
        pause: seconds to wait before each sample, and then to call untimed. Threads of other packages keep a core busy
            for a while after their work: 37 ms those of onnxruntime, 10 those of OpenMP. Threads that slept while
            we waited may share a core at first.
    """
    names = list(runs)
    plans = {name: timer.prepare(runs[name]) for name in names}
    total = sum(2 * pause + cost for _, cost in plans.values())
    rounds = min(max(int(seconds / total), _MIN_ROUNDS), _MAX_ROUNDS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for first in range(rounds):
        for offset in range(len(names)):
            name = names[(first + offset) % len(names)]
            sleep(pause)
            end = perf_counter() + pause
            while perf_counter() < end:
                runs[name]()
            times[name].append(timer.sample(runs[name], plans[name][0]))
    return times


def speedup(slow: list[float], fast: list[float]) -> float:
    """How many times as fast: the median over the rounds, of which each saw the same machine."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def _timed(run: Callable[[], Any], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        run()
    return perf_counter() - start

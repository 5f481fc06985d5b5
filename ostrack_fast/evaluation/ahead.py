"""Frames decoded by a thread while the tracker works on those before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

from ..data.images import Image

_DEPTH = 4
"""Decoded frames that wait at most: 25 MB each at 4K."""


def decoded_ahead(read: Callable[[int], Image], count: int) -> Generator[Image]:
    """read(0), read(1), ... read(count - 1), up to four of them ahead of their use.

    What `read` raises is raised where its frame is due.
    """
    with ThreadPoolExecutor(1, "decode") as pool:
        waiting: deque[Future[Image]] = deque()
        try:
            for index in range(count):
                waiting.append(pool.submit(read, index))
                if len(waiting) == _DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""Long runs and rough handling: memory that stays, threads that do not mix, streams that change."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, Tracker, build_ostrack
from ostrack_fast.config import ModelConfig

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (20.0, 20.0, 24.0, 18.0)


def model(seed=0):
    torch.manual_seed(seed)
    return build_ostrack(TINY)


def frames(count=8, seed=0):
    random = np.random.default_rng(seed)
    sizes = [(96, 128), (70, 50), (128, 96), (96, 128)]
    return [random.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8) for i in range(count)]


def resident(device):
    """Bytes of this process in memory, and on a GPU of its tensors too."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + (torch.cuda.memory_reserved() if device == "cuda" else 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is not here")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_memory_does_not_grow(device):
    """2,000 frames show a leak of a kilobyte a frame; OSTRACK_FAST_SOAK=1000000 pytest -m "" -s follows more.

    A long run follows several targets in every tenth frame only: they take most of the time.
    """
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    frames_to_follow = int(os.environ.get("OSTRACK_FAST_SOAK", "2000"))
    single, many = Tracker(model(), device), MultiTracker(model(), device)
    stream = frames()
    single.initialize(stream[0], BOX)
    targets = [many.add(stream[0], BOX) for _ in range(3)]
    stride = 1 if frames_to_follow <= 2000 else 10

    def follow(count):
        for index in range(count):
            frame = stream[index % len(stream)]
            single.track(frame)
            if index % stride == 0:
                many.track(frame)
            if index % (10 * stride) == 0:
                many.drop(targets.pop(0))
                targets.append(many.add(frame, BOX))

    follow(max(300, frames_to_follow // 10))
    memory = [resident(device)]
    for _ in range(10):
        follow(frames_to_follow // 10)
        memory.append(resident(device))
        print(f"{memory[-1] / 2**20:.1f} MiB, grown by {(memory[-1] - memory[0]) / 2**20:.1f}")
    # Of 100,000 frames the allocators' own noise is larger, and a leak is larger still.
    assert memory[-1] - memory[0] < (2 << 20 if frames_to_follow <= 2000 else 16 << 20)


def test_two_trackers_in_two_threads():
    """Each as if it were alone, however their frames interleave."""
    trackers = [Tracker(model(seed), "cpu", "float32") for seed in (0, 1)]
    streams = [frames(40, seed) for seed in (2, 3)]

    def follow(index):
        trackers[index].initialize(streams[index][0], BOX)
        return [trackers[index].track(frame) for frame in streams[index][1:]]

    alone = [follow(index) for index in (0, 1)]
    together = [None, None]
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, follow(i))) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_more_threads_than_pytorch_knows():
    """PyTorch's thread count is one thread's own affair on some builds: results do not depend on it."""
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            tracker = Tracker(model(), "cpu", "float32")
            stream = frames()
            tracker.initialize(stream[0], BOX)
            results.append([tracker.track(frame).box for frame in stream])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-3)


@pytest.mark.gpu
def test_out_of_memory_leaves_a_usable_process():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tracker = Tracker(model(), "cuda")
    stream = frames()
    tracker.initialize(stream[0], BOX)
    expected = tracker.track(stream[0])
    free, _ = torch.cuda.mem_get_info()
    filler = [torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")]
    with pytest.raises(torch.OutOfMemoryError):
        Tracker(build_ostrack("ostrack_large_256_ce"), "cuda")
    filler.clear()
    torch.cuda.empty_cache()
    tracker.initialize(stream[0], BOX)
    assert tracker.track(stream[0]) == expected

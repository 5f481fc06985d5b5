"""A long run through Tracker and MultiTracker: memory after every tenth of it, and whether it grew.

    python -m ostrack_fast.bench.soak --frames 100000

Exits with 1 if the resident memory at the end is more than 16 MiB above that after the first tenth.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from ostrack_fast import MultiTracker, Tracker, build_ostrack
from ostrack_fast.config import ModelConfig

from . import report

# Small, so that frames are many; every op runs.
SMALLEST = ModelConfig(
    template_size=32, search_size=64, embed_dim=64, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (100.0, 80.0, 60.0, 45.0)
SIZES = ((360, 640), (240, 320), (360, 640), (640, 360))


def resident() -> int:
    """Bytes of this process in memory, and on a GPU of its tensors too."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + (torch.cuda.memory_reserved() if torch.cuda.is_available() else 0)


def main() -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    random = np.random.default_rng(0)
    stream = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    torch.manual_seed(0)
    model = build_ostrack(SMALLEST)
    single, many = Tracker(model, options.device), MultiTracker(model, options.device)
    single.initialize(stream[0], BOX)
    targets = [many.add(stream[0], BOX) for _ in range(3)]
    memory, begin = [], perf_counter()
    for index in range(options.frames):
        # The size changes now and then, targets come and go.
        frame = stream[index // 50 % len(stream)]
        single.track(frame)
        many.track(frame)
        if index % 100 == 99:
            many.drop(targets.pop(0))
            targets.append(many.add(frame, BOX))
        if (index + 1) % max(options.frames // 10, 1) == 0:
            memory.append(resident())
            print(f"{index + 1:>8} frames  {memory[-1] / 2**20:8.1f} MiB  {perf_counter() - begin:6.0f} s", flush=True)
    grown = memory[-1] - memory[0]
    print(f"grown by {grown / 2**20:.1f} MiB since the first tenth")
    report.keep(options, {"frames": options.frames, "resident_bytes": memory})
    return int(grown > 16 << 20)


if __name__ == "__main__":
    sys.exit(main())

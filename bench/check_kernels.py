"""Every kernel of a backend at even and at ragged sizes, compared with float64: for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
        python -m ostrack_fast.bench.check_kernels --backend native

The cases are those of the benchmarks for small networks of every head dimension. Exits with 1 if a result is wrong. How
exact the kernels are, the tests hold; here a stray value must show.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from ostrack_fast.config import ModelConfig

from .case import WrongResult
from .suite_ops import MODULES

_ELIMINATING: dict[str, Any] = {"depth": 2, "ce_layers": (0,), "ce_keep_ratio": (0.7,)}
# Head dimensions 64, 96, 32 and 128; tokens that fill tiles and tokens that do not, maps from 3 x 3 cells.
CONFIGS = (
    ModelConfig(128, 256, embed_dim=192, num_heads=3, head_channels=64, **_ELIMINATING),
    ModelConfig(80, 144, embed_dim=96, num_heads=1, head_channels=24, **_ELIMINATING),
    ModelConfig(16, 48, embed_dim=32, num_heads=1, head_channels=8, **_ELIMINATING),
    ModelConfig(96, 208, embed_dim=256, num_heads=2, head_channels=40, **_ELIMINATING),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="native", choices=("native", "triton"))
    parser.add_argument("--op", choices=tuple(MODULES), help="this one only")
    options = parser.parse_args()

    device = torch.device(options.device)
    torch.manual_seed(0)
    ran, wrong, unsupported = 0, 0, {}
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for op, module in MODULES.items():
            if options.op not in (None, op):
                continue
            planned = [(cfg, batch, dtype) for cfg in CONFIGS for batch in (1, 3) for dtype in DTYPES]
            for case in (case for chosen in planned for case in module.cases(*chosen, device)):
                comparison = case.build()
                if options.backend in comparison.skipped:
                    unsupported[f"{op}: {comparison.skipped[options.backend]}"] = True
                    continue
                ran += 1
                try:
                    comparison.check(options.backend)
                except WrongResult as error:
                    wrong += 1
                    print(f"Error: {case}: {error}")
    for reason in unsupported:
        print(f"not run: {reason}")
    print(f"{ran} calls of {options.backend} kernels on {device}, {wrong} wrong")
    return 1 if wrong or not ran else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every tile that `ostrack-fast tune` may try on a Hopper GPU compiles for one, with no GPU: no spills, and it fits.

The two GEMMs with the most in registers: a normalized operand, and a residual in the epilogue.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: Triton cannot compile in this process", allow_module_level=True)

from compile_only import REGISTERS_PER_MULTIPROCESSOR, SHARED_MEMORY_LIMIT, compile_launches

from ostrack_fast import kernels
from ostrack_fast.kernels import tiles

HALF = torch.float16


def linear(outputs, inputs, norm):
    layer = kernels.Linear(
        torch.empty(outputs, inputs), torch.empty(outputs), 1e-6 if norm else None, "gelu" if norm else "none", HALF
    )
    x = torch.empty(1, 320, inputs, dtype=torch.float32 if norm else HALF)
    residual = None if norm else torch.empty(1, 320, outputs)
    return layer.problem(320), lambda: layer(x, residual, residual)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "call"),
    [linear(3072, 768, norm=True), linear(768, 3072, norm=False)],
    ids=["norm, fc1, gelu", "fc2, residual"],
)
def test_hopper_tiles_neither_spill_nor_overflow(problem, call, monkeypatch):
    """Without a split, and with one: the sum of a split tile has an epilogue of its own."""
    configs = [config for config in tiles.candidate_configs(problem, 9) if config.split in (1, 3)]
    assert max(config.block_n for config in configs) == 256
    for config in configs:
        monkeypatch.setattr(tiles, "_measured", {})
        tiles.set_config(problem, config, 0)
        (compiled,) = compile_launches(90, call)
        assert compiled.stack == 0 and compiled.shared <= SHARED_MEMORY_LIMIT[90], (config, compiled)
        assert compiled.registers * 32 * compiled.warps <= REGISTERS_PER_MULTIPROCESSOR, (config, compiled)
        assert "wgmma" in compiled.ptx, config

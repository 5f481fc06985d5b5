"""A frame's kernels, and what begins early, compiled with no GPU; see `test_compiled`."""

import os
import re

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: Triton cannot compile in this process", allow_module_level=True)

import triton
import triton.language as tl
from compile_only import compile_launches
from test_compiled import HALF, TARGETS, assert_matrix_units, compile_clean, forward

from ostrack_fast import kernels
from ostrack_fast.kernels import dependent_launch
from ostrack_fast.kernels.library_gemm import normalize
from ostrack_fast.kernels.update_box import update_box

ALL = [pytest.param(each, marks=[pytest.mark.slow] if each != 90 else []) for each in TARGETS]
# Hopper always; later ones, which differ little, with the slow tests.
ABLE = [pytest.param(each, marks=[pytest.mark.slow] if each > 90 else []) for each in TARGETS if each >= 90]


def frame_kernels(dtype):
    """Every kernel of a frame, at the sizes of the published networks."""
    qkv, mask = torch.empty(1, 320, 3, 12, 64, dtype=dtype), torch.zeros(64, dtype=torch.bool)
    tokens, score, ids = torch.empty(1, 320, 768), torch.empty(1, 256), torch.arange(256)[None]
    weight, maps = torch.empty(768), [torch.empty(1, planes, 16, 16) for planes in (1, 2, 2)]
    frame, box = torch.empty(480, 640, 3, dtype=torch.uint8), torch.empty(1, 4, dtype=torch.float64)
    norm = kernels.Linear(torch.empty(2304, 768), torch.empty(2304), 1e-6, dtype=dtype)
    conv = kernels.Conv3x3(torch.empty(192, 128, 3, 3), torch.empty(192), 3, dtype=dtype)
    kernels.crop(frame, box, 4.0, 256, dtype, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    norm(tokens)
    kernels.attention(qkv, mask)
    kernels.eliminate(tokens, score, ids, 180)
    kernels.Linear(torch.empty(768, 3072), torch.empty(768), dtype=dtype)(
        torch.empty(1, 244, 3072, dtype=dtype), tokens[:, :244]
    )
    kernels.restore(tokens[:, :180], ids[:, :180], 16, weight, weight, channels_last=True, dtype=dtype)
    conv(torch.empty(1, 16, 16, 384, dtype=dtype))
    kernels.decode(*maps, torch.empty(16, 16))
    update_box(torch.empty(1, 4), box, (480, 640), 4.0, 10.0)
    frame_tail(16, dtype)
    frame_tail(16, dtype, (0.138, 0.455, 0.65))
    crop_patches(dtype)
    normalize(tokens[0], 1e-6, dtype)


def crop_patches(dtype):
    frame, box = torch.empty(1080, 1920, 3, dtype=torch.uint8), torch.empty(1, 4, dtype=torch.float64)
    kernels.crop(frame, box, 4.0, 256, dtype, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 16)


def frame_tail(grid, dtype, smoothing=None):
    """The end of a frame of a published network, with smoothing or not."""
    box = torch.empty(1, 4, dtype=torch.float64)
    tail = kernels.FrameTail(torch.empty(5, 32), torch.empty(5), torch.empty(grid, grid))
    tail(torch.empty(1, grid, grid, 96, dtype=dtype), box, (1080, 1920), 4.1, 10.0, smoothing)


@pytest.mark.parametrize("capability", TARGETS)
def test_both_ends_of_a_frame(capability):
    """The side as `crop` computes it; loads of 16 bytes; 384 has four times the cells."""
    (compiled,) = compile_clean(capability, lambda: crop_patches(HALF[capability]))
    assert "sqrt.rn.f64" in compiled.ptx and "fma.rn" not in compiled.ptx
    for grid in (16, 24):
        made = [
            compile_clean(capability, lambda grid=grid, how=how: frame_tail(grid, HALF[capability], how))
            for how in (None, (0.138, 0.455, 0.65))
        ]
        (compiled,), (smoothed,) = made
        assert "sqrt.rn.f64" in smoothed.ptx and "fma.rn.f64" not in smoothed.ptx
        assert "sqrt.rn.f64" in compiled.ptx and "fma.rn.f64" not in compiled.ptx and "fma.rn.f32" not in compiled.ptx
        assert compiled.ptx.count(".param .f64") >= 2, "factor and margin must arrive in full precision"
        assert "ld.global.v4" in compiled.ptx


@pytest.mark.parametrize("capability", ALL)
def test_attention_by_eight_warps(capability):
    (compiled,) = compile_clean(capability, forward(1, 64, HALF[capability]))
    assert compiled.warps == 8
    assert_matrix_units([compiled], capability)


@pytest.mark.parametrize("capability", ALL)
def test_norm_before_the_library(capability):
    for width in (384, 768):
        (compiled,) = compile_clean(
            capability, lambda width=width: normalize(torch.empty(9, width), 1e-6, torch.float16)
        )
        assert "ld.global.v" in compiled.ptx and "st.global.v" in compiled.ptx


def touched_before_the_wait(ptx):
    """Instructions that reach memory, or leave the straight line, ahead of the wait for the kernels before."""
    before, wait, after = ptx.partition("griddepcontrol.wait")
    assert wait, "no wait"
    assert "griddepcontrol.wait" not in after and after.count("griddepcontrol.launch_dependents") == 1
    body = before[before.index(".entry") :]
    return re.findall(r"^\s*(?:@%?!?\w+ )?(?:ld\.global|st\.|atom\.|red\.|cp\.async|bra)\S*", body, re.MULTILINE)


@pytest.mark.parametrize("capability", ABLE)
def test_nothing_is_touched_before_the_wait(capability, monkeypatch):
    """And the first weights of GEMMs are on their way to the cache by then."""
    monkeypatch.setattr(dependent_launch, "options", lambda device: {"PDL": True, "launch_pdl": True})
    compiled = compile_clean(capability, lambda: frame_kernels(HALF[capability]))
    assert len({kernel.name for kernel in compiled}) == 10 and len(compiled) == 13
    for kernel in compiled:
        assert touched_before_the_wait(kernel.ptx) == [], kernel.name
        fetched = "prefetch.global.L2" in kernel.ptx.partition("griddepcontrol.wait")[0]
        assert fetched == (kernel.name in ("_linear", "_conv3x3")), kernel.name


def test_on_older_gpus_there_is_no_wait():
    for kernel in compile_launches(90, lambda: frame_kernels(torch.float16)):
        assert "griddepcontrol" not in kernel.ptx and "prefetch" not in kernel.ptx, kernel.name


@triton.jit
def _reads_too_early(x, y):
    value = tl.load(x)
    dependent_launch.wait_for_inputs(True)
    tl.store(y, value)


def test_a_load_before_the_wait_is_seen():
    x = torch.empty(1)
    (kernel,) = compile_launches(90, lambda: _reads_too_early[(1,)](x, x, launch_pdl=True))
    assert any("ld.global" in each for each in touched_before_the_wait(kernel.ptx))

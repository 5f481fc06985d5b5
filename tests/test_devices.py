"""What "auto" stands for, and the warning about a compute dtype that is slow here."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ostrack_fast import devices, ops
from ostrack_fast.ops import native

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_warned_yet():
    devices._warn_if_slow.cache_clear()
    yield
    devices._warn_if_slow.cache_clear()


def test_auto_has_a_reason():
    features = native.build_info()["cpu_features"]
    dtype, reason = devices.automatic_dtype(CPU)
    assert dtype == devices.resolve_dtype("auto", CPU)
    assert dtype == (torch.bfloat16 if features["avx512_bf16"] or features["amx_bf16"] else torch.float32)
    assert "bfloat16" in reason or "AVX-512 BF16" in reason
    assert ("int8 cannot run" in reason) == (
        ops.LAYERS["linear"].unsupported_reason("native", weight=torch.zeros(1, 1), dtype=torch.int8) is not None
    )


def test_a_slow_dtype_warns_once():
    with pytest.warns(UserWarning, match=r"float16 is slower than float32 on this CPU: .*float16") as seen:
        assert devices.resolve_dtype("float16", CPU) == torch.float16
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices.resolve_dtype("float16", CPU)
        devices.resolve_dtype("float32", CPU)


@pytest.mark.parametrize("capability", ["portable", "avx2"])
def test_bfloat16_warns_where_there_is_no_kernel_for_it(capability):
    features = native.build_info()["cpu_features"]
    if features["avx512_bf16"] or features["amx_bf16"] or not features["avx2"]:
        pytest.skip("this processor multiplies bfloat16 fast, or has no AVX2")
    code = "import torch; from ostrack_fast.devices import *; resolve_dtype('bfloat16', torch.device('cpu'))"
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("bfloat16 is slower than float32" in done.stderr) == (capability == "portable"), done.stderr


@pytest.mark.parametrize("wrong", [None, "", "tpu", "cuda:x", [0]])
def test_what_is_no_device_is_told(wrong):
    with pytest.raises(ValueError, match="is not supported: choose auto, cpu, cuda"):
        devices.resolve_device(wrong)

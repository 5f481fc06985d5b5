"""What the host functions launch, compiled down to machine code for six kinds of GPU, with no GPU.

No spills, no stack, shared memory within the limit, tensor cores where the dtype has them, IEEE arithmetic for float32.
"""

import os
import re
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: Triton cannot compile in this process", allow_module_level=True)

from compile_only import MMA, REGISTERS_PER_MULTIPROCESSOR, SHARED_MEMORY_LIMIT, Compiled, compile_launches

from ostrack_fast import kernels, ops
from ostrack_fast.kernels.update_box import update_box

HALF = {80: torch.float16, 86: torch.bfloat16, 89: torch.float16, 90: torch.bfloat16, 100: torch.float16,
        120: torch.bfloat16}  # fmt: skip
TARGETS = tuple(HALF)
DECLARED = [each for each in (*ops.OPS.values(), *ops.LAYERS.values()) if "triton" in each.backends]
DECLARED.remove(ops.LAYERS["restore_conv3x3"])  # made of two others, which choose their backends by the device


def compile_clean(capability: int, call: Callable[[], object]) -> list[Compiled]:
    compiled = compile_launches(capability, call)
    for kernel in compiled:
        assert kernel.stack == 0, kernel
        assert kernel.shared <= SHARED_MEMORY_LIMIT[capability], kernel
        assert kernel.registers * 32 * kernel.warps <= REGISTERS_PER_MULTIPROCESSOR, kernel
        assert "tf32" not in kernel.ptx, kernel.name
    return compiled


def assert_matrix_units(compiled: list[Compiled], capability: int) -> None:
    for kernel in compiled:
        assert MMA[capability] in kernel.ptx, kernel.name
        assert "cp.async" in kernel.ptx, f"{kernel.name} does not prefetch"


def forward(batch: int, dim: int, dtype: torch.dtype) -> Callable[[], object]:
    qkv = torch.empty(batch, 320, 3, 12, dim, dtype=dtype)
    mask = torch.zeros(64, dtype=torch.bool)
    return lambda: kernels.attention(qkv, mask)


def backward(dim: int, dtype: torch.dtype) -> Callable[[], object]:
    qkv = torch.empty(1, 320, 3, 12, dim, dtype=dtype)
    out, lse = torch.empty(1, 320, 12 * dim, dtype=dtype), torch.empty(1, 12, 320)
    return lambda: kernels.attention_backward(out, qkv, out, lse)


def short_name(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@pytest.mark.slow
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("name", [each.name for each in DECLARED])
def test_the_example_of_every_op_and_layer(name, capability):
    """A new one is compiled with what its own file gives."""
    declaration, cpu = ops.declared(name), torch.device("cpu")
    run = declaration.backends["triton"].run
    arguments = next(declaration.samples("typical", HALF[capability], cpu))
    if name in ops.OPS:
        assert compile_clean(capability, lambda: run(*arguments))
    else:
        layer, inputs = run(*arguments), declaration.inputs(*arguments, 1)
        assert compile_clean(capability, lambda: layer(*inputs))


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("batch", [1, 32])
def test_attention_on_matrix_units(batch, capability):
    compiled = compile_clean(capability, forward(batch, 64, HALF[capability]))
    assert len(compiled) == 1
    assert_matrix_units(compiled, capability)


@pytest.mark.parametrize("capability", TARGETS)
def test_attention_backward_on_matrix_units(capability):
    compiled = compile_clean(capability, backward(64, HALF[capability]))
    assert len(compiled) == 2
    assert_matrix_units(compiled, capability)


@pytest.mark.parametrize("capability", TARGETS)
def test_attention_in_float32(capability):
    (compiled,) = compile_clean(capability, forward(1, 64, torch.float32))
    assert "fma.rn.f32" in compiled.ptx


@pytest.mark.parametrize("capability", [86, 90])
def test_attention_backward_in_float32(capability):
    compile_clean(capability, backward(64, torch.float32))


@pytest.mark.parametrize(
    ("dim", "capability", "dtype"),
    [
        (32, 80, torch.bfloat16),
        (96, 86, torch.float16),
        (96, 90, torch.bfloat16),
        (128, 90, torch.float32),
        (128, 100, torch.bfloat16),
        (128, 120, torch.float16),
    ],
    ids=short_name,
)
def test_other_head_dimensions(dim, capability, dtype):
    compiled = compile_clean(capability, forward(1, dim, dtype)) + compile_clean(capability, backward(dim, dtype))
    if dtype != torch.float32:
        assert_matrix_units(compiled, capability)


def test_the_ticket_is_ordered_in_the_compiled_code():
    (compiled,) = compile_launches(80, forward(1, 64, torch.float16))
    before, after = re.split(r"atom\.global\.gpu\.acq_rel\.add", compiled.ptx)
    # Every warp's partial sums are stored before the barrier that one thread passes to add to the arrival counter.
    assert "st.global" not in before[before.rindex("bar.sync") :]
    # Partial sums of other multiprocessors are read past the L1 cache, and only after the arrival counter.
    assert "ld.global.cg" in after and "ld.global.cg" not in before


@pytest.mark.parametrize("capability", TARGETS)
def test_token_kernels(capability):
    dtype = HALF[capability]
    tokens, score, ids = torch.empty(1, 320, 768, dtype=dtype), torch.empty(1, 256), torch.arange(256)[None]
    search, kept = tokens[:, :180].contiguous(), ids[:, :180].contiguous()
    weight = torch.empty(768)
    maps = [torch.empty(1, planes, 16, 16, dtype=dtype) for planes in (1, 2, 2)]

    def call():
        kernels.eliminate(tokens, score, ids, 180)
        kernels.restore(search, kept, 16, weight, weight)
        kernels.restore(search, kept, 16, weight, weight, channels_last=True, dtype=torch.float16)
        kernels.decode(*maps, torch.empty(16, 16))

    assert len(compile_clean(capability, call)) == 4


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_crop_computes_geometry_in_float64_without_contraction(capability):
    frame, box = torch.empty(480, 640, 3, dtype=torch.uint8), torch.empty(1, 4, dtype=torch.float64)
    (compiled,) = compile_clean(
        capability, lambda: kernels.crop(frame, box, 4.1, 256, torch.float32, (0.5,) * 3, (0.25,) * 3)
    )
    ptx = compiled.ptx
    assert "sqrt.rn.f64" in ptx and "div.rn.f64" in ptx and "div.rn.f32" in ptx
    assert "fma.rn" not in ptx and "div.full" not in ptx and "div.approx" not in ptx
    assert ".param .f64" in ptx, "the factor must arrive in full precision"


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_update_box_computes_the_side_as_crop_does(capability):
    found, box = torch.empty(1, 4), torch.empty(1, 4, dtype=torch.float64)
    (compiled,) = compile_clean(capability, lambda: update_box(found, box, (480, 640), 4.1, 10))
    assert "sqrt.rn.f64" in compiled.ptx and "fma.rn" not in compiled.ptx
    assert compiled.ptx.count(".param .f64") >= 2, "factor and margin must arrive in full precision"


def linear(
    rows: int, channels: int, features: int, norm: bool, residual: bool, dtype: torch.dtype
) -> Callable[[], object]:
    layer = kernels.Linear(
        torch.empty(features, channels),
        torch.empty(features),
        1e-6 if norm else None,
        "gelu" if norm else "none",
        dtype,
    )
    x = torch.empty(1, rows, channels, dtype=torch.float32 if norm else dtype)
    tokens = torch.empty(1, rows, features) if residual else None
    return lambda: layer(x, tokens, tokens)


def conv3x3(grid: int, inputs: int, outputs: int, groups: int, dtype: torch.dtype) -> Callable[[], object]:
    layer = kernels.Conv3x3(torch.empty(outputs, inputs // groups, 3, 3), torch.empty(outputs), groups, dtype=dtype)
    x = torch.empty(1, grid, grid, inputs, dtype=dtype)
    return lambda: layer(x)


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(
    ("rows", "channels", "features", "norm", "residual"),
    [(320, 768, 3072, True, False), (153, 768, 768, False, True), (244, 3072, 768, False, True)],
)
def test_linear_on_matrix_units(rows, channels, features, norm, residual, capability):
    compiled = compile_clean(capability, linear(rows, channels, features, norm, residual, HALF[capability]))
    assert len(compiled) == 1
    assert_matrix_units(compiled, capability)


@pytest.mark.parametrize("capability", [86, 90])
@pytest.mark.parametrize(("channels", "features", "norm"), [(768, 2304, True), (384, 1152, True), (3072, 768, False)])
def test_linear_in_float32(channels, features, norm, capability):
    (compiled,) = compile_clean(capability, linear(180, channels, features, norm, not norm, torch.float32))
    assert "fma.rn.f32" in compiled.ptx


@pytest.mark.parametrize(
    ("capability", "grid", "inputs", "outputs", "groups"),
    [(80, 16, 384, 192, 3), (86, 16, 768, 768, 1), (89, 12, 72, 36, 3), (90, 16, 768, 384, 3), (90, 12, 144, 72, 3),
     (100, 16, 192, 96, 3), (120, 12, 384, 288, 1)],
)  # fmt: skip
def test_conv3x3_on_matrix_units(grid, inputs, outputs, groups, capability):
    compiled = compile_clean(capability, conv3x3(grid, inputs, outputs, groups, HALF[capability]))
    assert len(compiled) == 1
    assert_matrix_units(compiled, capability)


@pytest.mark.parametrize(("capability", "inputs", "outputs", "groups"), [(86, 768, 384, 3), (90, 384, 288, 1)])
def test_conv3x3_in_float32(inputs, outputs, groups, capability):
    (compiled,) = compile_clean(capability, conv3x3(12, inputs, outputs, groups, torch.float32))
    assert "fma.rn.f32" in compiled.ptx


def test_split_sums_are_published_before_the_ticket():
    (compiled,) = compile_launches(80, linear(244, 3072, 768, False, True, torch.float16))
    before, after = re.split(r"atom\.global\.gpu\.acq_rel\.add", compiled.ptx)
    # Every warp's part is stored before the barrier that one thread passes to add to the arrival counter.
    assert "st.global" in before and "st.global" not in before[before.rindex("bar.sync") :]
    # The parts of other multiprocessors are read past the L1 cache, and only after the arrival counter.
    assert "ld.global.cg" in after and "ld.global.cg" not in before

"""The compiled module; csrc/ostrack_fast.h documents the arguments of the kernels.

A tensor is (address, one of `dtypes`, shape, strides in elements), None where it is optional; a stream is an address.
"""

from collections.abc import Sequence
from typing import Any

_Tensor = tuple[int, int, Sequence[int], Sequence[int]]

dtypes: dict[str, int]
activations: dict[str, int]

class Calls:
    """Calls of `cpu_*` to be made again: called with these before its own arguments, a kernel is noted instead of run.

    `value`: the address of what changes from one time to the next.
    """

    def __init__(self, value: int, /) -> None: ...
    def replay(self, value: int, /) -> None: ...

def build_info() -> dict[str, Any]: ...
def cuda_device_count() -> tuple[int, str]: ...
def cpu_attention(
    q: _Tensor,
    kv: _Tensor,
    template_mask: _Tensor | None,
    out: _Tensor,
    score: _Tensor | None,
    lse: _Tensor | None,
    threads: int,
    /,
) -> None: ...
def cpu_attention_backward(
    qkv: _Tensor,
    template_mask: _Tensor | None,
    out: _Tensor,
    lse: _Tensor,
    grad_out: _Tensor,
    grad_score: _Tensor | None,
    grad: _Tensor,
    threads: int,
    /,
) -> None: ...
def cpu_crop(
    frame: _Tensor,
    box: _Tensor,
    mean: _Tensor,
    inv_std: _Tensor,
    patch: _Tensor,
    scale: _Tensor,
    factor: float,
    threads: int,
    /,
) -> None: ...
def cpu_decode(
    score: _Tensor, size: _Tensor, offset: _Tensor, window: _Tensor | None, box: _Tensor, best: _Tensor, threads: int, /
) -> None: ...
def cpu_eliminate(
    tokens: _Tensor, score: _Tensor, ids: _Tensor, out: _Tensor, out_ids: _Tensor, removed: _Tensor, threads: int, /
) -> None: ...
def cpu_head_maps(rows: _Tensor, maps: _Tensor, threads: int, /) -> None: ...
def cpu_patches(image: _Tensor, patches: _Tensor, threads: int, /) -> None: ...
def cpu_restore(
    tokens: _Tensor,
    ids: _Tensor,
    norm_weight: _Tensor | None,
    norm_bias: _Tensor | None,
    map: _Tensor,
    eps: float,
    threads: int,
    /,
) -> None: ...
def cpu_update_box(
    found: _Tensor,
    box: _Tensor,
    moved: _Tensor,
    height: int,
    width: int,
    factor: float,
    margin: float,
    threads: int,
    /,
) -> None: ...
def cpu_conv3x3(
    packed: _Tensor, x: _Tensor, out: _Tensor, dtype: int, groups: int, activation: int, threads: int, /
) -> None: ...
def cpu_linear(
    packed: _Tensor,
    x: _Tensor,
    residual: _Tensor | None,
    out: _Tensor,
    dtype: int,
    norm_eps: float,
    activation: int,
    threads: int,
    /,
) -> None: ...
def cpu_linear_pack(
    weight: _Tensor, bias: _Tensor, packed: _Tensor, dtype: int, groups: int, threads: int, /
) -> None: ...
def cpu_linear_packed_bytes(weight: _Tensor, dtype: int, groups: int, /) -> int: ...
def cpu_gelu(x: _Tensor, out: _Tensor, threads: int, /) -> None: ...
def cpu_gelu_backward(x: _Tensor, grad: _Tensor, out: _Tensor, threads: int, /) -> None: ...
def cpu_gelu_matmul(a: _Tensor, b: _Tensor, bias: _Tensor | None, out: _Tensor, threads: int, /) -> None: ...
def cpu_matmul_gelu(a: _Tensor, b: _Tensor, out: _Tensor, threads: int, /) -> None: ...
def cpu_matmul_gelu_backward(a: _Tensor, b: _Tensor, x: _Tensor, out: _Tensor, threads: int, /) -> None: ...
def cpu_matmul(a: _Tensor, b: _Tensor, bias: _Tensor | None, out: _Tensor, threads: int, /) -> None: ...
def cpu_use_openmp(parallel: int, /) -> int: ...
def cpu_restore_conv3x3(
    taps: _Tensor, ids: _Tensor, bias: _Tensor, map: _Tensor, activation: int, threads: int, /
) -> None: ...
def cuda_attention(
    qkv: _Tensor,
    template_mask: _Tensor | None,
    out: _Tensor,
    score: _Tensor | None,
    lse: _Tensor | None,
    partial: _Tensor | None,
    arrivals: _Tensor | None,
    key_groups: int,
    stream: int,
    /,
) -> None: ...
def cuda_crop(
    frame: _Tensor,
    box: _Tensor,
    mean: _Tensor,
    inv_std: _Tensor,
    patch: _Tensor,
    scale: _Tensor,
    factor: float,
    stream: int,
    /,
) -> None: ...
def cuda_decode(
    score: _Tensor, size: _Tensor, offset: _Tensor, window: _Tensor | None, box: _Tensor, best: _Tensor, stream: int, /
) -> None: ...
def cuda_eliminate(
    tokens: _Tensor, score: _Tensor, ids: _Tensor, out: _Tensor, out_ids: _Tensor, removed: _Tensor, stream: int, /
) -> None: ...
def cuda_restore(tokens: _Tensor, ids: _Tensor, map: _Tensor, stream: int, /) -> None: ...
def cuda_update_box(
    found: _Tensor,
    box: _Tensor,
    moved: _Tensor,
    height: int,
    width: int,
    factor: float,
    margin: float,
    stream: int,
    /,
) -> None: ...

"""A linear layer around the library's GEMM (cuBLASLt by way of PyTorch): two or three launches instead of one.

`tune` times it beside the tiles of `linear`'s own kernel, and the table of tiles says for which sizes it was faster.
"""

import torch
import triton
import triton.language as tl

from . import dependent_launch
from .dependent_launch import wait_for_inputs


@triton.jit
def _normalize(x, out, eps, C: tl.constexpr, PADDED: tl.constexpr, PDL: tl.constexpr):
    wait_for_inputs(PDL)
    columns = tl.arange(0, PADDED)
    inside = columns < C
    at = tl.program_id(0).to(tl.int64) * C + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value) / C, 0.0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(centred * centred) / C + eps))
    tl.store(out + at, (centred * scale).to(out.dtype.element_ty), mask=inside)


def normalize(x: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """LayerNorm without affine of the rows of x (n,C), n > 0, in float32; the result is rounded to `dtype`."""
    rows, channels = x.shape
    out = x.new_empty(rows, channels, dtype=dtype)
    with torch.cuda.device_of(x):
        _normalize[(rows,)](
            x.contiguous(), out, eps, C=channels, PADDED=triton.next_power_of_2(channels), num_warps=4,
            **dependent_launch.options(x.device),
        )  # fmt: skip
    return out


def library_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_eps: float | None,
    activation: str,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """What a call of `linear.Linear` gives, of a weight and a bias in the compute dtype.

    The GEMM's result is rounded to that dtype before activation and residual, as in plain PyTorch.
    """
    features, channels = weight.shape
    rows = x.reshape(-1, channels)
    rows = rows.to(weight.dtype) if norm_eps is None else normalize(rows, norm_eps, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        y = torch.addmm(bias, rows, weight.t()).view(*x.shape[:-1], features)
    if activation == "gelu":
        y = torch.nn.functional.gelu(y)
    elif activation == "relu":
        y = y.relu_()
    if residual is not None:
        return torch.add(residual, y, out=out)
    return y if out is None else out.copy_(y)

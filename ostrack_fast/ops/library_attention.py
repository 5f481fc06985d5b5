"""Attention by PyTorch's own kernels, for training on a GPU where they are faster than ours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .tensors import accumulate_dtype, ieee_float32, without_autocast

DTYPES: tuple[torch.dtype, ...] = (torch.float32,)
"""Dtypes whose training on a GPU takes PyTorch's attention; others, and inference, take ours.

Measured: in float32 a step with our Triton kernels, which multiply on CUDA cores, took 151 ms on an H200 and the dense
upstream one 123 ms. Not measured: this one in float32, where PyTorch's memory-efficient kernel multiplies on tensor
cores with three TF32 products for one of float32; and bfloat16, where our backward pass multiplies 7 times for 5 of
PyTorch's, but adds in a fixed order and reads and writes the packed qkv as it lies.
"""


def preferred(qkv: Tensor) -> bool:
    """Whether `ops.attention` is to take PyTorch's kernels for this qkv; compiled code calls the op as it is."""
    chosen = isinstance(qkv, Tensor) and qkv.is_cuda and qkv.dtype in DTYPES  # what is no tensor the op refuses
    return chosen and qkv.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


@without_autocast
def attention(qkv: Tensor, template: int = 0) -> tuple[Tensor, Tensor | None]:
    """Attention of packed qkv (B,N,3,H,D), with gradients.

    Returns:
        out (B,N,C), and what the first `template` rows attend to, (B,H,template,N) at least float32, or None for 0.
    """
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    if not template:
        return out, None
    wide = accumulate_dtype(qkv)
    rows = query[:, :, :template].to(wide)
    with ieee_float32(rows, "matmul"):
        logits = rows @ key.to(wide).transpose(-2, -1) * qkv.shape[-1] ** -0.5
    return out, logits.softmax(-1)

"""A convolution of patches that do not overlap, as one matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..ops.layers import linear
from .linear import in_dtype_of


def is_patch_embedding(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    if not isinstance(module, nn.Conv2d) or "weight" not in own or module.groups != 1:
        return False
    plain = module.padding in ((0, 0), "valid") and module.dilation == (1, 1)
    return plain and module.kernel_size == module.stride and module.kernel_size != (1, 1)


def build_patch_embedding(module: nn.Module, dtype: torch.dtype) -> Callable[..., Tensor]:
    conv = cast(nn.Conv2d, module)
    weight = conv.weight.detach().float().flatten(1)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().float()
    # Pixels have a range that int8 does not resolve.
    half = torch.bfloat16 if dtype == torch.int8 else dtype
    layer, (height, width) = linear(weight, bias, dtype=half), cast("tuple[int, int]", conv.kernel_size)

    def run(image: Tensor) -> Tensor:
        batch, channels, rows, columns = image.shape
        rows, columns = rows // height, columns // width
        image = image[..., : rows * height, : columns * width]
        patches = image.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        tokens = in_dtype_of(image, layer, patches.reshape(batch, rows * columns, -1), conv.out_channels)
        # In the convolution's order in memory: what follows may view it.
        return tokens.transpose(1, 2).contiguous().view(batch, -1, rows, columns)

    return run

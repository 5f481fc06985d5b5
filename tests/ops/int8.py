"""How the compiled layers quantize."""

import torch

INT8_SLICE = 64  # inputs that share a scale: kLinearByteSlice in csrc/cpu/linear.h, times four


def quantized(values):
    """What symmetric bytes, one scale for each slice of the last dimension, stand for; float64."""
    slices = []
    for part in values.split(INT8_SLICE, dim=-1):
        scale = part.abs().amax(-1, keepdim=True) / 127
        slices.append((part / scale).round().double() * scale)
    return torch.cat(slices, dim=-1)

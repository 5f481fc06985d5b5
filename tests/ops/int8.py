"""How the compiled layers quantize."""

import os

import torch

from ostrack_fast.ops import native

INT8_SLICE = 64  # inputs that share a scale: kQuantBlock in csrc/cpu/linear.h


def quantized(values):
    """What symmetric bytes, one scale for each slice of the last dimension, stand for; float64."""
    return _in_slices(values, lambda part: part.abs().amax(-1, keepdim=True) / 127)


def quantized_weight(values):
    """The same of weights. Without VNNI two neighbours of one sign share 128 steps, so that 16-bit sums hold."""
    if _has_vnni():
        return quantized(values)

    def step(part):
        pairs = torch.nn.functional.pad(part, (0, part.shape[-1] % 2)).unflatten(-1, (-1, 2))
        of_one_sign = torch.maximum(pairs.clamp(min=0).sum(-1), (-pairs).clamp(min=0).sum(-1))
        return torch.maximum(part.abs().amax(-1, keepdim=True) / 127, of_one_sign.amax(-1, keepdim=True) / 128)

    return _in_slices(values, step)


def _in_slices(values, step):
    scales = [(part, step(part)) for part in values.split(INT8_SLICE, dim=-1)]
    return torch.cat([(part / scale).round().double() * scale for part, scale in scales], dim=-1)


def _has_vnni():
    features = native.build_info()["cpu_features"]
    allowed = os.environ.get("OSTRACK_FAST_CPU_CAPABILITY", "avx512_bf16")
    return features["avx512_vnni"] and features["avx512f"] and allowed.startswith("avx512")

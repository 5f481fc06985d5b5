"""How the compiled layers quantize."""

import torch

from ostrack_fast.ops import native


def quantized(values):
    """What symmetric bytes, one scale for each row, stand for; float64."""
    return _in_steps(values, values.abs().amax(-1, keepdim=True) / 127)


def quantized_weight(values):
    """The same of weights. Without VNNI two neighbours of one sign share 128 steps, so that 16-bit sums hold."""
    if _has_vnni():
        return quantized(values)
    pairs = torch.nn.functional.pad(values, (0, values.shape[-1] % 2)).unflatten(-1, (-1, 2))
    of_one_sign = torch.maximum(pairs.clamp(min=0).sum(-1), (-pairs).clamp(min=0).sum(-1)).amax(-1, keepdim=True)
    return _in_steps(values, torch.maximum(values.abs().amax(-1, keepdim=True) / 127, of_one_sign / 128))


def _in_steps(values, step):
    return (values / step).round().double() * step


def _has_vnni():
    features, level = native.build_info()["cpu_features"], native.cpu_level()
    with_avx512 = level.startswith("avx512") and features["avx512_vnni"]
    return with_avx512 or (level in ("avx_vnni", "avx512", "avx512_bf16") and features["avx_vnni"])

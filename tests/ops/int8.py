"""How the compiled layers quantize."""

import torch

from ostrack_fast.ops import native


def quantized(values):
    """What symmetric bytes, one scale for each row, stand for; float64."""
    return _in_steps(values, values.abs().amax(-1, keepdim=True) / 127)


def quantized_weight(values):
    """The same of weights. Without VNNI products are added in 16 bits, which the steps are large enough for: two
    neighbours of one sign share 128 steps, and eight weights 254, the halves of four times four neighbours."""
    if _has_vnni():
        return quantized(values)
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % 16)).unflatten(-1, (-1, 4, 2, 2))
    of_one_sign = torch.maximum(padded.clamp(min=0).sum(-1), (-padded).clamp(min=0).sum(-1)).flatten(-3).amax(-1)
    eights = padded.abs().sum((-3, -1)).flatten(-2).amax(-1)
    step = torch.stack([values.abs().amax(-1) / 127, of_one_sign / 128, eights / 254]).amax(0)
    return _in_steps(values, step[..., None])


def _in_steps(values, step):
    return (values / step).round().double() * step


def _has_vnni():
    features, level = native.build_info()["cpu_features"], native.cpu_level()
    with_avx512 = level.startswith("avx512") and features["avx512_vnni"]
    return with_avx512 or (level in ("avx_vnni", "avx512", "avx512_bf16") and features["avx_vnni"])

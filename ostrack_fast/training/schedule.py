"""What changes over a run: the candidates' keep rate and the learning rate."""

from __future__ import annotations

from math import cos, pi


def keep_rate(epoch: float, start: float, warmup: float, final: float) -> float:
    """Share of candidates kept in training: 1 until `start`, then a cosine to `final` over `warmup` epochs.

    Source: published `adjust_keep_rate`.
    """
    if epoch < start:
        return 1.0
    if epoch >= start + warmup:
        return final
    return final + (1 - final) * 0.5 * (1 + cos(pi * (epoch - start) / warmup))


def rate_factor(epoch: float, epochs: float, warmup: float, drop: float | None, decay: float) -> float:
    """Learning rate over its base value.

    Args:
        epoch: how far the run is, fractional, of `epochs`.
        warmup: epochs that climb linearly from 0.
        drop: epoch after which the rate is a tenth (the published schedule), or None.
        decay: epochs, at the end, that fall linearly to 0.
    """
    factor = min(1.0, epoch / warmup) if warmup else 1.0
    if drop is not None and epoch >= drop:
        factor *= 0.1
    if decay:
        factor *= min(1.0, max(0.0, (epochs - epoch) / decay))
    return factor

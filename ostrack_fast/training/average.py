"""The running average of the weights, which is what gets exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningAverage:
    """An exponential average of a model's state dict.

    Args:
        decay: share of the average that a step leaves, once it is old enough.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: float) -> None:
        """Follow the model after `steps` steps. A young average follows closely: it started as the untrained model."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        now = model.state_dict()
        floating = [name for name in now if now[name].is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in floating], [now[n] for n in floating], 1 - decay)
        for name in now.keys() - set(floating):
            self.state[name].copy_(now[name])

"""Runs of a tiny model."""

import signal
from dataclasses import replace

import torch

from ostrack_fast.config import ModelConfig
from ostrack_fast.training.trainer import Trainer

MODEL = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=3, num_heads=1, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,), drop_path=0.3,
)  # fmt: skip


def run(config, output, stop_after=None):
    trainer = Trainer(replace(config, output=str(output)))
    if stop_after is not None:
        plain = trainer.step

        def step(batch):
            terms = plain(batch)
            if trainer.seen >= stop_after:
                signal.raise_signal(signal.SIGTERM)
            return terms

        trainer.step = step
    trainer.run(progress=False)
    return trainer


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

"""Fine-tuning on a folder of videos, and what it gained on videos that were kept out of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ModelConfig
from ..data.videos import Video, load_videos
from ..files import write_text
from ..model import OSTrack
from ..model.checkpoint import load_pretrained, save_weights
from ..ops.layers import fast_bfloat16
from ..settings import check_ranges
from .augment import AugmentConfig
from .checkpoint import CHECKPOINT
from .config import OptimConfig, TrainConfig
from .crops import CropConfig
from .losses import LossConfig
from .trainer import Trainer
from .validation import track_all

TUNED = "finetuned.safetensors"
REPORT = "report.json"
_HELD_OUT = 5  # one video in five
_STARTS_A_ROUND = 3


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning.

    Args:
        data: folder of videos with ground truth.
        output: folder of the run.
        weights: what to start from.
        held_out: folder of the videos to stop by; None keeps every fifth of `data` out of the training.
        test: folder of further videos to report on: those that stop the training flatter it.
        rounds, pairs: largest number of rounds, and pairs of each; the held-out videos are tracked after every round.
        starts: frames of each video of `test` that tracking starts from, see `validation.first_frames`; of the
            held-out videos, which are tracked after every round, at most three.
        patience: number of rounds without a gain after which the run ends.
        freeze_blocks: number of first blocks that keep their weights; None for half of them.
        lora: rank of LoRA's matrices, which replace the training of the backbone; 0 for none.
    """

    data: str
    output: str
    weights: str = "small"
    held_out: str | None = None
    test: str | None = None
    rounds: int = 8
    pairs: int = 1600
    batch_size: int = 16
    starts: int = 10
    patience: int = 3
    lr: float = 2e-4
    freeze_blocks: int | None = None
    lora: int = 0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, rounds=(1, 1e6), patience=(1, 1e6), starts=(1, 1e4), lr=(0, 1), lora=(0, 1024))


@dataclass(frozen=True)
class Gain:
    """Success AUC of each video before and after.

    Args:
        before, after: AUC by the name of the video, the mean over the starts.
        chosen_by: whether the training was stopped by these very videos.
    """

    before: dict[str, float]
    after: dict[str, float]
    chosen_by: bool

    @property
    def mean(self) -> float:
        """Mean over the videos of what was gained."""
        return float(np.mean([self.after[name] - self.before[name] for name in self.before]))

    def interval(self, draws: int = 10_000) -> tuple[float, float]:
        """95 % bootstrap interval of `mean`, over videos."""
        gains = np.array([self.after[name] - self.before[name] for name in self.before])
        picked = np.random.default_rng(0).integers(len(gains), size=(draws, len(gains)))
        low, high = np.quantile(gains[picked].mean(1), (0.025, 0.975))
        return float(low), float(high)


def finetune(cfg: FinetuneConfig, device: torch.device, progress: bool = True) -> list[Gain]:
    """Train, keep the round that tracks the held-out videos best, and compare it with the start.

    `OUTPUT/finetuned.safetensors` holds the best round's weights, those of the start where no round gained anything;
    `OUTPUT/report.json` says before and after.

    Returns:
        the gain on the held-out videos, and on those of `test` where there are any.

    Raises:
        FileNotFoundError, ValueError: the data or the weights cannot be used, or there are too few videos.
    """
    output = Path(cfg.output)
    if (output / CHECKPOINT).exists():
        raise ValueError(f"{output} holds a run already: give another output folder")
    held_out, names = _held_out(cfg)
    model, start = load_pretrained(cfg.weights)
    stops = min(cfg.starts, _STARTS_A_ROUND)
    before = success(OSTrack.from_pretrained(cfg.weights), held_out, device, stops)
    best = dict(before)
    state, rounds, since = start, [], 0

    def judge(trainer: Trainer) -> bool:
        nonlocal best, state, since
        weights = {name: value.detach().cpu().clone() for name, value in trainer.weights().items()}
        with torch.device("meta"):  # draws no random numbers, which the training goes on with
            tuned = OSTrack(model).eval()
        tuned.load_state_dict(weights, assign=True)
        found = success(tuned, held_out, device, stops)
        rounds.append({"pairs": trainer.seen, "auc": float(np.mean([*found.values()]))})
        if np.mean([*found.values()]) > np.mean([*best.values()]):
            best, state, since = found, weights, 0
        else:
            since += 1
        return since >= cfg.patience

    Trainer(_training(cfg, model, names, device), device).run(progress, judge)
    save_weights(state, model, output / TUNED, start=cfg.weights)
    gains = [Gain(before, best, chosen_by=True)]
    if cfg.test is not None:
        videos = load_videos(cfg.test)
        tuned = OSTrack.from_pretrained(output / TUNED)
        first = success(OSTrack.from_pretrained(cfg.weights), videos, device, cfg.starts)
        gains.append(Gain(first, success(tuned, videos, device, cfg.starts), chosen_by=False))
    _report(cfg, rounds, gains)
    return gains


def success(model: OSTrack, videos: Sequence[Video], device: torch.device, starts: int) -> dict[str, float]:
    """Success AUC of each video, see `validation.track_all`."""
    return {name: scores.auc for name, scores in track_all(model, videos, device, starts).items()}


def _held_out(cfg: FinetuneConfig) -> tuple[list[Video], tuple[str, ...]]:
    """The videos to stop by, and the names of those that the training must leave out."""
    videos = load_videos(cfg.data)
    if cfg.held_out is not None:
        return load_videos(cfg.held_out), ()
    kept = videos[_HELD_OUT - 1 :: _HELD_OUT] or videos[-1:]
    if len(videos) < 2:
        raise ValueError(f"{cfg.data} has one video: give a folder of others to stop by (held_out), or add videos")
    return kept, tuple(video.name for video in kept)


def _training(cfg: FinetuneConfig, model: ModelConfig, without: tuple[str, ...], device: torch.device) -> TrainConfig:
    frozen = model.depth // 2 if cfg.freeze_blocks is None else cfg.freeze_blocks
    return TrainConfig(
        model=model,
        data={"videos": {"path": str(Path(cfg.data).absolute()), "without": list(without)}},
        output=cfg.output,
        weights=cfg.weights,
        crops=CropConfig(model.template_size, model.search_size, model.template_factor, model.search_factor),
        augment=AugmentConfig.robust(),
        loss=LossConfig(box_cells="target"),
        optim=OptimConfig(
            lr=cfg.lr, backbone_lr=1.0 if cfg.lora else 0.1, grad_clip=1.0, warmup_epochs=0.2, drop_epoch=None,
            decay_epochs=cfg.rounds / 2, ema=0.99, lora=cfg.lora, freeze_blocks=0 if cfg.lora else frozen,
        ),
        epochs=float(cfg.rounds),
        pairs_per_epoch=cfg.pairs,
        batch_size=cfg.batch_size,
        ce_start_epoch=0.0,
        ce_warmup_epochs=0.0,
        precision="bfloat16" if device.type == "cuda" or fast_bfloat16() else "float32",
        workers=cfg.workers,
        seed=cfg.seed,
    )  # fmt: skip


def _report(cfg: FinetuneConfig, rounds: list[dict[str, float]], gains: list[Gain]) -> None:
    document: dict[str, Any] = {"settings": asdict(cfg), "rounds": rounds}
    document["gains"] = [asdict(gain) | {"mean": gain.mean, "interval": gain.interval()} for gain in gains]
    write_text(Path(cfg.output) / REPORT, json.dumps(document, indent=1) + "\n")

"""Fine-tuning on a folder of videos, and what it gained on videos that were kept out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.videos import Video, load_videos
from ..files import write_text
from ..model import OSTrack
from ..model.checkpoint import load_pretrained, save_weights
from ..ops.layers import fast_bfloat16
from ..settings import check_folder_name, check_ranges
from .augment import AugmentConfig
from .checkpoint import CHECKPOINT
from .config import OptimConfig, TrainConfig, ValidationConfig
from .crops import CropConfig
from .distributed import ALONE
from .losses import LossConfig
from .trainer import Trainer
from .validation import Validation, track_all

TUNED = "finetuned.safetensors"
REPORT = "report.json"
_HELD_OUT = 5  # one video in five
_JUDGING_PAIRS = 512
# How far to go from the start towards what was trained. A few videos also teach what their targets look like, and the
# tracker then takes a neighbour for its target. Halfway most of the gain is there, and little of that (WiSE-FT,
# arXiv:2109.01903).
_WAY = 0.5


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning.

    Args:
        data: folder of videos with ground truth.
        output: folder of the run.
        weights: what to start from.
        held_out: folder of the videos to stop by; None keeps every fifth of `data` out of the training.
        test: folder of further videos to report on: those that stop the training flatter it.
        rounds, pairs: largest number of rounds, and pairs of each.
        starts: frames of each video reported on that tracking starts from, see `validation.first_frames`.
        patience: number of rounds without a gain after which the run ends.
        lr: learning rate of the head.
        lora: rank of LoRA's matrices, which are trained beside the backbone's weights.
        freeze_blocks: train the backbone's weights instead, but for this number of first blocks.
    """

    data: str
    output: str
    weights: str = "small"
    held_out: str | None = None
    test: str | None = None
    rounds: int = 4
    pairs: int = 800
    batch_size: int = 16
    starts: int = 10
    patience: int = 2
    lr: float = 5e-5
    lora: int = 8
    freeze_blocks: int | None = None
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_folder_name("output", self.output)
        check_ranges(
            self,
            rounds=(1, 1e6),
            pairs=(self.batch_size, 1e12),
            patience=(1, 1e6),
            starts=(1, 1e4),
            lr=(0, 1),
            lora=(1, 1024),
        )


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
    """Train, keep the round that finds held-out targets best, and compare it with the start.

    Rounds are told apart by the IoU of pairs of the held-out videos: that is quick, and hardly depends on chance, where
    one lost target makes all the difference to tracking a few videos. `OUTPUT/finetuned.safetensors` holds the best
    round's weights, those of the start where no round gained anything; `OUTPUT/report.json` says before and after.

    Returns:
        the gain on the held-out videos, and on those of `test` where there are any.

    Raises:
        FileNotFoundError, ValueError: the data or the weights cannot be used, or there are too few videos.
    """
    output = Path(cfg.output)
    if (output / CHECKPOINT).exists():
        raise ValueError(f"{output} holds a run already: give another output folder")
    for name, folder in (("held_out", cfg.held_out), ("test", cfg.test)):
        if folder is not None and os.path.realpath(folder) == os.path.realpath(cfg.data):
            raise ValueError(f"{name} is {cfg.data} itself, which is trained on: give a folder of other videos")
    held_out, without, judging = _held_out(cfg)
    reported = {True: held_out} | ({} if cfg.test is None else {False: load_videos(cfg.test)})
    train = _training(cfg, without, device)
    trainer = Trainer(train, device)
    validation = Validation(replace(train, validation=judging), device, ALONE)

    def iou(model: OSTrack) -> float:
        numbers = validation(model, lambda: False)
        assert numbers is not None
        return numbers["iou"]

    start = kept = trainer.exported()
    rounds, since = [{"pairs": 0, "iou": iou(start)}], 0
    best = rounds[0]["iou"]

    def judge(trainer: Trainer) -> bool:
        nonlocal kept, best, since
        model = between(start, trainer.exported(), _WAY)
        found = iou(model)
        rounds.append({"pairs": trainer.seen, "iou": found})
        since += 1
        if found > best:
            kept, best, since = model, found, 0
        return since >= cfg.patience

    trainer.run(progress, judge)
    save_weights(kept.state_dict(), train.model, output / TUNED, start=cfg.weights)
    gains = []
    for chosen_by, videos in reported.items():
        before, after = (success(model, videos, device, cfg.starts) for model in (start, kept))
        gains.append(Gain(before, after, chosen_by))
    _report(cfg, rounds, gains)
    return gains


def between(start: OSTrack, end: OSTrack, way: float) -> OSTrack:
    """The model this share of the way from one to another; `end` becomes it."""
    state, towards = start.state_dict(), end.state_dict()
    end.load_state_dict({
        name: torch.lerp(value, towards[name], way) if value.is_floating_point() else towards[name]
        for name, value in state.items()
    })  # fmt: skip
    return end


def success(model: OSTrack, videos: Sequence[Video], device: torch.device, starts: int) -> dict[str, float]:
    """Success AUC of each video, see `validation.track_all`."""
    return {name: scores.auc for name, scores in track_all(model, videos, device, starts).items()}


def _held_out(cfg: FinetuneConfig) -> tuple[list[Video], tuple[str, ...], ValidationConfig]:
    """The videos to stop by, the names of those that the training must leave out, and the pairs that judge a round."""
    folder = cfg.held_out or cfg.data
    videos = kept = load_videos(folder)
    if cfg.held_out is None:
        if len(videos) < 2:
            raise ValueError(f"{cfg.data} has one video: give a folder of others to stop by (held_out), or add videos")
        kept = videos[_HELD_OUT // 2 :: _HELD_OUT] or videos[-1:]
    names = tuple(video.name for video in kept)
    trained = tuple(video.name for video in videos if video.name not in names)
    judging = ValidationConfig(str(Path(folder).absolute()), pairs=_JUDGING_PAIRS, starts=0, without=trained)
    return kept, names if cfg.held_out is None else (), judging


def _training(cfg: FinetuneConfig, without: tuple[str, ...], device: torch.device) -> TrainConfig:
    """The recipe; docs/fine-tune.md says what it gains."""
    # A tracker that is told the box of its template follows boxes better, at no cost.
    model = replace(load_pretrained(cfg.weights)[0], template_box=True)
    lora = cfg.lora if cfg.freeze_blocks is None else 0
    return TrainConfig(
        model=model,
        data={"videos": {"path": str(Path(cfg.data).absolute()), "without": list(without)}},
        output=cfg.output,
        weights=cfg.weights,
        crops=CropConfig(model.template_size, model.search_size, model.template_factor, model.search_factor),
        augment=AugmentConfig.robust(),
        loss=LossConfig(box_cells="target", attention=0.5),
        optim=OptimConfig(
            lr=cfg.lr, backbone_lr=6.0 if lora else 0.4, grad_clip=1.0, warmup_epochs=0.5, drop_epoch=None,
            decay_epochs=cfg.rounds / 2, ema=0.99, lora=lora, freeze_blocks=cfg.freeze_blocks or 0,
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

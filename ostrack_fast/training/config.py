"""A training run as one yaml file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig, get_config
from ..settings import bind, check_ranges, read_yaml
from .augment import AUGMENTS, AugmentConfig
from .crops import CropConfig
from .losses import LossConfig
from .sources import bind_sources


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; the defaults are the published recipe. Epochs may be fractions.

    Args:
        lr: learning rate of the head; the backbone's is `backbone_lr` times it.
        warmup_epochs, drop_epoch, decay_epochs: see `schedule.rate_factor`.
        grad_clip: bound of the gradient's norm, 0 for none.
        ema: decay of the running average of the weights, which is what gets exported; 0 for none.
        freeze_blocks: so many first blocks stay as initialised, with the patch embedding and position tables.
    """

    lr: float = 4e-4
    backbone_lr: float = 0.1
    weight_decay: float = 1e-4
    grad_clip: float = 0.1
    warmup_epochs: float = 0.0
    drop_epoch: float | None = 240.0
    decay_epochs: float = 0.0
    ema: float = 0.0
    freeze_blocks: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, lr=(0, 10), backbone_lr=(0, 100), weight_decay=(0, 10), grad_clip=(0, 1e6), warmup_epochs=(0, 1e6),
            decay_epochs=(0, 1e6), ema=(0, 0.999999), freeze_blocks=(0, 1000),
        )  # fmt: skip
        if self.drop_epoch is not None:
            check_ranges(self, drop_epoch=(0, 1e6))


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on.

    Args:
        model: the network, a preset's name and fields to change.
        data: sources by kind and their shares, see `sources`.
        data_root: folder that relative paths in `data` count from.
        output: folder of checkpoints, logs and exported weights.
        backbone: pretrained ViT, see `pretrained.load_backbone`; None starts from random weights.
        mark_template: see `pretrained.mark_template`; 0 for none.
        score_prior: the score every cell starts with. 0.5 as published; the focal loss prefers a small one (RetinaNet),
            which spares the head its first thousand steps.
        weights: start from these OSTrack weights instead (fine-tuning); positions are resized to the crops.
        epochs, pairs_per_epoch, batch_size: length of the run; `batch_size` is that of one process.
        ce_start_epoch, ce_warmup_epochs: see `schedule.keep_rate`.
        precision: "bfloat16" (autocast) or "float32".
        workers: processes that make pairs.
        checkpoint_minutes: time between checkpoints.
        seed: of the samples, the initial head and stochastic depth.
    """

    model: ModelConfig
    data: dict[str, Any]
    output: str
    data_root: str = "."
    backbone: str | None = None
    mark_template: float = 0.0
    score_prior: float = 0.5
    weights: str | None = None
    crops: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: float = 300.0
    pairs_per_epoch: int = 60_000
    batch_size: int = 32
    ce_start_epoch: float = 20.0
    ce_warmup_epochs: float = 80.0
    precision: str = "bfloat16"
    workers: int = 2
    checkpoint_minutes: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("bfloat16", "float32"):
            raise ValueError(f"precision={self.precision!r} must be bfloat16 or float32")
        if self.backbone and self.weights:
            raise ValueError("give backbone (a pretrained ViT) or weights (a trained OSTrack), not both")
        if self.optim.freeze_blocks and not (self.backbone or self.weights):
            raise ValueError("freeze_blocks keeps random blocks unless backbone or weights are given")
        if min(self.epochs, self.pairs_per_epoch, self.batch_size) <= 0:
            raise ValueError("epochs, pairs_per_epoch and batch_size must be positive")
        check_ranges(
            self, mark_template=(0, 1000), score_prior=(1e-6, 1 - 1e-6), epochs=(0, 1e6), pairs_per_epoch=(1, 1e12),
            batch_size=(1, 1e6), ce_start_epoch=(0, 1e6), ce_warmup_epochs=(0, 1e6), workers=(0, 1024),
            checkpoint_minutes=(0, 1e6), seed=(0, 2**63 - 1),
        )  # fmt: skip
        if self.optim.freeze_blocks > self.model.depth:
            raise ValueError(f"freeze_blocks={self.optim.freeze_blocks}, but the model has {self.model.depth} blocks")
        if self.total_pairs < self.batch_size:
            raise ValueError(
                f"a run of {self.total_pairs} pairs has no batch of {self.batch_size}: raise epochs or "
                "pairs_per_epoch, or lower batch_size"
            )

    @property
    def total_pairs(self) -> int:
        """Pairs of the whole run, whole batches or not."""
        return round(self.epochs * self.pairs_per_epoch)

    @property
    def trained_pairs(self) -> int:
        """Pairs of the whole run's batches: the last ones that fill no batch are left out."""
        return self.total_pairs // self.batch_size * self.batch_size


def read_train_config(path: str | Path) -> TrainConfig:
    """Read a yaml file whose keys are the fields of `TrainConfig`, sections as mappings.

    `model` is a preset's name or a mapping with `preset` and fields to change, `augment` a name of `augment.AUGMENTS`
    or a mapping. Crop sizes and factors follow the model. Relative paths count from the yaml file's folder; those of
    `data` from `data_root`.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: an unknown or missing key, or a value that cannot be; the message names file, key and remedy.
    """
    path = Path(path)
    document = read_yaml(path)
    for key in ("model", "data", "output"):
        if key not in document:
            raise ValueError(f"{path} lacks the setting {key!r}")
    model = _read_model(document["model"], f"{path}: model")
    crops = CropConfig(model.template_size, model.search_size, model.template_factor, model.search_factor)
    changes = {"model": model, "crops": bind(CropConfig, document.get("crops", {}), f"{path}: crops", crops)}
    augment = document.get("augment")
    if isinstance(augment, str):
        if augment not in AUGMENTS:
            raise ValueError(
                f"{path}: augment={augment!r} is not known: choose {', '.join(AUGMENTS)}, or give settings"
            )
        changes["augment"] = AUGMENTS[augment]
    cfg = bind(TrainConfig, document | changes, str(path))
    bind_sources(cfg.data, f"{path}: data")
    given: dict[str, Any] = {name: getattr(cfg, name) for name in ("output", "data_root", "backbone", "weights")}
    folder = path.parent
    paths: dict[str, Any] = {
        k: str(folder / v) for k, v in given.items() if v is not None and not v.startswith("timm:")
    }
    return replace(cfg, **paths)


def _read_model(value: object, where: str) -> ModelConfig:
    changes = dict(value) if isinstance(value, dict) else {"preset": value}
    preset = changes.pop("preset", "ostrack_256_ce")
    if not isinstance(preset, str):
        raise ValueError(f"{where}: expected the name of a preset, or settings with the key preset, got {preset!r:.60}")
    try:
        base = get_config(preset)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return bind(ModelConfig, changes, where, base)

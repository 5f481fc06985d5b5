"""A training run as one yaml file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..config import ModelConfig, get_config
from .augment import AugmentConfig
from .crops import CropConfig
from .losses import LossConfig


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


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on.

    Args:
        model: the network, a preset's name and fields to change.
        data: sources by kind and their shares, see `mix.build_dataset`.
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

    @property
    def total_pairs(self) -> int:
        """Pairs of the whole run."""
        return round(self.epochs * self.pairs_per_epoch)


def read_train_config(path: str | Path) -> TrainConfig:
    """Read a yaml file whose keys are the fields of `TrainConfig`, sections as mappings.

    `model` is a preset's name or a mapping with `preset` and fields to change. Crop sizes and factors follow the
    model. Relative paths count from the yaml file's folder; those of `data` from `data_root`.

    Raises:
        ValueError: for an unknown or missing key, naming it.
    """
    path = Path(path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a mapping of settings")
    for key in ("model", "data", "output"):
        if key not in document:
            raise ValueError(f"{path} lacks the setting {key!r}")
    model = document["model"]
    if isinstance(model, dict):
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items() if k != "preset"}
        document["model"] = _make(
            ModelConfig, changes, f"{path}: model", get_config(model.get("preset", "ostrack_256_ce"))
        )
    else:
        document["model"] = get_config(model)
    cfg = document["model"]
    geometry = {
        name: getattr(cfg, name) for name in ("template_size", "search_size", "template_factor", "search_factor")
    }
    document["crops"] = geometry | (document.get("crops") or {})
    augment = document.get("augment")
    if augment == "robust":
        document["augment"] = AugmentConfig.robust()
    folder = path.parent
    for key in ("output", "backbone", "weights"):
        if document.get(key) and not str(document[key]).startswith("timm:"):
            document[key] = str(folder / document[key])
    document["data_root"] = str(folder / document.get("data_root", "."))
    return _make(TrainConfig, document, str(path))


def _make(kind: type, values: dict[str, Any], where: str, base: Any = None) -> Any:
    hints = get_type_hints(kind)
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(
            f"{where}: unknown settings {sorted(unknown)}; known: {', '.join(f.name for f in fields(kind))}"
        )
    made = {}
    for name, value in values.items():
        if is_dataclass(hints[name]) and isinstance(value, dict):
            value = _make(hints[name], value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        made[name] = value
    return replace(base, **made) if base is not None else kind(**made)

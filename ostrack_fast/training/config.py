"""A training run as one yaml file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch

from ..baselines import NETWORKS
from ..config import ModelConfig, get_config
from ..model.hub import shipped_weights
from ..settings import bind, check_folder_name, check_ranges, read_yaml
from .augment import AUGMENTS, AugmentConfig
from .crops import CropConfig
from .losses import LossConfig
from .pretrained import PRETRAINED
from .sources import bind_sources

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; the defaults are the published recipe. Epochs may be fractions.

    Args:
        lr: learning rate of the head; the backbone's is `backbone_lr` times it.
        warmup_epochs, drop_epoch, decay_epochs: see `schedule.rate_factor`.
        grad_clip: bound of the gradient's norm, 0 for none.
        ema: decay of the running average of the weights, which is what gets exported; 0 for none.
        lr_batch: the number of pairs in a step that `lr` is for; the rate then grows in proportion to the number that a
            step of all processes really has. None leaves it.
        lora: rank of the matrices that are trained in place of the backbone, see `lora`; 0 for none.
        freeze_blocks: number of first blocks that stay as initialised, with the patch embedding and position tables.
    """

    lr: float = 4e-4
    backbone_lr: float = 0.1
    weight_decay: float = 1e-4
    grad_clip: float = 0.1
    warmup_epochs: float = 0.0
    drop_epoch: float | None = 240.0
    decay_epochs: float = 0.0
    ema: float = 0.0
    lr_batch: int | None = None
    lora: int = 0
    freeze_blocks: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, lr=(0, 10), backbone_lr=(0, 100), weight_decay=(0, 10), grad_clip=(0, 1e6), warmup_epochs=(0, 1e6),
            decay_epochs=(0, 1e6), ema=(0, 0.999999), freeze_blocks=(0, 1000), lora=(0, 1024),
        )  # fmt: skip
        if self.drop_epoch is not None:
            check_ranges(self, drop_epoch=(0, 1e6))
        if self.lr_batch is not None:
            check_ranges(self, lr_batch=(1, 1e9))


@dataclass(frozen=True)
class ValidationConfig:
    """What a run is judged by while it goes on.

    Args:
        videos: folder of videos kept out of the training; counts from `data_root`.
        every: epochs between two validations.
        pairs: least number of pairs of these videos that give the validation's IoU, rounded up to whole batches.
        starts: frames of each video that tracking starts from, see `validation.first_frames`; 0 tracks nothing.
        without: names or patterns of the videos of that folder which do not judge: those that the training has.
    """

    videos: str
    every: float = 1.0
    pairs: int = 512
    starts: int = 1
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, every=(1e-6, 1e6), pairs=(1, 1e9), starts=(0, 1e4))


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on.

    Args:
        model: the network, a preset's name and fields to change.
        network: "ostrack", or one that the paper compares it with, see `baselines.NETWORKS`: its ViT is `model`'s.
        data: sources by kind and their shares, see `sources`.
        data_root: folder that relative paths in `data` count from.
        output: folder of checkpoints, logs and exported weights.
        backbone: pretrained ViT: `mae`, `augreg` or `deit` (Table 4 of the paper), or what `pretrained.load_backbone`
            takes; None starts from random weights.
        mark_template: see `pretrained.mark_template`; 0 for none.
        score_prior: the score every cell starts with. 0.5 as published; the focal loss prefers a small one (RetinaNet),
            which spares the head its first thousand steps.
        weights: start from these OSTrack weights instead (fine-tuning); positions are resized to the crops.
        epochs, pairs_per_epoch, batch_size: length of the run; `batch_size` is that of one process.
        accumulate: micro-batches of `batch_size` a step; their gradients are averaged before the optimizer's update.
        batch_norm: "all" takes its statistics over the micro-batches of all processes, "local" over that of each alone,
            as the published code does.
        activation_checkpointing: what the backward pass computes again instead of storing it: "mlp" for what is inside
            the MLPs, half of a block's activations for a sixth more work; "block" for everything inside the blocks.
        cuda_graph: capture the step as a CUDA graph, so that the GPU does not wait for the host. Captured anew whenever
            the candidates' keep rate changes a count of tokens. None does it where it can be done: for an OSTrack, by
            one process on a GPU, without float16's loss scale and the random state of "block" computed again.
        ce_start_epoch, ce_warmup_epochs: see `schedule.keep_rate`.
        precision: "float32", or autocast in "bfloat16" or in "float16", the latter with a scaled loss.
        workers: processes that make pairs.
        bad_images: how many different images that cannot be read a process passes over before the run fails.
        checkpoint_minutes: time between checkpoints.
        validation: videos kept out, and how often they judge the run; None for none.
        pictures: number of pairs of the last batch that are drawn after each epoch; 0 for none.
        log_to: where numbers and pictures go besides the run's folder, see `writers`.
        seed: of the samples, the initial head and stochastic depth.
    """

    model: ModelConfig
    data: dict[str, Any]
    output: str
    network: str = "ostrack"
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
    accumulate: int = 1
    batch_norm: Literal["all", "local"] = "all"
    activation_checkpointing: Literal["none", "mlp", "block"] = "none"
    cuda_graph: bool | None = None
    ce_start_epoch: float = 20.0
    ce_warmup_epochs: float = 80.0
    precision: str = "bfloat16"
    workers: int = 2
    bad_images: int = 100
    checkpoint_minutes: float = 10.0
    validation: ValidationConfig | None = None
    pictures: int = 4
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_folder_name("output", self.output)
        check_folder_name("data_root", self.data_root)
        for name in ("weights", "backbone"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is an empty text: leave it out to start from random weights")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.cuda_graph and (self.precision == "float16" or self.activation_checkpointing == "block"):
            raise ValueError(
                "cuda_graph captures neither float16's loss scale nor the random state of block's "
                "activation_checkpointing: choose bfloat16 and mlp"
            )
        if self.network not in NETWORKS:
            raise ValueError(f"network={self.network!r} must be one of {', '.join(NETWORKS)}")
        if self.weights and self.network != "ostrack":
            raise ValueError(f"weights are those of an OSTrack: the network {self.network} starts from a backbone")
        if self.backbone and self.weights:
            raise ValueError("give backbone (a pretrained ViT) or weights (a trained OSTrack), not both")
        if self.optim.lora and (self.optim.freeze_blocks or not self.weights):
            raise ValueError("lora adapts trained weights and freezes all blocks: give weights, no freeze_blocks")
        if self.optim.freeze_blocks and not (self.backbone or self.weights):
            raise ValueError("freeze_blocks keeps random blocks unless backbone or weights are given")
        if min(self.epochs, self.pairs_per_epoch, self.batch_size) <= 0:
            raise ValueError("epochs, pairs_per_epoch and batch_size must be positive")
        check_ranges(
            self, mark_template=(0, 1000), score_prior=(1e-6, 1 - 1e-6), epochs=(0, 1e6), pairs_per_epoch=(1, 1e12),
            batch_size=(1, 1e6), accumulate=(1, 1e4), ce_start_epoch=(0, 1e6), ce_warmup_epochs=(0, 1e6),
            workers=(0, 1024), bad_images=(0, 1e9), checkpoint_minutes=(0, 1e6), pictures=(0, 64),
            seed=(0, 2**63 - 1),
        )  # fmt: skip
        if self.optim.freeze_blocks > self.model.depth:
            raise ValueError(f"freeze_blocks={self.optim.freeze_blocks}, but the model has {self.model.depth} blocks")
        self.trained_pairs(self.batch_size * self.accumulate)

    @property
    def captures(self) -> bool:
        """Whether one process on a GPU runs its steps as a CUDA graph."""
        if self.cuda_graph is not None:
            return self.cuda_graph
        return self.network == "ostrack" and self.precision != "float16" and self.activation_checkpointing != "block"

    @property
    def total_pairs(self) -> int:
        """Pairs of the whole run, whole batches or not."""
        return round(self.epochs * self.pairs_per_epoch)

    def trained_pairs(self, batch: int) -> int:
        """Pairs of the whole run's batches of `batch` pairs: the last ones that fill no batch are left out.

        Raises:
            ValueError: there is no such batch.
        """
        if self.total_pairs < batch:
            raise ValueError(
                f"a run of {self.total_pairs} pairs has no batch of {batch}: raise epochs or "
                "pairs_per_epoch, or lower batch_size"
            )
        return self.total_pairs // batch * batch


def read_train_config(path: str | Path) -> TrainConfig:
    """Read a yaml file whose keys are the fields of `TrainConfig`, sections as mappings; or one of `recipes` by name.

    `model` is a preset's name or a mapping with `preset` and fields to change, `augment` a name of `augment.AUGMENTS`
    or a mapping. Crop sizes and factors follow the model. Relative paths count from the yaml file's folder, and a
    recipe's from the working folder; those of `data` from `data_root`.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: an unknown or missing key, or a value that cannot be; the message names file, key and remedy.
    """
    path, folder = Path(path), Path(path).parent
    if not path.exists() and str(path) in recipes():
        path, folder = recipes()[str(path)], Path.cwd()
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
    return replace(cfg, **_located(cfg, folder))


def settings_of(cfg: TrainConfig) -> dict[str, Any]:
    """All settings as plain values: written as yaml to any folder, `read_train_config` makes the same run of them."""
    located = _located(cfg, Path.cwd())
    return json.loads(json.dumps(asdict(replace(cfg, **located))))


def _located(cfg: TrainConfig, folder: Path) -> dict[str, Any]:
    """The settings that are paths, relative ones below a folder; names of weights stay names."""
    paths: dict[str, Any] = {name: str(folder / getattr(cfg, name)) for name in ("output", "data_root")}
    if cfg.backbone and not cfg.backbone.startswith("timm:") and cfg.backbone not in PRETRAINED:
        paths["backbone"] = str(folder / cfg.backbone)
    # Weights that are not a file may be a name that ships or that of a model on the Hub.
    if cfg.weights and cfg.weights not in shipped_weights() and (folder / cfg.weights).exists():
        paths["weights"] = str(folder / cfg.weights)
    return paths


def recipes() -> dict[str, Path]:
    """The yaml files that ship with the package, by name."""
    folder = Path(str(files(__package__))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


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

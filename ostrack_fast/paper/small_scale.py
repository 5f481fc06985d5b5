"""Networks trained and measured at a scale that a user chooses: what Tables 4 and 5 and the ablations compare."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from ..baselines import NETWORKS
from ..data.videos import Video, load_videos
from ..devices import resolve_device
from ..evaluation import evaluate_video
from ..files import read_json, write_text
from ..model import OSTrack
from ..settings import bind
from ..tracker import Tracker
from ..training.config import TrainConfig, ValidationConfig, read_train_config
from ..training.runs import read_folder
from ..training.trainer import WEIGHTS, Trainer
from .report import Tell

_SECONDS = "seconds.json"


@dataclass(frozen=True)
class Scale:
    """How much is trained, on what, and where it goes.

    Args:
        output: folder of the runs, one folder each; runs that lie there are continued, and finished ones are kept.
        recipe: training settings that all runs share, a yaml file or a recipe's name.
        pairs: training pairs of each network.
        data_root: folder of the data, instead of the recipe's.
        backbone: pretrained ViT that networks start from, instead of the recipe's; see `pretrained.load_backbone`.
        validation: folder of videos kept out of training, whose pairs give the curves; None for no curves.
        device: auto, cpu, cuda or cuda:N.
    """

    output: Path
    recipe: str = "tiny"
    pairs: int = 5000
    data_root: Path | None = None
    backbone: str | None = None
    validation: Path | None = None
    device: str = "auto"

    def training(self, name: str, network: str, backbone: str | None) -> TrainConfig:
        """The settings of one run. Raises as `read_train_config`."""
        cfg = read_train_config(self.recipe)
        folder = self.validation
        held_out = (
            None
            if folder is None
            else ValidationConfig(str(folder.resolve()), 0.25, pairs=max(32, min(512, self.pairs // 20)), starts=0)
        )
        return replace(
            cfg, network=network, backbone=backbone, output=str(self.output / name), pairs_per_epoch=self.pairs,
            epochs=1.0, validation=held_out, data_root=str(self.data_root or cfg.data_root),
            mark_template=cfg.mark_template if backbone else 0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Args:
        weights: its file.
        pairs: it was trained on.
        seconds: the training took, all parts of it.
        curve: (pairs, mean IoU on the validation's pairs).
    """

    name: str
    network: str
    weights: Path
    pairs: int
    seconds: float
    curve: list[tuple[float, float]]

    def load(self) -> OSTrack:
        """The network in evaluation mode."""
        return NETWORKS[self.network].from_pretrained(self.weights)


def train_network(scale: Scale, name: str, network: str, backbone: str | None, tell: Tell) -> Trained:
    """Train a network, or continue the run of this name; one that is finished is read.

    Args:
        network: a key of `NETWORKS`. backbone: a pretrained ViT; None starts from random weights.

    Raises:
        KeyboardInterrupt: the run was stopped; the same call continues it. Others as `Trainer.run`.
    """
    cfg = scale.training(name, network, backbone)
    folder = Path(cfg.output)
    tell(f"training {name}, {scale.pairs} pairs")
    begin, spent = perf_counter(), _seconds(folder)
    trainer = Trainer(cfg, resolve_device(scale.device))
    trainer.resume()
    if not trainer.finished:
        trainer.run(progress=False)
        spent += perf_counter() - begin
        write_text(folder / _SECONDS, json.dumps(spent))
    if not trainer.finished:
        raise KeyboardInterrupt
    pairs, iou = read_folder(folder).curve("validation_iou")
    return Trained(name, network, folder / WEIGHTS, trainer.seen, spent, list(zip(pairs, iou, strict=True)))


def _seconds(folder: Path) -> float:
    path = folder / _SECONDS
    return float(read_json(path)) if path.exists() else 0.0


@dataclass(frozen=True)
class Videos:
    """Where networks are tracked.

    Args:
        folder: of videos with ground truth.
        frames: number of first frames of each; None for all.
    """

    folder: Path
    frames: int | None = None


@dataclass(frozen=True)
class Accuracy:
    """One pass over a folder of videos: mean success AUC and precision at 20 pixels, percent."""

    auc: float
    precision: float
    videos: int
    frames: int


def read_videos(where: Videos) -> list[Video]:
    """The videos, each from its beginning; coordinates of `OTB_*` and `VOT_*` count from 1.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`.
    """
    folder = where.folder
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    patterns = [f"{kind}*" for kind in ("OTB_", "VOT_") if any(name.startswith(kind) for name in names)]
    cut = slice(where.frames)
    return [replace(each, frames=each.frames[cut], boxes=each.boxes[cut]) for each in load_videos(folder, patterns)]


def track_videos(model: OSTrack, where: Videos, device: str, store: Path, tell: Tell, title: str) -> Accuracy:
    """Track all videos in float32 and score them.

    Args:
        store: file of the result, read where it exists: a command that was stopped goes on from there.
    """
    if store.exists():
        return bind(Accuracy, read_json(store), str(store))
    tracker = Tracker(model, device, "float32")
    videos, results = read_videos(where), []
    for number, video in enumerate(videos, 1):
        tell(f"tracking with {title}, video {number} of {len(videos)}")
        results.append(evaluate_video(video, tracker))
    found = Accuracy(
        auc=100 * float(np.mean([each.scores.auc for each in results])),
        precision=100 * float(np.mean([each.scores.precision_20 for each in results])),
        videos=len(results),
        frames=sum(len(each.boxes) for each in results),
    )
    store.parent.mkdir(parents=True, exist_ok=True)
    write_text(store, json.dumps(asdict(found), indent=1) + "\n")
    return found


def judged(trained: Trained, where: Videos, device: str, tell: Tell) -> Accuracy:
    """The accuracy of a trained network, stored in its run's folder."""
    limit = "all" if where.frames is None else where.frames
    store = trained.weights.parent / f"tracked_{where.folder.resolve().name}_{limit}_{trained.pairs}.json"
    return track_videos(trained.load(), where, device, store, tell, trained.name)

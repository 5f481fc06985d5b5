"""How well a model does on videos that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch

from ..data.truth import present
from ..data.videos import Video, load_videos
from ..evaluation import Scores, evaluate_video
from ..evaluation.runner import Stopped
from ..model import OSTrack, template_mask
from ..tracker import Tracker
from .augment import AugmentConfig, Normalizer
from .collections import UNMOVED
from .config import TrainConfig
from .dataset import DataConfig, PairDataset, make_loader
from .distributed import Processes
from .losses import ostrack_loss
from .videos import VideoFolder, leave_out

_PLAIN = AugmentConfig(gray=0, flip=0, brightness=0)


def first_frames(video: Video, count: int) -> list[int]:
    """Up to `count` frames to start a tracker at: the first one, and others spread over the first half of the video.

    When a target is nearly lost, the last bit of a sum may decide whether it is. Several starts average that out.
    """
    shown = np.flatnonzero(present(video.boxes)[: max(1, len(video) // 2)])
    return np.unique(shown[np.linspace(0, len(shown) - 1, count).round().astype(int)]).tolist()


def track_all(
    model: OSTrack,
    videos: Sequence[Video],
    device: torch.device,
    starts: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Scores]:
    """Scores of each video in float32: the mean over its `first_frames`, from each of which it is tracked to its end.

    Raises:
        Stopped: `stop`, which is asked before every frame, said so.
    """
    tracker = Tracker(model, device, "float32")

    def scores(video: Video) -> Iterator[Scores]:
        for first in first_frames(video, starts):
            part = replace(video, frames=video.frames[first:], boxes=video.boxes[first:])
            yield evaluate_video(part, tracker, stop=stop).scores

    return {video.name: Scores.mean([*scores(video)]) for video in videos}


class Validation:
    """The videos that a run is judged by, shared out among its processes.

    Raises:
        FileNotFoundError, ValueError: they are missing or cannot be used.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device, processes: Processes) -> None:
        assert cfg.validation is not None
        self.cfg, self.device, self.processes = cfg, device, processes
        folder = Path(cfg.data_root) / cfg.validation.videos
        batch = cfg.batch_size * processes.count
        length = ceil(cfg.validation.pairs / batch) * batch
        without = cfg.validation.without
        source = VideoFolder(folder, camera=UNMOVED, memory_limit=0, without=without)
        self._pairs = PairDataset([(source, 1.0)], DataConfig(cfg.crops, _PLAIN, cfg.seed, length))
        videos = leave_out(load_videos(folder), without) if cfg.validation.starts else []
        self._videos = videos[processes.rank :: processes.count]
        self._normalize = Normalizer(device)

    def __call__(self, model: OSTrack, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Mean `loss` and `iou` of the pairs, with the final keep rate, and mean `ao` and `auc` of tracking.

        Every process must call it, with the same model in evaluation mode; all get the same numbers. None where `stop`
        said so before the end, in any process.
        """
        assert self.cfg.validation is not None
        try:
            found = self._judge_pairs(model, stop), self._track(model, stop)
        except Stopped:
            found = None
        everyones = self.processes.gathered(found)
        if any(one is None for one in everyones):
            return None
        sums = np.sum([pairs for pairs, _ in everyones], axis=0)  # type: ignore[misc]
        numbers = dict(zip(("loss", "iou"), (sums[:2] / sums[2]).tolist(), strict=True))
        scores = [score for _, part in everyones for score in part]  # type: ignore[misc]
        if scores:
            mean = Scores.mean(scores)
            numbers |= {"ao": mean.average_overlap, "auc": mean.auc}
        return numbers

    @torch.no_grad()
    def _judge_pairs(self, model: OSTrack, stop: Callable[[], bool]) -> tuple[float, float, int]:
        """Sums of the batches' loss and IoU, and the number of batches."""
        cfg, ranks = self.cfg, self.processes
        mask = template_mask(cfg.model, device=self.device) if cfg.model.ce_layers else None
        loss, iou, count = 0.0, 0.0, 0
        loader = make_loader(self._pairs, cfg.batch_size, cfg.workers, 0, ranks.rank, ranks.count)
        with closing(iter(loader)) as batches:
            for batch in batches:
                if stop():
                    raise Stopped("the validation was stopped")
                template, search = (self._normalize(batch[name].to(self.device)) for name in ("template", "search"))
                boxes = batch["template_box"].to(self.device) if cfg.model.template_box else None
                out = model(template, search, mask, template_box=boxes)
                _, terms = ostrack_loss(out, batch["search_box"].to(self.device), cfg.loss)
                loss, iou, count = loss + terms["loss"].item(), iou + terms["iou"].item(), count + 1
        return loss, iou, count

    def _track(self, model: OSTrack, stop: Callable[[], bool]) -> list[Scores]:
        assert self.cfg.validation is not None
        return [*track_all(model, self._videos, self.device, self.cfg.validation.starts, stop).values()]

"""Where a run's numbers and pictures go: lines of JSON and JPEG files in its folder, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.images import Image
from ..files import write_atomically
from .log import LOG

PICTURES = "pictures"
TENSORBOARD = "tensorboard"


class Writer(ABC):
    """Receives the numbers and pictures of a run, each with the number of pairs trained so far."""

    @abstractmethod
    def scalars(self, kind: str, pairs: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a kind, "train" or "validation", by name."""

    @abstractmethod
    def picture(self, pairs: int, image: Image) -> None:
        """An (h,w,3) uint8 RGB picture."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class RunFolder(Writer):
    """`log.jsonl`, a line for each call, and `pictures/PAIRS.jpg`. Names of validation numbers begin with its kind."""

    def __init__(self, output: Path, resumed: int, facts: Mapping[str, Any]) -> None:
        self._log, self._pictures = output / LOG, output / PICTURES
        self._log.touch()

    def scalars(self, kind: str, pairs: int, numbers: Mapping[str, float]) -> None:
        before = "" if kind == "train" else f"{kind}_"
        line = {"pairs": pairs} | {before + name: round(value, 5) for name, value in numbers.items()}
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def picture(self, pairs: int, image: Image) -> None:
        done, data = cv2.imencode(".jpg", image[..., ::-1])
        if not done:
            raise RuntimeError(f"OpenCV could not encode a picture of shape {image.shape} as JPEG")
        write_atomically(self._pictures / f"{pairs:010}.jpg", lambda name: Path(name).write_bytes(data.tobytes()))

    def close(self) -> None:
        pass  # every call writes all it has


class TensorBoard(Writer):
    """Events in the folder `tensorboard` of the run; a resumed run replaces those beyond its checkpoint."""

    def __init__(self, output: Path, resumed: int, facts: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("log_to: tensorboard needs: pip install 'ostrack_fast[tensorboard]'") from None
        self._writer = SummaryWriter(str(output / TENSORBOARD), purge_step=resumed + 1)

    def scalars(self, kind: str, pairs: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", value, pairs)
        self._writer.flush()

    def picture(self, pairs: int, image: Image) -> None:
        self._writer.add_image("pairs", np.ascontiguousarray(image), pairs, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Writer):
    """A run of the project `ostrack_fast`, named after the folder; `WANDB_MODE=offline` keeps it in the folder."""

    def __init__(self, output: Path, resumed: int, facts: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("log_to: wandb needs: pip install 'ostrack_fast[wandb]'") from None
        self._image = wandb.Image
        self._run = wandb.init(
            project="ostrack_fast", name=output.name, id=facts["id"], dir=str(output), resume="allow",
            config=dict(facts["config"]), settings=wandb.Settings(console="off"),
        )  # fmt: skip
        # A resumed run sends again what it trains again: pairs are an axis of their own, as W&B's steps only grow.
        self._run.define_metric("*", step_metric="pairs")

    def scalars(self, kind: str, pairs: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"pairs": pairs} | {f"{kind}/{name}": value for name, value in numbers.items()})

    def picture(self, pairs: int, image: Image) -> None:
        self._run.log({"pairs": pairs, "pairs seen": self._image(np.ascontiguousarray(image))})

    def close(self) -> None:
        self._run.finish()


WRITERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""By the names that a training file's `log_to` may give; every run writes a `RunFolder`."""


class Writers(Writer):
    """Several as one; none at all for a process that does not write."""

    def __init__(self, parts: list[Writer]) -> None:
        self._parts = parts

    def scalars(self, kind: str, pairs: int, numbers: Mapping[str, float]) -> None:
        for part in self._parts:
            part.scalars(kind, pairs, numbers)

    def picture(self, pairs: int, image: Image) -> None:
        for part in self._parts:
            part.picture(pairs, image)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def open_writers(output: Path, names: tuple[str, ...], resumed: int, facts: Mapping[str, Any]) -> Writers:
    """The run folder's and those named, for a run that continues after `resumed` pairs.

    Args:
        facts: `id` of the run and its `config`.

    Raises:
        ImportError: a package is missing; the message names its extra.
    """
    parts: list[Writer] = [RunFolder(output, resumed, facts)]
    for name in names:
        parts.append(WRITERS[name](output, resumed, facts))
    return Writers(parts)

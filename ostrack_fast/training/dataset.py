"""Training pairs as batches: sources mixed by ratio, augmented, in an order that a resumed run continues.

Sample i is a function of (seed, i) alone, whatever the number of workers, so resuming a run needs only a counter.
Decoded images stay in memory and are shared with the workers by forking.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_all_start_methods
from typing import Any, Protocol, cast

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..data.images import BadImage
from ..interrupts import STOPPING
from .augment import Augment, AugmentConfig, flip_box
from .choice import Choice
from .crops import CropConfig, Pair

_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What the sections of all sources have in a training file.

    Args:
        share: of the pairs, over the sum of all sources' shares.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.share)


def check_share(share: float) -> None:
    """Raise ValueError unless a share is a positive number."""
    if not 0 < share < float("inf"):
        raise ValueError(f"share={share} must be positive: leave out what is not wanted")


class Source(Protocol):
    """What `PairDataset` mixes."""

    def sample(self, rng: np.random.Generator, crops: CropConfig) -> Pair | None:
        """One pair, or None when this draw has no usable target: the caller draws again."""


Sources = Mapping[str, Source]
"""Sources by their kind."""


@dataclass(frozen=True)
class DataConfig:
    """What turns sources into samples.

    Args:
        crops: sizes and jitter.
        augment: augmentation of every pair.
        seed: changes every sample.
        length: number of samples; `PairDataset` accepts indices below it.
        bad_images: how many different images that cannot be read a loader passes over before it gives up.
    """

    crops: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    length: int = 1_000_000
    bad_images: int = 100


class PairDataset(Dataset):
    """A mix of sources as a map-style dataset: sample i depends on (seed, i) alone.

    Args:
        sources: (source, ratio) pairs; a source is drawn with probability ratio over the sum of the ratios.
        config: crops, augmentation, seed and length.

    Items are dicts: `template` (Z, Z, 3) and `search` (X, X, 3) uint8 RGB tensors, `template_colours` and
    `search_colours` (5,) float32, what `augment.Normalizer` makes of their colours; `template_box` and `search_box`
    (4,) float32 xywh over the side of the crop; `present`, whether the search image shows the target; and, where
    images could not be read and others were drawn instead, `skipped`, the list of what is wrong with each.

    Raises:
        ValueError: without a source or with a ratio that is not positive.
        ValueError: when 100 draws in a row give no usable pair. OSError or ValueError of the last image that cannot be
            read, if there was one among them.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]], config: DataConfig = DataConfig()) -> None:
        if not sources:
            raise ValueError("a PairDataset needs at least one (source, ratio)")
        ratios = [ratio for _, ratio in sources]
        if not min(ratios) > 0:
            raise ValueError(f"ratios must be positive, got {ratios}: leave unwanted sources out")
        self.sources = [source for source, _ in sources]
        self.config = config
        self._choose = Choice(ratios)
        self._augment = Augment(config.augment)

    def __len__(self) -> int:
        return self.config.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng(np.random.SeedSequence((self.config.seed, index)))
        crops = self._crops(index)
        bad: list[OSError | BadImage] = []
        for _ in range(100):
            try:
                pair = self.sources[self._choose(rng)].sample(rng, crops)
            except (OSError, BadImage) as error:
                bad.append(error)
                continue
            if pair is not None:
                break
        else:
            if bad:
                raise bad[-1]
            raise ValueError("100 draws gave no usable pair: are the boxes in pixels, and the targets large enough?")
        augmented = self._augment((pair.template, pair.search), rng)
        item: dict[str, Any] = {"skipped": [str(error) for error in bad]} if bad else {}
        for name, one, box, size in (
            ("template", augmented[0], pair.template_box, crops.template_size),
            ("search", augmented[1], pair.search_box, crops.search_size),
        ):
            image = one.image if one.image.shape[0] == size else cv2.resize(one.image, (size, size))
            item[name] = torch.from_numpy(np.ascontiguousarray(image))
            item[f"{name}_box"] = torch.from_numpy(flip_box(box) if one.flipped else box)
            item[f"{name}_colours"] = torch.from_numpy(one.colours)
        item["present"] = torch.from_numpy(np.array(pair.present, dtype=bool))
        return item

    def _crops(self, index: int) -> CropConfig:
        """How pairs are drawn at this point of the run."""
        crops = self.config.crops
        growing = crops.gap_growth * len(self)
        return replace(crops, reach=0.1 + 0.9 * index / growing) if index < growing else crops


class _Share(Sampler[list[int]]):
    """The indices of one process's part of each batch, from `start` on; a last batch that is not whole is left out.

    A batch is `micro_batches` times `processes` times `size` samples in a row. All processes' first micro-batches come
    first in it, in the order of the processes: together they are what one process with a larger `size` would see.
    """

    def __init__(self, start: int, stop: int, size: int, rank: int, processes: int, micro_batches: int) -> None:
        step = size * processes
        self._firsts = range(start, stop - step * micro_batches + 1, step * micro_batches)
        self._offsets = [m * step + rank * size + i for m in range(micro_batches) for i in range(size)]

    def __iter__(self) -> Iterator[list[int]]:
        return ([first + offset for offset in self._offsets] for first in self._firsts)

    def __len__(self) -> int:
        return len(self._firsts)


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, but it is the trainer that ends the run, after a last checkpoint.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class _Guarded(Dataset):
    """The dataset as workers see it: errors of the data are items, not exceptions.

    A worker's exception would arrive with its traceback for a message.
    """

    def __init__(self, dataset: PairDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        start = time.perf_counter()
        try:
            item = self.dataset[index]
        except (OSError, ValueError) as error:
            return error
        return item | {"seconds": time.perf_counter() - start}


def _collate(items: list[Any]) -> Any:
    error = next((item for item in items if isinstance(item, Exception)), None)
    if error is not None:
        return error
    skipped = [text for item in items for text in item.pop("skipped", [])]
    seconds = sum(item.pop("seconds") for item in items)
    return default_collate(items), skipped, seconds


class PairLoader(DataLoader):
    """Batches of a `PairDataset`, made by `make_loader`. Iterating raises what the dataset raises, also in a worker.

    Images that cannot be read are told on stderr, the first few in words, and counted in `bad`, by what is wrong.
    `seconds` is what making the last batch's pairs took, one after the other.

    Close the iterator where it may not be exhausted, or the workers outlive it.

    Raises:
        OSError: a worker died. ValueError: more images cannot be read than `DataConfig.bad_images` allows.
    """

    bad: Counter[str]
    seconds: float = 0.0

    def __iter__(self) -> Generator[dict[str, torch.Tensor], None, None]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                pairs, skipped, self.seconds = batch
                self._count(skipped)
                yield pairs
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            advice = "out of memory, perhaps, or of space in /dev/shm: lower workers or batch_size"
            raise OSError(f"a data worker died: {str(error).splitlines()[0]} ({advice})") from None
        finally:
            # Left to itself a worker ends when nothing refers to the iterator any more, and the traceback of an error
            # does; at its end Python would then wait for ever for a process that ignores SIGTERM.
            if self.num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def _count(self, skipped: list[str]) -> None:
        limit = cast(_Guarded, self.dataset).dataset.config.bad_images
        for text in skipped:
            self.bad[text] += 1
            if self.bad[text] == 1 and len(self.bad) <= _TOLD:
                more = "; further ones are only counted" if len(self.bad) == _TOLD else ""
                print(f"{text}: skipped{more}", file=sys.stderr)
            if len(self.bad) > limit:
                raise ValueError(f"{len(self.bad)} images cannot be read, bad_images allows {limit}; the last: {text}")


def make_loader(
    dataset: PairDataset,
    batch_size: int,
    workers: int = 0,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
    micro_batches: int = 1,
    pin_memory: bool = False,
) -> PairLoader:
    """Batches of samples start, start + 1, ... in order; an incomplete last batch is dropped.

    To resume, pass as `start` the number of samples already seen. Workers are forked, so that they share the images
    in memory. Without workers, OpenCV's threads are left as they are.

    Args:
        batch_size: of one process and one micro-batch. The loader of process `rank` gives its part of each batch,
            `micro_batches` times `batch_size` samples.
        pin_memory: for batches that go to a GPU.

    Raises:
        ValueError: for a start outside the dataset.
    """
    if not 0 <= start <= len(dataset):
        raise ValueError(f"start={start} lies outside the {len(dataset)} samples")
    loader = PairLoader(
        _Guarded(dataset),
        batch_sampler=_Share(start, len(dataset), batch_size, rank, processes, micro_batches),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        # Its own, as starting an iteration draws a number: a resumed run must not see another random state.
        generator=torch.Generator(),
    )
    loader.bad = Counter()
    return loader

"""Training pairs from videos with ground truth, sampled as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..data.images import GIB, Image, ImageStore, list_images, natural_order, read_image
from ..data.storage import Storage, image_reader, open_packed
from ..data.stored_videos import stored_videos
from ..data.truth import present
from ..data.videos import Video, raise_problems, scan_videos
from ..settings import check_ranges
from .canvas import Cutout, make_cutout
from .crops import DEFAULT_CAMERA, CameraConfig, CropConfig, Pair, View, crop_pair
from .dataset import Sources, SourceSettings
from .distractors import draw_look, paste_beside
from .geometry import mask_outline

LEAST_FRAMES, LEAST_VISIBLE = 20, 5


@dataclass(frozen=True)
class MoreVideos:
    """A further folder of a training file's videos.

    Args:
        path, one_based: as in `VideoSettings`.
    """

    path: str
    one_based: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoSettings(SourceSettings):
    """The section `videos` of a training file.

    Args:
        path: the folder of the videos, or the zip file or LMDB database of such a folder; counts from `data_root`.
        more: further folders, which may count pixels otherwise. A video is drawn uniformly among those of all folders.
        one_based: names or patterns of the videos whose ground truth counts pixels from 1.
        without: names or patterns of videos that are left out, to try the result on.
        max_gap: largest distance of the two images, frames.
        camera: random camera of each image.
        memory_gib: decoded images to keep, GiB; the others are decoded on demand.
        distractors: probability that the search image of a video with masks has another object of the target's kind in
            it: the target as another frame shows it, beside the true one.
    """

    path: str
    more: tuple[MoreVideos, ...] = ()
    one_based: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    max_gap: int = 200
    camera: CameraConfig = DEFAULT_CAMERA
    memory_gib: float = 3.0
    distractors: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, max_gap=(1, 1e6), memory_gib=(0, 1e4), distractors=(0, 1))


class VideoFolder:
    """Folders of videos as `data.videos.load_videos` reads them, packed or not, sampled as published.

    A video is drawn uniformly among those of at least 20 images with more than 4 visible targets, then a template
    image, then a search image up to `max_gap` later; the interval grows by 5 while it has no visible target.
    With NAME/mask/* (white where the target is) the camera may rotate, and there may be distractors, see
    `distractors.paste_beside`; with a box alone they would bring their background along, by which they could be told.

    Args:
        root: the folder; max_gap, camera, one_based, without, distractors: see `VideoSettings`.
        memory_limit: bytes of decoded images to keep; the others are decoded on demand.
        more: further folders, each with the patterns of its videos that count from 1.

    Raises:
        FileNotFoundError: when a folder, images or ground truth are missing, or no video is long enough.
        ValueError: for unreadable images, bad lines, a number of lines other than that of the images, and for
            distractors where no video has masks.
    """

    Settings = VideoSettings

    def __init__(
        self,
        root: str | Path,
        max_gap: int = 200,
        camera: CameraConfig = DEFAULT_CAMERA,
        memory_limit: int = 3 * GIB,
        one_based: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
        more: Sequence[tuple[str | Path, tuple[str, ...]]] = (),
        distractors: float = 0.0,
    ) -> None:
        self.max_gap, self.camera, self.distractors = max_gap, camera, distractors
        self._videos: list[Video] = []
        self.visible: list[NDArray[np.intp]] = []
        self._masks: list[list[Path]] = []
        self._outlines: list[list[NDArray | None]] = []
        readers: dict[Path, Callable[[Path], Image]] = {}
        for folder, from_one in ((root, one_based), *more):
            self._add(Path(folder), from_one, without, readers)
        self.names = [video.name for video in self._videos]
        self._read = _reader(readers)
        # Several targets of one folder share its images.
        self._number: dict[Path, int] = {}
        for path in (path for video in self._videos for path in video.frames):
            self._number.setdefault(path, len(self._number))
        self._store = ImageStore(list(self._number), memory_limit, self._read)
        self._cutouts: dict[int, dict[int, Cutout]] = {}
        self._whole: list[dict[int, Cutout]] = []
        if distractors:
            # Made here and not when first drawn, so that the workers, which are forked later, share them.
            self._whole = [self._whole_cutouts(video) for video in range(len(self))]
            if not any(self._whole):
                raise ValueError(
                    f"distractors={distractors:g} are cut out by masks, but no video of {root} has NAME/mask/* and its "
                    "target whole in the image: add masks, or leave distractors out"
                )

    def _add(
        self,
        root: Path,
        one_based: tuple[str, ...],
        without: tuple[str, ...],
        readers: dict[Path, Callable[[Path], Image]],
    ) -> None:
        """Take the videos of one folder, and note who reads its images."""
        storage = open_packed(root)
        readers[root] = read_image if storage is None else image_reader(storage)
        if storage is None:
            videos, problems = scan_videos(root, one_based)
            raise_problems(root, problems)
        else:
            videos = stored_videos(storage, one_based)
        videos = leave_out(videos, without)
        visible = [np.flatnonzero(present(video.boxes) & (video.boxes[:, 2:] > 1).all(1)) for video in videos]
        used = [i for i, video in enumerate(videos) if len(video) >= LEAST_FRAMES and len(visible[i]) >= LEAST_VISIBLE]
        if not used:
            raise FileNotFoundError(
                f"{root} has no usable video: NAME/img/* and NAME/groundtruth_rect.txt, {LEAST_FRAMES} images, "
                f"{LEAST_VISIBLE} visible targets"
            )
        for video in (videos[i] for i in used):
            masks = _list_masks(video, storage)
            self._videos.append(video)
            self._masks.append(masks)
            self._outlines.append(
                [mask_outline(readers[root](path)[..., 0] > 127) for path in masks] or [None] * len(video)
            )
        self.visible += [visible[i] for i in used]

    @classmethod
    def build(cls, settings: VideoSettings, root: Path, sources: Sources) -> VideoFolder:
        """What a training file's section describes."""
        limit = round(settings.memory_gib * GIB)
        more = [(root / folder.path, folder.one_based) for folder in settings.more]
        return cls(
            root / settings.path, settings.max_gap, settings.camera, limit, settings.one_based, settings.without, more,
            settings.distractors,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._videos)

    def length(self, video: int) -> int:
        """Number of frames of a video."""
        return len(self._videos[video])

    def view(self, video: int, frame: int) -> View:
        """Image, box and outline of one frame."""
        one = self._videos[video]
        return View(self._store[self._number[one.frames[frame]]], one.boxes[frame], self._outlines[video][frame])

    def mask(self, video: int, frame: int) -> Image | None:
        """(h, w) uint8 mask of one frame, read from disk; None for a video without masks."""
        paths = self._masks[video]
        return np.ascontiguousarray(self._read(paths[frame])[..., 0]) if paths else None

    def cutouts(self, video: int) -> dict[int, Cutout]:
        """The target cut out of every other frame that shows it, by frame; empty for a video without masks."""
        if video not in self._cutouts:
            made = self._cutouts[video] = {}
            for frame in self.visible[video][::2].tolist():
                mask = self.mask(video, frame)
                cutout = None if mask is None else make_cutout(self.view(video, frame).image, cv2.blur(mask, (3, 3)))
                if cutout is not None:
                    made[frame] = cutout
        return self._cutouts[video]

    def _whole_cutouts(self, video: int) -> dict[int, Cutout]:
        """The cut-outs that the border of the image does not cut off."""
        whole = {}
        for frame, cutout in self.cutouts(video).items():
            image, box, _ = self.view(video, frame)
            if (box[:2] > 1).all() and (box[:2] + box[2:] < np.subtract(image.shape[1::-1], 1)).all():
                whole[frame] = cutout
        return whole

    def sample(self, rng: Generator, crops: CropConfig) -> Pair | None:
        """A random video, and two of its frames, the second with a distractor by the probability `distractors`."""
        video = int(rng.integers(len(self._videos)))
        first, second = draw_frames(self.visible[video], round(self.max_gap * crops.reach), rng)

        def distract(region: Image, box: NDArray) -> None:
            if rng.random() < self.distractors:
                look = draw_look(self._whole[video], first, second, rng)
                if look is not None:
                    paste_beside(region, box, look, rng)

        beside = distract if self.distractors else None
        return crop_pair(self.view(video, first), self.view(video, second), crops, self.camera, rng, beside)


def leave_out(videos: Sequence[Video], patterns: Sequence[str]) -> list[Video]:
    """The videos that none of the names or patterns names."""
    return [video for video in videos if not any(fnmatchcase(video.name, pattern) for pattern in patterns)]


def _reader(readers: dict[Path, Callable[[Path], Image]]) -> Callable[[Path], Image]:
    """What reads an image of any of the folders, each of which has a reader."""
    if len(readers) == 1:
        return next(iter(readers.values()))
    # A zip file may lie in another of the folders.
    inner = sorted(readers, key=lambda root: -len(root.parts))
    return lambda path: readers[next(root for root in inner if root in path.parents)](path)


def draw_frames(visible: NDArray[np.intp], max_gap: int, rng: Generator) -> tuple[int, int]:
    """A template frame among the numbers of visible ones, and a search frame up to `max_gap` later.

    The interval grows by 5 while it has no visible target. Source: published `TrackingSampler`, `causal`.
    """
    first = int(visible[rng.integers(len(visible) - 1)])
    gap, later = max_gap, visible[:0]
    while not len(later):
        later = visible[(visible > first) & (visible <= first + gap)]
        gap += 5
    return first, int(later[rng.integers(len(later))])


def _list_masks(video: Video, storage: Storage | None) -> list[Path]:
    folder = video.frames[0].parent
    folder = (folder.parent if folder.name == "img" else folder) / "mask"
    if storage is None:
        masks = list_images(folder) if folder.is_dir() else []
    else:
        names = (storage.path / name for name in storage.names())
        masks = sorted((name for name in names if name.parent == folder), key=natural_order)
    if len(masks) not in (0, len(video)):
        raise ValueError(f"{folder} has {len(masks)} masks for {len(video)} images")
    return masks

"""DAVIS 2016 and 2017 (Perazzi et al. 2016): boxes around the masks of `Annotations/480p/NAME/*.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...data.images import find_images
from ...data.truth import Array, read_lines
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, first_folder, folders, images_in, load_all


class Davis(Benchmark):
    """DAVIS; every object of a video's first mask is a sequence, `NAME` alone or `NAME.1`, `NAME.2`, ...

    A box runs from an object's first to its last pixel in both directions; a frame without any has none. The videos of
    a split are listed in `ImageSets/2017`, `2016` or `480p`; without such a list all are taken. DAVIS itself scores
    masks: figures of boxes compare with nobody's J & F.
    """

    name = "davis"
    title = "DAVIS"
    protocol = "folder"
    splits = ("val", "train")

    def _load(self, data: Path, split: str | None) -> Loaded:
        roots = (data, data / "DAVIS")
        pairs = [(root, root / "Annotations" / size) for root in roots for size in ("480p", "Full-Resolution")]
        root, masks = next(((root, masks) for root, masks in pairs if folders(masks)), (None, None))
        if root is None or masks is None:
            raise self.wrong_layout(data, "Annotations/480p/NAME/*.png and JPEGImages/480p/NAME/*.jpg")
        held, names = _listed(root, (split,) if split else self.splits)
        if names is None:
            held, names = split or "all", [path.name for path in folders(masks)]
        images = root / "JPEGImages" / masks.name
        groups = load_all_groups(names, masks, images)
        return Loaded(load_all(groups, groups.__getitem__, str(masks)), held)


def load_all_groups(names: list[str], masks: Path, images: Path) -> dict[str, Sequence]:
    """The sequences of the videos by name. Raises FileNotFoundError for a video without masks."""
    found: dict[str, Sequence] = {}
    for name in names:
        folder = first_folder(masks / name)
        files = find_images(folder) if folder else []
        if not files:
            raise FileNotFoundError(f"{masks / name} holds no masks (*.png): is a part of the download missing?")
        objects = _boxes(files)
        for number, boxes in enumerate(objects.values(), 1):
            title = name if len(objects) == 1 else f"{name}.{number}"
            found[title] = Sequence(Truth(title, boxes, dataset="davis"), images_in(images / name))
    return found


def _listed(root: Path, splits: tuple[str, ...]) -> tuple[str, list[str] | None]:
    for split in splits:
        for year in ("2017", "2016", "480p"):
            path = root / "ImageSets" / year / f"{split}.txt"
            if path.is_file():
                # Names, or in 2016 pairs of files: /JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png.
                lines = [line.split()[0] for line in read_lines(path) if line.strip()]
                return split, list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))
    return "", None


def _boxes(files: list[Path]) -> dict[int, Array]:
    """{object of the first mask: its boxes (n,4)}."""
    masks = [_read_mask(path) for path in files]
    objects = [int(value) for value in np.unique(masks[0]) if value]
    if not objects:
        raise ValueError(f"{files[0]} shows no object: there is nothing to start a tracker with")
    return {each: np.array([_box(mask == each) for mask in masks]) for each in objects}


def _read_mask(path: Path) -> NDArray[np.uint8]:
    """(h,w): the number of the object at each pixel, 0 for none. Raises ValueError for what is no whole picture."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a mask: {error}") from None
    return values if values.ndim == 2 else values[..., 0]


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (np.nan,) * 4
    left, top = float(columns[0]), float(rows[0])
    return left, top, float(columns[-1] + 1 - left), float(rows[-1] + 1 - top)

"""Images as training reads them: uint8 RGB, found in folders, kept decoded in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
GIB = 1024**3


def read_image(path: Path) -> Image:
    """(h, w, 3) uint8 RGB.

    Raises:
        ValueError: when the file cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not an image OpenCV can read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Sorted image files of a folder.

    Raises:
        FileNotFoundError: when the folder is missing or has no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = sorted(p for p in folder.glob("**/*" if recursive else "*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


class ImageStore:
    """Decoded images by number: in memory up to a limit, decoded on demand beyond it."""

    def __init__(self, paths: Sequence[Path], memory_limit: int) -> None:
        self.paths = list(paths)
        self._images: list[Image | None] = []
        used = 0
        for path in self.paths:
            image = read_image(path) if used < memory_limit else None
            used += 0 if image is None else image.nbytes
            self._images.append(image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image:
        image = self._images[index]
        return read_image(self.paths[index]) if image is None else image

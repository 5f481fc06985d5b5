"""Images as everything here reads them: uint8 RGB, listed in natural order, kept decoded in memory up to a limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..files import exists

Image = NDArray[np.uint8]
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
GIB = 1024**3
_AT_A_TIME = 64


class BadImage(ValueError):
    """A file that is no whole image; the message names it."""


def read_image(path: str | Path) -> Image:
    """(h, w, 3) uint8 RGB, turned upright where the file's EXIF data says so.

    Raises:
        OSError: there is no such regular file, or it may not be read.
        ValueError: it is no whole image; the message names it.
    """
    return cv2.cvtColor(decode_image(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def decode_image(path: str | Path, flags: int) -> NDArray:
    """An image as `cv2.imread(path, flags)` gives it, BGR or BGRA. Raises as `read_image`.

    The file is read here and decoded from memory: OpenCV's own reading of files crashes on names that are not UTF-8,
    waits for ever for a pipe, and returns what a truncated JPEG holds, the rest grey.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be read as an image: it is not a regular file")
    return _decoded(path.read_bytes(), path, flags)


def image_from(data: bytes, path: str | Path) -> Image:
    """As `read_image`, from what the file that is called `path` in messages holds."""
    return cv2.cvtColor(_decoded(data, path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _decoded(content: bytes, path: str | Path, flags: int) -> NDArray:
    data = np.frombuffer(content, dtype=np.uint8)
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error as error:
        raise BadImage(f"{path} cannot be read as an image: OpenCV says {error.err!r}") from None
    if image is None:
        what = "it is empty" if not len(data) else "it is damaged, cut off, or no image at all; remove or repair it"
        raise BadImage(f"{path} cannot be read as an image: {what}")
    return image


def find_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Image files of a folder in natural order; none where it holds none.

    Hidden files (the `._0001.jpg` that macOS leaves beside `0001.jpg` among them), what lies in hidden folders and in
    `__MACOSX`, and folders with an image's name are passed over.

    Raises:
        ValueError: a pipe, socket or device with an image's name: dropping it would shift all later frames.
    """
    found = []
    for path in folder.rglob("*") if recursive else folder.iterdir():
        if path.suffix.lower() not in IMAGE_SUFFIXES or any(map(is_hidden, path.relative_to(folder).parts)):
            continue
        if path.is_file():
            found.append(path)
        elif not path.is_dir():
            raise ValueError(f"{path} has the name of an image but is no regular file, or a broken link: remove it")
    return sorted(found, key=natural_order)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """`find_images`, at least one.

    Raises:
        FileNotFoundError: the folder is missing or holds no image. ValueError: as `find_images`.
    """
    folder = Path(folder)
    if not (exists(folder) and folder.is_dir()):
        raise FileNotFoundError(f"{folder} is not a folder")
    found = find_images(folder, recursive)
    if not found:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or what macOS adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def natural_order(path: Path) -> tuple:
    """Sorting key: folder by folder, numbers in names by their value, so that 10.jpg follows 9.jpg.

    A name that is nothing but a number keeps its sign and fraction: -1 precedes 0, and 17.25 precedes 17.5. Elsewhere a
    minus is a hyphen (`clip-2`) and a point a separator (`clip.2.10`).
    """
    return (*(_pieces(part) for part in path.parent.parts), _pieces(path.stem), path.name)


def _pieces(name: str) -> list[tuple[int, Decimal, str]]:
    if re.fullmatch(r"[-+]?\d+(\.\d+)?", name):
        return [(0, Decimal(name), "")]
    pieces = re.split(r"(\d+)", name.lower())
    return [(0, Decimal(part), "") if part.isdecimal() else (1, Decimal(0), part) for part in pieces if part]


class ImageStore:
    """Decoded images by number: in memory up to a limit, decoded on demand beyond it.

    Args:
        paths: the files.
        memory_limit: bytes of decoded images to keep.
        read: decodes one.

    Raises:
        OSError, ValueError: as `read_image`, for the images that are kept at once, for the others on demand.
    """

    def __init__(self, paths: Sequence[Path], memory_limit: int, read: Callable[[Path], Image] = read_image) -> None:
        self.paths, self._read = list(paths), read
        self._images: list[Image | None] = []
        used = 0
        # Several threads: OpenCV decodes without holding the interpreter's lock. A number of images at a time, so that
        # few beyond the limit are decoded.
        with ThreadPoolExecutor() as pool:
            while len(self._images) < len(self.paths) and used < memory_limit:
                first = len(self._images)
                for image in pool.map(read, self.paths[first : first + _AT_A_TIME]):
                    self._images.append(image)
                    used += image.nbytes
                    if used >= memory_limit:
                        break
        self._images += [None] * (len(self.paths) - len(self._images))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image:
        image = self._images[index]
        return self._read(self.paths[index]) if image is None else image

"""Ground truth: text files of one box a line, in every encoding and spelling that data sets use."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# In this order: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# nan(ind), -nan(snan) and 1.#IND, 1.#QNAN0 are what Microsoft's C runtimes print for NaN.
_NAN = re.compile(r"[-+]?(nan(\(\w*\))?|1\.#(ind|qnan|snan)\d*)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf|infinity)", re.IGNORECASE | re.ASCII)
# Pixels. No image is so large, and squares of such numbers overflow in no metric.
_LARGEST = 1e9
_NEWLINE = ord("\n")
_EIGHT = 8
"""Characters that are read at once, as an integer of 64 bits whose lowest byte is the first."""
_FIRST = np.array([(1 << 8 * count) - 1 for count in range(_EIGHT + 1)], np.uint64)
"""Masks of the first 0 to 8 characters."""
_ZEROS, _BEYOND_9, _TOP_BITS = (np.uint64(0x0101010101010101 * byte) for byte in (ord("0"), 0x80 - 10, 0x80))
_EVERY_FOURTH = np.uint64(0x000000FF000000FF)


def present(boxes: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of (n,4) xywh are boxes: (n,) bool, four finite numbers with positive sides.

    Raises:
        ValueError: another shape.
    """
    boxes = as_boxes(boxes)
    return np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))


def as_boxes(values: ArrayLike) -> Array:
    """The values as (n,4) float64. Raises ValueError for another shape."""
    boxes = np.asarray(values, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have the shape (n, 4), got {boxes.shape}")
    return boxes


def read_boxes(path: str | Path, frames: int | None = None) -> Array:
    """A text file of one box a line -> (n,4) float64, rows of NaN where the target is absent.

    A line is four numbers x, y, w, h between commas, semicolons, tabs or spaces. It says "absent" when it is empty, all
    `nan`, or when a side is not positive. Empty lines at the end, beyond the number of `frames`, mean nothing.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no text file, or a line is neither of these; the message names file and line.
    """
    return parse_boxes(_read(path), path, frames)


def parse_boxes(data: bytes, path: str | Path, frames: int | None = None) -> Array:
    """As `read_boxes`, from the contents of the file that messages call `path`."""
    lines = _parse_lines(data, path)
    while frames is not None and len(lines) > frames and not lines[-1].strip():
        lines.pop()
    boxes = _parse_rows(lines, path)
    # A comparison with NaN is false.
    bad = ~np.isnan(boxes).all(axis=1) & ~(np.abs(boxes) <= _LARGEST).all(axis=1)
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(
            f"{path}, line {index + 1}: expected four finite numbers of pixels x,y,w,h (or nan for absent), got "
            f"{lines[index].strip()[:80]!r}"
        )
    boxes[~present(boxes)] = np.nan
    return boxes


def read_raw_boxes(path: str | Path) -> Array:
    """A text file of one box a line -> (n,4) float64 as it is: empty boxes and negative sides stay, for scoring.

    A line is four numbers x, y, w, h, NaN and infinities among them, between commas, semicolons, tabs or spaces; an
    empty line within the file is four NaN. Whether a NaN, a side of 0 or an infinity is an answer, each protocol says.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no text file, holds no line, or a line is not four numbers; the message names file and line.
    """
    data = _read(path)
    try:
        boxes = _parse_plain(data)
    except ValueError:
        boxes = _parse_rows(_without_trailing_blanks(_parse_lines(data, path)), path)
    if not len(boxes):
        raise ValueError(f"{path} is empty: expected a line x,y,w,h a frame")
    return boxes


def _parse_plain(data: bytes) -> Array:
    """Boxes of a plain file: lines of four decimals between the same single character. Raises ValueError for any other.

    All numbers are read at once, eight characters of each as one integer: twenty times as fast as `numpy.loadtxt`. It is
    as exact as `float`, since a number is an integer below 2**53 over a power of ten, whose quotient is rounded once.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    separators = [mark for mark in b",\t " if mark in data[:200]]
    if len(separators) != 1:
        raise ValueError("not the same single character between all numbers")
    # Numbers are read in eights of characters, which reach beyond the first and the last of the text.
    text = np.frombuffer(b"0" * _EIGHT + data.rstrip() + b"\n" + b"0" * _EIGHT, dtype=np.uint8)
    ends = np.flatnonzero((text == separators[0]) | (text == _NEWLINE))
    if len(ends) % 4 or (text[ends].reshape(-1, 4) != [*separators * 3, _NEWLINE]).any():
        raise ValueError("not four numbers in every line")
    starts = np.concatenate(([_EIGHT], ends[:-1] + 1))
    return _decimals(text, starts, ends).reshape(-1, 4)


def _decimals(text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Array:
    """The numbers between these indices of a text. Raises ValueError for one that is no decimal, or has many digits."""
    negative = text[starts] == ord("-")
    starts = starts + negative
    points = ends.copy()
    found = np.flatnonzero(text == ord("."))
    # The last number that starts at or before a point; of two points in one the first is left, which is no digit.
    points[np.searchsorted(starts, found, side="right") - 1] = found
    whole, fraction = points - starts, np.maximum(ends - points - 1, 0)
    if whole.min() < 0 or whole.max() >= _EIGHT or fraction.max() > _EIGHT or (whole + fraction).min() < 1:
        raise ValueError("not decimal numbers of up to seven digits and eight decimals")
    value = _eight_digits(text, points - _EIGHT, ~_FIRST[_EIGHT - whole]).astype(np.float64)
    if len(found):
        value = (value * 1e8 + _eight_digits(text, points + 1, _FIRST[fraction])) / 1e8
    return np.where(negative, -value, value)


def _eight_digits(text: NDArray[np.uint8], starts: NDArray[np.int64], kept: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The number that eight characters from each start on are, those not in the mask `kept` counting as 0.

    Eight characters are one integer, whose bytes are added in pairs (D. Lemire: Quickly parsing eight digits, 2018).

    Raises:
        ValueError: a kept one is no digit.
    """
    eights = np.ndarray(len(text) - _EIGHT + 1, dtype="<u8", buffer=text, strides=(1,))[starts]
    digits = (eights ^ _ZEROS) & kept
    if (((digits + _BEYOND_9) | digits) & _TOP_BITS).any():
        raise ValueError("not a decimal number")
    pairs = digits * 10 + (digits >> 8)
    high = (pairs & _EVERY_FOURTH) * 0x000F424000000064
    low = ((pairs >> 16) & _EVERY_FOURTH) * 0x0000271000000001
    return np.asarray((high + low) >> 32)


def _without_trailing_blanks(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _parse_rows(lines: list[str], path: str | Path) -> Array:
    """(n,4): the four numbers of each line, rows of NaN for lines that are empty or all NaN."""
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = [_number(word) for word in re.split(r"[,;\s]+", line) if word]
            # An empty line is absent too: `all` of nothing is true.
            rows.append([np.nan] * 4 if all(np.isnan(row)) else _four(row))
        except ValueError:
            shown = line.strip()[:80]
            raise ValueError(f"{path}, line {number}: {shown!r} is not four numbers x,y,w,h") from None
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _four(row: list[float]) -> list[float]:
    if len(row) != 4:
        raise ValueError(row)
    return row


def _number(word: str) -> float:
    if _NAN.fullmatch(word):
        return np.nan
    # float() alone would also take 1_000 and digits of other scripts.
    if not _NUMBER.fullmatch(word):
        raise ValueError(word)
    return float(word)


def read_numbers(path: str | Path) -> Array:
    """All numbers of a text file between commas, spaces and line ends, (n,): flags such as LaSOT's `out_of_view.txt`.

    Raises:
        OSError: there is no such file, or it may not be read. ValueError: a word is no number; the message names both.
    """
    return parse_numbers(_read(path), path)


def parse_numbers(data: bytes, path: str | Path) -> Array:
    """As `read_numbers`, from the contents of the file that messages call `path`."""
    words = re.split(r"[,;\s]+", "\n".join(_parse_lines(data, path)).strip())
    try:
        return np.array([float(word) for word in words if word])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file: UTF-8, UTF-16 or UTF-32 by its byte order mark, else UTF-8 or Latin-1.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no regular file, or no text; the message names it.
    """
    return _parse_lines(_read(path), path)


def _read(path: str | Path) -> bytes:
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path.read_bytes()


def _parse_lines(data: bytes, path: str | Path) -> list[str]:
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} is not a text file: save it as UTF-8")
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def _encoding(data: bytes) -> str:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    # Without its mark UTF-16 shows by the zero half of every digit.
    if data[1::2] and not any(data[1::2]):
        return "utf-16-le"
    if data[::2] and not any(data[::2]):
        return "utf-16-be"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def format_boxes(boxes: Array) -> str:
    """(n,4) boxes as text that `read_boxes` reads: a line each, three decimals, nan where there is no box."""
    return "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in boxes)

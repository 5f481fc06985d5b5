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
LARGEST = 1e9
_NEWLINE = ord("\n")
_POWERS: Array = np.array([float(10**power) for power in range(16)])


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
    bad = ~np.isnan(boxes).all(axis=1) & ~(np.abs(boxes) <= LARGEST).all(axis=1)
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

    All numbers are read at once, a character of each at a time: 2,500 lines in 0.8 ms. `numpy.loadtxt` takes 2 ms,
    and so 11 s for 20 trackers on LaSOT's 280 sequences. It is as exact as `float`: a number of at most 15 digits and a
    power of ten up to 15 are exact, and their quotient is rounded once.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    text = np.frombuffer(data.rstrip() + b"\n", dtype=np.uint8)
    separators = [mark for mark in b",\t " if mark in data[:200]]
    if len(separators) != 1:
        raise ValueError("not the same single character between all numbers")
    ends = np.flatnonzero((text == separators[0]) | (text == _NEWLINE))
    if len(ends) % 4 or (text[ends].reshape(-1, 4) != [*separators * 3, _NEWLINE]).any():
        raise ValueError("not four numbers in every line")
    starts = np.concatenate(([0], ends[:-1] + 1))
    return _decimals(text, starts, ends - starts).reshape(-1, 4)


def _decimals(text: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Array:
    """The numbers at these places of a text. Raises ValueError for one that is no decimal of at most 15 digits."""
    value = np.zeros(len(starts))
    # No number has 256 characters here; bytes are counted several times as fast as integers of 64 bits.
    digits, decimals = np.zeros(len(starts), np.uint8), np.zeros(len(starts), np.uint8)
    fraction = np.zeros(len(starts), bool)
    if lengths.max() > 255:
        raise ValueError("not a decimal number")
    for index in range(int(lengths.max())):
        character = text.take(starts + index, mode="clip")
        inside = lengths > index
        digit = character - np.uint8(ord("0"))
        is_digit, is_point = (digit < 10) & inside, (character == ord(".")) & inside
        other = inside & ~is_digit & ~is_point
        if (is_point & fraction).any() or (other & ((character != ord("-")) | (index > 0))).any():
            raise ValueError("not a decimal number")
        value = np.where(is_digit, value * 10 + digit, value)
        digits += is_digit
        decimals += is_digit & fraction
        fraction |= is_point
    if not digits.all() or digits.max() > 15:
        raise ValueError("not a decimal number of 1 to 15 digits")
    value /= _POWERS[decimals]
    return np.where(text[starts] == ord("-"), -value, value)


def _without_trailing_blanks(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _parse_rows(lines: list[str], path: str | Path) -> Array:
    """(n,4): the four numbers of each line, rows of NaN for lines that are empty or all NaN."""
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = [parse_number(word) for word in re.split(r"[,;\s]+", line) if word]
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


def parse_number(word: str) -> float:
    """A decimal number, or NaN. Raises ValueError for another word."""
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
    if data.strip() and not data.translate(None, b"0123456789,\r\n\t "):
        # Flags, which LaSOT has two of for every frame.
        return np.fromstring(data.replace(b",", b" "), dtype=np.int64, sep=" ").astype(np.float64)
    words = re.split(r"[,;\s]+", "\n".join(_parse_lines(data, path)).strip())
    try:
        return np.array([parse_number(word) for word in words if word])
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)!r} is no number") from None


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

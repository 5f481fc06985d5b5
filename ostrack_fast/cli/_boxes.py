"""Boxes as options give them."""

from __future__ import annotations

from ..data.truth import parse_number


def parse_box(text: str) -> tuple[float, float, float, float]:
    """`x,y,w,h` as four numbers. Raises ValueError for another text."""
    try:
        x, y, w, h = (parse_number(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text!r} is not four numbers x,y,w,h, such as --box 120,80,64,48") from None
    return x, y, w, h

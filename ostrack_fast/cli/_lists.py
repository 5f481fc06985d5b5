"""Options that hold several values with commas between them."""

from __future__ import annotations

import re

MOST = 4096
"""More threads, targets or processes than any machine runs at once."""


def chosen(option: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    """The names in an option's text, all of which must be known; None where it was not given."""
    names = None if text is None else text.split(",")
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name!r} is unknown: choose {', '.join(known)}")
    return names


def counts(option: str, text: str | None, most: int = MOST, least: int = 1) -> list[int] | None:
    """The numbers from `least` to `most` in an option's text; None where it was not given."""
    if text is None:
        return None
    # Of what `int` reads, 1_0 and digits of other scripts are slips of the keyboard.
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) if re.fullmatch(r"[0-9]{1,18}", part) else -1 for part in parts]
    if not all(least <= number <= most for number in numbers):
        raise ValueError(f"{option} {text!r} is not a list of numbers from {least} to {most}, such as 1,8")
    return numbers

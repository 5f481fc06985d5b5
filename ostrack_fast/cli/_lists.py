"""Options that hold several values with commas between them."""

from __future__ import annotations

MOST = 4096
"""More threads, targets or processes than any machine runs at once."""


def chosen(option: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    """The names in an option's text, all of which must be known; None where it was not given."""
    names = None if text is None else text.split(",")
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name!r} is unknown: choose {', '.join(known)}")
    return names


def counts(option: str, text: str | None, most: int = MOST) -> list[int] | None:
    """The numbers from 1 to `most` in an option's text; None where it was not given."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= most for number in numbers):
        raise ValueError(f"{option} {text!r} is not a list of numbers from 1 to {most}, such as 1,8")
    return numbers

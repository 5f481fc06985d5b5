"""Options that hold several values with commas between them."""

from __future__ import annotations

_MOST = 1 << 16  # more threads or targets than any machine runs


def chosen(option: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    """The names in an option's text, all of which must be known; None where it was not given."""
    names = None if text is None else text.split(",")
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name!r} is unknown: choose {', '.join(known)}")
    return names


def counts(option: str, text: str | None) -> list[int] | None:
    """The positive numbers in an option's text; None where it was not given."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= _MOST for number in numbers):
        raise ValueError(f"{option} {text!r} is not a list of positive numbers, such as 1,8")
    return numbers
